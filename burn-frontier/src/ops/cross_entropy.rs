//! Cross entropy over a vocabulary that may be split across ranks: three scalars a token are communicated, never logits.

use std::ops::Range;

use burn::tensor::{IndexingUpdateOp, Tensor, TensorData};

use super::backends::{self, CrossEntropyBackward, TokenStatistics};
use super::exchange::{Exchange, apply, maximum};
use super::gradient::with_gradient;
use crate::comm::Group;
use crate::error::{Error, Result};
use crate::precision::full_precision;

/// `log sum exp(logits) - logits[target]` of every token; zero where the target is negative (ignored).
///
/// # Shapes
/// logits `[tokens, local vocabulary]`; targets are global ids. `ids` are the global ids of this rank's columns; columns
/// beyond them are padding and take no part. Gives `[tokens]`, in f32 for half-precision logits.
///
/// # Communication
/// All-reduce over `group` of one maximum and of two sums a token, forward only (arXiv 1909.08053, section 3).
///
/// # Errors
/// Another number of targets than tokens, more ids than columns, or, on one rank, a target beyond the ids. With more ranks the
/// caller sees to that, as a vocabulary-parallel projection does.
pub fn cross_entropy(
    logits: Tensor<2>,
    targets: &[i64],
    ids: Range<usize>,
    group: &Group,
) -> Result<Tensor<1>> {
    let [tokens, columns] = logits.dims();
    if targets.len() != tokens || ids.len() > columns {
        return Err(Error::config(
            format!(
                "cross_entropy: logits [{tokens}, {columns}] for {} targets and {} ids",
                targets.len(),
                ids.len()
            ),
            "give a target for every row of the logits, and at most one id a column",
        ));
    }
    // With more ranks, a target that is not here may be another's.
    let unknown = |&target: &i64| target >= ids.end as i64;
    if let Some(target) = targets
        .iter()
        .copied()
        .find(unknown)
        .filter(|_| group.size() == 1)
    {
        return Err(Error::config(
            format!("cross_entropy: target {target} for the ids {ids:?}"),
            "give a target among the ids, or a negative one that does not count",
        ));
    }
    let x = logits.clone().without_autodiff();
    let backend = backends::of(&x.device());
    if let Some((statistics, backward)) = backend.cross_entropy(&x, targets, &ids) {
        let targets = Targets::new(targets, &ids);
        return Ok(fused(logits, statistics, backward, targets, group));
    }
    backend.refusal()?;
    let dtype = logits.dtype();
    let x = mask_padding(full_precision(x), ids.len());
    let targets = Targets::new(targets, &ids);
    let [index, here, valid] = targets.columns(&x);
    let index = index.int();

    let max = maximum(x.clone().max_dim(1), group);
    let x = x - max;
    let target = x.clone().gather(1, index);
    // Padding and foreign targets hold -inf somewhere; only a rank's own target counts.
    let target = target.mask_fill(here.equal_elem(0.0), 0.0);
    let exp = x.exp();
    let sums = Tensor::cat(vec![exp.clone().sum_dim(1), target], 1);
    let sums = apply(sums, group, Exchange::AllReduce);
    let sum = sums.clone().narrow(1, 0, 1);
    let loss = (sum.clone().log() - sums.narrow(1, 1, 1)) * valid;

    let loss = loss.reshape([tokens]);
    Ok(with_gradient([logits.into_dispatch()], loss, move |g| {
        let d = targets.gradient(exp / sum, g.reshape([tokens, 1]));
        [Some(d.cast(dtype).into_dispatch())]
    }))
}

