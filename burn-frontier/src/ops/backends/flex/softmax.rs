//! Softmax of attention scores.

use burn::tensor::Tensor;

use super::{elements, for_rows, open, overwrite};
use frontier_kernels_cpu::math::{exp, greatest, sum};

/// The softmax of each row of scores `[batch, heads, seq, keys]`, written over them; zeros where all of a row is -inf. With
/// `causal`, the last query sees all keys, and each one before it one less.
pub(super) fn softmax(scores: Tensor<4>, causal: bool) -> Result<Tensor<4>, Box<Tensor<4>>> {
    let [_, _, seq, keys] = scores.dims();
    overwrite(scores, |scores| {
        for_rows(
            scores,
            keys,
            #[inline(always)]
            |row, scores| {
                let seen = if causal {
                    (row % seq + 1 + keys).saturating_sub(seq).min(keys)
                } else {
                    keys
                };
                let (scores, hidden) = scores.split_at_mut(seen);
                hidden.fill(0.0);
                let most = greatest(scores);
                if most == f32::NEG_INFINITY && !scores.iter().any(|x| x.is_nan()) {
                    scores.fill(0.0);
                    return;
                }
                for x in scores.iter_mut() {
                    *x = exp(*x - most);
                }
                let factor = 1.0
                    / sum(
                        [scores],
                        #[inline(always)]
                        |[x]| x,
                    );
                for x in scores {
                    *x *= factor;
                }
            },
        );
    })
}

/// The gradient of the scores from that of the probabilities `p`, written over it.
pub(super) fn softmax_gradient(
    p: &Tensor<4>,
    gradient: Tensor<4>,
) -> Result<Tensor<4>, Box<Tensor<4>>> {
    let Some(p) = open(p) else {
        return Err(Box::new(gradient));
    };
    let keys = gradient.dims()[3];
    let p = elements(&p);
    overwrite(gradient, |gradient| {
        for_rows(
            gradient,
            keys,
            #[inline(always)]
            |row, gradient| {
                let p = &p[row * keys..][..keys];
                let inner = sum(
                    [p, gradient],
                    #[inline(always)]
                    |[p, g]| p * g,
                );
                for (g, p) in gradient.iter_mut().zip(p) {
                    *g = (*g - inner) * p;
                }
            },
        );
    })
}
