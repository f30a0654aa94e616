//! Cross entropy over a rank's part of the vocabulary by frontier-kernels: the logits are read once forward, and overwritten
//! by their gradient backward.

use std::ops::Range;

use burn::tensor::{DType, Tensor};
use frontier_kernels::cross_entropy::Plan;
use frontier_kernels::cross_entropy::launch::{self, Combined, Vocabulary};

use super::refusal::refused;
use super::{Buffer, accepted, number, taken};
use crate::ops::backends::{CrossEntropyBackward, TokenStatistics};

const OPERATION: &str = "cross_entropy";

/// A target that does not count.
const IGNORE: i32 = -1;

/// The statistics of logits `[tokens, columns]`, whose columns stand for the tokens `ids`; those beyond are padding.
pub(super) fn cross_entropy(
    logits: &Tensor<2>,
    targets: &[i64],
    ids: &Range<usize>,
) -> Option<(TokenStatistics, CrossEntropyBackward)> {
    let [tokens, columns] = logits.dims();
    let logits = Buffer::of(logits)?;
    let plan = Plan::choose(logits.target(), logits.element(OPERATION)?, columns);
    let vocabulary = Vocabulary {
        start: number(OPERATION, ids.start)?,
        valid: number(OPERATION, ids.len())?,
        ignore: IGNORE,
    };
    let target = |&id: &i64| i32::try_from(id.max(i64::from(IGNORE))).ok();
    let Some(targets) = targets.iter().map(target).collect::<Option<Vec<i32>>>() else {
        return refused(OPERATION, "a target of more than 31 bits");
    };
    let targets = logits.with_values(&targets, DType::I32);
    let stats = logits.beside([3, tokens], DType::F32);
    let done = launch::statistics(
        logits.client(),
        &plan,
        logits.argument(),
        targets.argument(),
        stats.argument(),
        tokens,
        vocabulary,
    );
    accepted(OPERATION, done)?;
    taken(OPERATION);
    let stats = stats.tensor::<2>();
    let row = |i| stats.clone().narrow(0, i, 1).reshape([tokens]);
    let statistics = TokenStatistics {
        largest: row(0),
        sum: row(1),
        target: row(2),
    };
    let saved = Saved {
        logits,
        targets,
        plan,
        vocabulary,
    };
    Some((
        statistics,
        Box::new(move |combined| saved.gradient(combined)),
    ))
}

struct Saved {
    logits: Buffer,
    targets: Buffer,
    plan: Plan,
    vocabulary: Vocabulary,
}

impl Saved {
    fn gradient(self, combined: [Tensor<1>; 3]) -> Result<Tensor<2>, Box<Tensor<2>>> {
        let tokens = combined[0].dims()[0];
        let [Some(largest), Some(sum), Some(scale)] = combined.map(|x| Buffer::of(&x)) else {
            return Err(Box::new(self.logits.tensor()));
        };
        let logits = self.logits.own();
        let combined = Combined {
            largest: largest.argument(),
            sum: sum.argument(),
            scale: scale.argument(),
        };
        let done = launch::gradient(
            logits.client(),
            &self.plan,
            logits.argument(),
            self.targets.argument(),
            combined,
            tokens,
            self.vocabulary,
        );
        match accepted("cross_entropy_backward", done) {
            Some(()) => Ok(logits.tensor()),
            None => Err(Box::new(logits.tensor())),
        }
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    use crate::comm::local::{self, LocalOptions};
    use crate::ops::cross_entropy as operation;
    use crate::ops::gradient::seed;
    use crate::ops::testing::{Place, assert_close, gpu, numbers, types};

    const TARGETS: [i64; 6] = [2, 0, -1, 36, 17, -7];
    const VOCABULARY: usize = 37;

    /// Losses, and the gradients of every rank's logits, which the ranks compute one after the other.
    fn results(ranks: usize, columns: usize, place: &Place) -> Vec<Vec<f64>> {
        let tokens = TARGETS.len();
        let mut found = local::run(ranks, &LocalOptions::default(), |group| {
            let start = (group.rank() * columns).min(VOCABULARY);
            let ids = start..(start + columns).min(VOCABULARY);
            let leaf = place.leaf([tokens, columns], 1 + group.rank() as u32);
            // Not a leaf itself, so that nobody but the operation holds the logits.
            let logits = leaf.clone().mul_scalar(4.0);
            let loss = operation::cross_entropy(logits, &TARGETS, ids, &group)?;
            let g = place.constant([tokens], 9).cast(loss.dtype());
            let gradients = seed(loss.clone(), g).backward();
            Ok([numbers(loss), numbers(leaf.grad(&gradients).unwrap())])
        })
        .unwrap();
        let mut all = vec![found[0][0].clone()];
        all.extend(found.drain(..).map(|[_, gradient]| gradient));
        all
    }

    #[test]
    fn cross_entropy_on_a_gpu_is_the_kernels_and_equals_the_composition() {
        let Some(gpu) = gpu() else { return };
        for dtype in types(&gpu) {
            let (place, reference) = (Place::new(&gpu, dtype), Place::reference(dtype));
            let logits = place.constant([6, VOCABULARY], 1);
            let taken = cross_entropy(&logits, &TARGETS, &(0..VOCABULARY)).is_some();
            assert!(taken, "the kernels refused");
            for (ranks, columns) in [(1, 37), (1, 40), (2, 20), (3, 16)] {
                let own = results(ranks, columns, &place);
                let expected = results(ranks, columns, &reference);
                for (i, (own, expected)) in own.iter().zip(&expected).enumerate() {
                    let what = format!("result {i} of {ranks} ranks, {columns} columns");
                    assert_close(&what, dtype, own, expected);
                }
            }
        }
    }

    #[test]
    fn logits_that_others_hold_are_not_overwritten() {
        let Some(gpu) = gpu() else { return };
        let place = Place::new(&gpu, DType::F32);
        let logits = place.leaf([6, VOCABULARY], 1);
        let before = numbers(logits.clone());
        local::run(1, &LocalOptions::default(), |group| {
            let loss = operation::cross_entropy(logits.clone(), &TARGETS, 0..VOCABULARY, &group)?;
            seed(loss, place.constant([6], 9)).backward();
            Ok(())
        })
        .unwrap();
        assert_eq!(numbers(logits), before);
    }
}