/// From a rank's statistics, which are combined as in the paper, to the loss.
fn fused(
    logits: Tensor<2>,
    statistics: TokenStatistics,
    backward: CrossEntropyBackward,
    targets: Targets,
    group: &Group,
) -> Tensor<1> {
    let dtype = logits.dtype();
    let TokenStatistics {
        largest,
        sum,
        target,
    } = statistics;
    let tokens = largest.dims()[0];
    let max = maximum(largest.clone(), group);
    let sum = sum * (largest - max.clone()).exp();
    let sums = apply(
        Tensor::stack::<2>(vec![sum, target], 0),
        group,
        Exchange::AllReduce,
    );
    let row = |i| sums.clone().narrow(0, i, 1).reshape([tokens]);
    let (sum, target) = (row(0), row(1));
    let [_, _, valid] = targets.columns(&sum.clone().reshape([tokens, 1]));
    let loss = (sum.clone().log() + max.clone() - target) * valid.reshape([tokens]);

    with_gradient([logits.into_dispatch()], loss, move |g| {
        let d = backward([max.clone(), sum.clone(), g.clone()]).unwrap_or_else(|logits| {
            let x = mask_padding(full_precision(*logits), targets.ids.len());
            let column = |x: Tensor<1>| x.reshape([tokens, 1]);
            let p = (x - column(max)).exp() / column(sum);
            targets.gradient(p, column(g)).cast(dtype)
        });
        [Some(d.into_dispatch())]
    })
}

fn mask_padding(x: Tensor<2>, valid: usize) -> Tensor<2> {
    let columns = x.dims()[1];
    if valid == columns {
        return x;
    }
    let mut bias = vec![0.0f64; valid];
    bias.resize(columns, f64::NEG_INFINITY);
    let data = TensorData::new(bias, [1, columns]);
    let bias = Tensor::<2>::from_data(data, (&x.device(), x.dtype()));
    x + bias
}

/// What every token is to be, and which ids this rank's columns stand for.
struct Targets {
    tokens: Vec<i64>,
    ids: Range<usize>,
}

impl Targets {
    fn new(tokens: &[i64], ids: &Range<usize>) -> Self {
        Self {
            tokens: tokens.to_vec(),
            ids: ids.clone(),
        }
    }

    /// Per token `[tokens, 1]`: the target's column here (0 if elsewhere), whether it is here, whether it counts at all.
    fn columns(&self, like: &Tensor<2>) -> [Tensor<2>; 3] {
        let local = |target: i64| {
            usize::try_from(target)
                .ok()
                .filter(|id| self.ids.contains(id))
                .map(|id| id - self.ids.start)
        };
        let column = |f: &dyn Fn(i64) -> f64| {
            let values: Vec<f64> = self.tokens.iter().map(|&t| f(t)).collect();
            let data = TensorData::new(values, [self.tokens.len(), 1]);
            Tensor::<2>::from_data(data, (&like.device(), like.dtype()))
        };
        [
            column(&|t| local(t).unwrap_or(0) as f64),
            column(&|t| f64::from(u8::from(local(t).is_some()))),
            column(&|t| f64::from(u8::from(t >= 0))),
        ]
    }

