//! Cross entropy over a rank's part of the vocabulary: the logits are read once forward, and overwritten by their gradient
//! backward.

use std::ops::Range;

use burn::tensor::Tensor;

use super::{close, elements, for_rows, open, overwrite, sum_rows};
use crate::ops::backends::{CrossEntropyBackward, TokenStatistics};
use frontier_kernels_cpu::math::{exp, greatest, sum};

/// The columns of the targets that are here.
fn columns_of(targets: &[i64], ids: &Range<usize>) -> Vec<Option<usize>> {
    let column = |&target: &i64| {
        let id = usize::try_from(target).ok()?;
        ids.contains(&id).then(|| id - ids.start)
    };
    targets.iter().map(column).collect()
}

/// The statistics of logits `[tokens, columns]`, whose columns stand for the tokens `ids`; those beyond are padding.
pub(super) fn cross_entropy(
    logits: &Tensor<2>,
    targets: &[i64],
    ids: &Range<usize>,
) -> Option<(TokenStatistics, CrossEntropyBackward)> {
    let [tokens, columns] = logits.dims();
    let x = open(logits)?;
    let x = elements(&x);
    let valid = ids.len();
    let columns_of = columns_of(targets, ids);
    let mut statistics = vec![0.0; 3 * tokens];
    sum_rows(
        [&mut statistics],
        [3, columns],
        0,
        #[inline(always)]
        |token, [out], _| {
            let row = &x[token * columns..][..valid];
            let most = greatest(row);
            out[0] = most;
            out[1] = sum(
                [row],
                #[inline(always)]
                |[x]| exp(x - most),
            );
            out[2] = columns_of[token].map_or(0.0, |column| row[column]);
        },
    );
    let part = |i| {
        let all: Vec<f32> = statistics.iter().skip(i).step_by(3).copied().collect();
        close(all, [tokens])
    };
    let statistics = TokenStatistics {
        largest: part(0),
        sum: part(1),
        target: part(2),
    };
    let saved = Saved {
        logits: logits.clone(),
        valid,
        columns_of,
        counts: targets.iter().map(|&target| target >= 0).collect(),
    };
    Some((
        statistics,
        Box::new(move |combined| saved.gradient(combined)),
    ))
}

/// What is kept for the way back.
struct Saved {
    logits: Tensor<2>,
    /// Columns that are no padding.
    valid: usize,
    /// Of each token: its target's column, if that is here.
    columns_of: Vec<Option<usize>>,
    /// Whether it counts.
    counts: Vec<bool>,
}

impl Saved {
    fn gradient(self, combined: [Tensor<1>; 3]) -> Result<Tensor<2>, Box<Tensor<2>>> {
        let [Some(largest), Some(total), Some(loss)] = combined.each_ref().map(open) else {
            return Err(Box::new(self.logits));
        };
        let [largest, total, loss] = [&largest, &total, &loss].map(elements);
        let columns = self.logits.dims()[1];
        overwrite(self.logits, |logits| {
            for_rows(
                logits,
                columns,
                #[inline(always)]
                |token, row| {
                    let (row, padding) = row.split_at_mut(self.valid);
                    padding.fill(0.0);
                    if !self.counts[token] {
                        row.fill(0.0);
                        return;
                    }
                    let factor = loss[token] / total[token];
                    for x in row.iter_mut() {
                        *x = exp(*x - largest[token]) * factor;
                    }
                    if let Some(column) = self.columns_of[token] {
                        row[column] -= loss[token];
                    }
                },
            );
        })
    }
}
