//! Layer norm and RMS norm.

use burn::tensor::Tensor;

use super::{close, elements, for_rows, open, sum_rows};
use crate::ops::backends::{NormBackward, NormGradients};
use crate::ops::problem::layers::NormParameters;
use frontier_kernels_cpu::math::sum;

/// What a row is normalised with.
struct Row {
    mean: f32,
    /// One over the deviation.
    factor: f32,
}

impl Row {
    #[inline(always)]
    fn of(x: &[f32], layer: bool, epsilon: f32) -> Self {
        let mean = if layer {
            mean_of(
                [x],
                #[inline(always)]
                |[x]| x,
            )
        } else {
            0.0
        };
        let variance = mean_of(
            [x],
            #[inline(always)]
            |[x]| (x - mean) * (x - mean),
        );
        Self {
            mean,
            factor: 1.0 / (variance + epsilon).sqrt(),
        }
    }
}

/// The mean of what `of` gives of the elements at each place.
#[inline(always)]
fn mean_of<const N: usize>(slices: [&[f32]; N], of: impl Fn([f32; N]) -> f32) -> f32 {
    sum(slices, of) / slices[0].len() as f32
}

/// The layer norm (with a bias) or RMS norm (without) of x `[batch, seq, hidden]`.
pub(super) fn norm(
    x: &Tensor<3>,
    parameters: &NormParameters,
) -> Option<(Tensor<3>, NormBackward)> {
    let (input, weight) = (open(x)?, open(&parameters.weight)?);
    let bias = match &parameters.bias {
        Some(bias) => Some(open(bias)?),
        None => None,
    };
    let (layer, epsilon) = (bias.is_some(), parameters.epsilon as f32);
    let shape = x.dims();
    let hidden = shape[2];
    let mut y = vec![0.0; elements(&input).len()];
    {
        let (x, weight) = (elements(&input), elements(&weight));
        let bias = bias.as_ref().map(elements);
        for_rows(
            &mut y,
            hidden,
            #[inline(always)]
            |row, y| {
                let x = &x[row * hidden..][..hidden];
                let Row { mean, factor } = Row::of(x, layer, epsilon);
                for (y, (&x, &w)) in y.iter_mut().zip(x.iter().zip(weight)) {
                    *y = (x - mean) * factor * w;
                }
                for (y, &b) in y.iter_mut().zip(bias.unwrap_or_default()) {
                    *y += b;
                }
            },
        );
    }
    let backward = move |g: Tensor<3>| {
        let g = open(&g)?;
        let [x, g, weight] = [&input, &g, &weight].map(elements);
        Some(gradients([x, g, weight], shape, layer, epsilon))
    };
    Some((close(y, shape), Box::new(backward)))
}

/// The gradients from x and that of the norm, `[batch, seq, hidden]` each.
fn gradients(
    [x, g, weight]: [&[f32]; 3],
    shape: [usize; 3],
    layer: bool,
    epsilon: f32,
) -> NormGradients {
    let hidden = shape[2];
    let of = |row: usize| row * hidden..(row + 1) * hidden;
    let mut dx = vec![0.0; x.len()];
    let mut sums = sum_rows(
        &mut dx,
        hidden,
        2 * hidden,
        #[inline(always)]
        |row, dx, sums| {
            let (x, g) = (&x[of(row)], &g[of(row)]);
            let Row { mean, factor } = Row::of(x, layer, epsilon);
            let (d_weight, d_bias) = sums.split_at_mut(hidden);
            // Normalised, as long as it is needed.
            let sums = d_weight.iter_mut().zip(d_bias);
            for ((normal, (x, &g)), (d_weight, d_bias)) in
                dx.iter_mut().zip(x.iter().zip(g)).zip(sums)
            {
                *normal = (x - mean) * factor;
                *d_weight += g * *normal;
                *d_bias += g;
            }
            let along = mean_of(
                [g, weight, dx],
                #[inline(always)]
                |[g, w, normal]| g * w * normal,
            );
            let gradient = if layer {
                mean_of(
                    [g, weight],
                    #[inline(always)]
                    |[g, w]| g * w,
                )
            } else {
                0.0
            };
            for (dx, (&g, &w)) in dx.iter_mut().zip(g.iter().zip(weight)) {
                *dx = (g * w - gradient - *dx * along) * factor;
            }
        },
    );
    let d_bias = sums.split_off(hidden);
    NormGradients {
        x: close(dx, shape),
        weight: close(sums, [hidden]),
        bias: layer.then(|| close(d_bias, [hidden])),
    }
}