    /// The gradient of the logits, from the probabilities and the gradient of the loss `[tokens, 1]`.
    fn gradient(&self, p: Tensor<2>, g: Tensor<2>) -> Tensor<2> {
        let [index, here, valid] = self.columns(&p);
        let d = p.scatter(1, index.int(), here.neg(), IndexingUpdateOp::Add);
        d * (g * valid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::local;
    use burn::tensor::{DType, Device};

    const TARGETS: [i64; 4] = [2, 0, -1, 6];
    const VOCABULARY: usize = 7;

    fn logits() -> Vec<f64> {
        (0..4 * VOCABULARY)
            .map(|i| (i as f64 * 1.3).sin() * 3.0)
            .collect()
    }

    /// Loss and gradient by the definition.
    fn reference() -> (Vec<f64>, Vec<f64>) {
        let (mut losses, mut gradient) = (Vec::new(), Vec::new());
        for (row, &target) in logits().chunks(VOCABULARY).zip(&TARGETS) {
            let sum: f64 = row.iter().map(|x| x.exp()).sum();
            let counts = f64::from(u8::from(target >= 0));
            losses.push(counts * (sum.ln() - row[target.max(0) as usize]));
            gradient.extend(
                row.iter().enumerate().map(|(i, x)| {
                    counts * (x.exp() / sum - f64::from(u8::from(i as i64 == target)))
                }),
            );
        }
        (losses, gradient)
    }

    fn run(ranks: usize, columns: usize) {
        let (losses, gradient) = reference();
        local::run(ranks, &local::LocalOptions::default(), |group| {
            let start = (group.rank() * columns).min(VOCABULARY);
            let ids = start..(start + columns).min(VOCABULARY);
            let mut shard = Vec::new();
            for row in logits().chunks(VOCABULARY) {
                shard.extend_from_slice(&row[ids.clone()]);
                shard.resize(shard.len() + columns - ids.len(), 77.0);
            }
            let x = Tensor::<2>::from_data(
                TensorData::new(shard, [4, columns]),
                (&Device::flex(), DType::F64),
            )
            .autodiff()
            .require_grad();
            let loss = cross_entropy(x.clone(), &TARGETS, ids.clone(), &group)?;
            let gradients = loss.clone().sum().backward();
            for (own, expected) in loss
                .into_data()
                .try_to_vec::<f64>()
                .unwrap()
                .iter()
                .zip(&losses)
            {
                assert!((own - expected).abs() < 1e-12, "{own} {expected}");
            }
            let d = x
                .grad(&gradients)
                .unwrap()
                .into_data()
                .try_to_vec::<f64>()
                .unwrap();
            for (row, d) in d.chunks(columns).enumerate() {
                for (i, d) in d.iter().enumerate() {
                    let expected = if i < ids.len() {
                        gradient[row * VOCABULARY + ids.start + i]
                    } else {
                        0.0
                    };
                    assert!((d - expected).abs() < 1e-12, "{d} {expected}");
                }
            }
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn a_split_and_padded_vocabulary_gives_the_definition() {
        run(1, 7);
        run(1, 8);
        run(2, 4);
        // The last rank holds padding only.
        run(4, 3);
    }

    #[test]
    fn statistics_without_a_kernel_for_the_gradient_give_the_definition() {
        let (losses, gradient) = reference();
        local::run(1, &local::LocalOptions::default(), |group| {
            let place = (&Device::flex(), DType::F64);
            let x = Tensor::<2>::from_data(TensorData::new(logits(), [4, VOCABULARY]), place)
                .autodiff()
                .require_grad();
            let plain = x.clone().without_autodiff();
            let largest = plain.clone().max_dim(1);
            let sum = (plain.clone() - largest.clone()).exp().sum_dim(1);
            let targets = TARGETS.map(|t| t.max(0)).to_vec();
            let index = Tensor::<2>::from_data(
                TensorData::new(
                    targets.iter().map(|&t| t as f64).collect::<Vec<_>>(),
                    [4, 1],
                ),
                place,
            );
            let statistics = TokenStatistics {
                target: plain.clone().gather(1, index.int()).reshape([4]),
                largest: largest.reshape([4]),
                sum: sum.reshape([4]),
            };
            let refuses: CrossEntropyBackward = Box::new(move |_| Err(Box::new(plain)));
            let targets = Targets::new(&TARGETS, &(0..VOCABULARY));
            let loss = fused(x.clone(), statistics, refuses, targets, &group);
            let gradients = loss.clone().sum().backward();
            let close = |own: TensorData, expected: &[f64]| {
                for (own, expected) in own.iter::<f64>().zip(expected) {
                    assert!((own - expected).abs() < 1e-12, "{own} {expected}");
                }
            };
            close(loss.into_data(), &losses);
            close(x.grad(&gradients).unwrap().into_data(), &gradient);
            Ok(())
        })
        .unwrap();
    }
}
