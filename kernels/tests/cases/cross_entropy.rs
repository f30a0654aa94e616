//! Problems of cross entropy over a split vocabulary.

use frontier_kernels::cross_entropy::{Plan, reference};
use frontier_kernels::matrix::instruction::{Element, Target};

use super::{assert_close, draw, pack, unpack};

/// What executes the kernels.
pub trait Run {
    /// The statistics `[3, tokens]` of a shard.
    fn statistics(&self, shard: &Shard, targets: &[i32]) -> Vec<f64>;

    /// The gradient over the shard's logits, from the largest logit, the sum and the scale of each token.
    fn gradient(&self, shard: &Shard, targets: &[i32], combined: [&[f64]; 3]) -> Vec<f64>;
}

pub const IGNORE: i32 = 3;
pub const TOKENS: usize = 5;

/// Logits of a rank, and the columns of the whole vocabulary that they are.
pub struct Shard {
    pub plan: Plan,
    pub start: usize,
    pub valid: usize,
    pub logits: Vec<u8>,
}

pub struct Case {
    element: Element,
    vocabulary: usize,
    logits: Vec<f64>,
    targets: Vec<i32>,
}

impl Case {
    pub fn new(element: Element, vocabulary: usize) -> Self {
        // From -8 to 8, with -inf among them.
        let drawn = draw(element, TOKENS * vocabulary, vocabulary as u64);
        let mut logits: Vec<f64> = drawn.iter().map(|x| 8.0 * x).collect();
        logits[1] = f64::NEG_INFINITY;
        let logits = unpack(element, &pack(element, &logits));
        let last = vocabulary as i32 - 1;
        let targets = vec![0, last, IGNORE, -100, last / 2];
        Self {
            element,
            vocabulary,
            logits,
            targets,
        }
    }

    /// The parts of `ranks` ranks of `columns` columns each, the last of which is padding.
    fn shards(&self, target: Target, ranks: usize, columns: usize) -> Vec<Shard> {
        let part = |rank: usize| {
            let start = (rank * columns).min(self.vocabulary);
            let valid = (self.vocabulary - start).min(columns);
            let rows = self.logits.chunks(self.vocabulary).flat_map(|row| {
                let mut row = row[start..start + valid].to_vec();
                row.resize(columns, 77.0);
                row
            });
            let logits = pack(self.element, &rows.collect::<Vec<_>>());
            Shard {
                plan: Plan::choose(target, self.element, columns),
                start,
                valid,
                logits,
            }
        };
        (0..ranks).map(part).collect()
    }

    /// Loss and gradient on `ranks` ranks of `columns` columns are those of the definition.
    pub fn check(&self, run: &impl Run, target: Target, ranks: usize, columns: usize) {
        let shards = self.shards(target, ranks, columns);
        let stats: Vec<_> = shards
            .iter()
            .map(|shard| run.statistics(shard, &self.targets))
            .collect();
        let counts = |t: usize| self.targets[t] != IGNORE && self.targets[t] >= 0;
        let over = |t: usize, i: usize| stats.iter().map(move |s| s[i * TOKENS + t]);
        let largest: Vec<f64> = (0..TOKENS)
            .map(|t| over(t, 0).fold(f64::MIN, f64::max))
            .collect();
        let part = |t: usize| {
            over(t, 0)
                .zip(over(t, 1))
                .map(|(m, s)| s * (m - largest[t]).exp())
                .sum()
        };
        let sum: Vec<f64> = (0..TOKENS).map(part).collect();
        let loss = |t: usize| largest[t] + sum[t].ln() - over(t, 2).sum::<f64>();
        let losses: Vec<f64> = (0..TOKENS)
            .map(|t| if counts(t) { loss(t) } else { 0.0 })
            .collect();

        let scale: Vec<f64> = draw(Element::F32, TOKENS, 9)
            .iter()
            .map(|x| x + 2.0)
            .collect();
        let targets: Vec<_> = (0..TOKENS)
            .map(|t| counts(t).then_some(self.targets[t] as usize))
            .collect();
        let (expected, gradient) = reference::cross_entropy(&self.logits, &targets, &scale);
        let name = format!(
            "{:?} {}, {ranks} ranks of {columns} on {target:?}",
            self.element, self.vocabulary
        );
        assert_close(
            &format!("losses of {name}"),
            Element::F32,
            &losses,
            &expected,
        );

        let mut found = vec![0.0; self.logits.len()];
        for shard in &shards {
            let after = run.gradient(shard, &self.targets, [&largest, &sum, &scale]);
            for (t, row) in after.chunks(columns).enumerate() {
                let at = t * self.vocabulary + shard.start;
                found[at..at + shard.valid].copy_from_slice(&row[..shard.valid]);
                assert!(
                    row[shard.valid..].iter().all(|x| *x == 0.0),
                    "padding of {name}"
                );
            }
        }
        assert_close(
            &format!("gradient of {name}"),
            self.element,
            &found,
            &gradient,
        );
    }
}
