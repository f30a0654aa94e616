//! Layer norm and RMS norm.

use burn::tensor::Tensor;
use burn_flex::FlexTensor;

use super::dropout::{COST, Site, add_row, dropout};
use super::{close, elements, for_rows, open, sum_rows};
use crate::ops::backends::{AddNorm, NormBackward, NormGradients};
use crate::ops::problem::dropout::Dropout;
use crate::ops::problem::layers::NormParameters;
use frontier_kernels_cpu::math::sum;
use frontier_kernels_cpu::parallel::zeros;

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
    let (norm, input) = (Norm::open(parameters)?, open(x)?);
    let shape = x.dims();
    let hidden = shape[2];
    let mut y = zeros(elements(&input).len());
    {
        let (x, rows) = (elements(&input), norm.rows());
        for_rows(
            &mut y,
            hidden,
            #[inline(always)]
            |row, y| rows.norm(&x[row * hidden..][..hidden], y),
        );
    }
    let backward = move |g: Tensor<3>| norm.gradients(&input, shape, &g, None);
    Some((close(y, shape), Box::new(backward)))
}

/// `sum = dropout(x) + residual` and its norm, of x and residual `[batch, seq, hidden]`.
pub(super) fn add_norm(
    inputs: [&Tensor<3>; 2],
    site: Option<&Dropout>,
    parameters: &NormParameters,
) -> Option<AddNorm> {
    let norm = Norm::open(parameters)?;
    let shape = inputs[0].dims();
    let hidden = shape[2];
    let [Some(x), Some(residual)] = inputs.map(open) else {
        return None;
    };
    let [x, residual] = [&x, &residual].map(elements);
    let (mut sum, mut y) = (zeros(x.len()), zeros(x.len()));
    let (dropped, rows) = (site.map(Site::new), norm.rows());
    let cost = if site.is_some() { COST } else { 2 };
    sum_rows(
        [&mut sum, &mut y],
        [hidden, cost * hidden],
        0,
        #[inline(always)]
        |row, [sum, y], _| {
            let own = row * hidden..(row + 1) * hidden;
            let (x, residual) = (&x[own.clone()], &residual[own]);
            add_row(dropped.as_ref(), row, (x, Some(residual)), sum);
            rows.norm(sum, y);
        },
    );
    let sum = close(sum, shape);
    let (kept, site) = (open(&sum)?, site.cloned());
    let backward = move |g: Tensor<3>, d_sum: Option<Tensor<3>>| {
        let mut gradients = norm.gradients(&kept, shape, &g, d_sum.as_ref())?;
        let residual = gradients.x.clone();
        if site.is_some() {
            gradients.x = dropout(&residual, None, site.as_ref())?;
        }
        Some((residual, gradients))
    };
    Some(([sum, close(y, shape)], Box::new(backward)))
}

/// A norm's parameters.
struct Norm {
    weight: FlexTensor,
    /// Of a layer norm.
    bias: Option<FlexTensor>,
    epsilon: f32,
}

impl Norm {
    fn open(parameters: &NormParameters) -> Option<Self> {
        Some(Self {
            weight: open(&parameters.weight)?,
            bias: match &parameters.bias {
                Some(bias) => Some(open(bias)?),
                None => None,
            },
            epsilon: parameters.epsilon as f32,
        })
    }

    fn rows(&self) -> Rows<'_> {
        Rows {
            weight: elements(&self.weight),
            bias: self.bias.as_ref().map(elements),
            epsilon: self.epsilon,
        }
    }

    /// The gradients from x and those of its norm and, if it is used beside it, of x itself.
    fn gradients(
        &self,
        x: &FlexTensor,
        shape: [usize; 3],
        g: &Tensor<3>,
        beside: Option<&Tensor<3>>,
    ) -> Option<NormGradients> {
        let g = open(g)?;
        let beside = match beside {
            Some(beside) => Some(open(beside)?),
            None => None,
        };
        let hidden = shape[2];
        let ([x, g], rows) = ([x, &g].map(elements), self.rows());
        let beside = beside.as_ref().map(elements);
        let mut dx = zeros(x.len());
        let mut sums = sum_rows(
            [&mut dx],
            [hidden, 2 * hidden],
            2 * hidden,
            #[inline(always)]
            |row, [dx], sums| {
                let own = row * hidden..(row + 1) * hidden;
                rows.gradient([&x[own.clone()], &g[own.clone()]], dx, sums);
                for (dx, d) in dx.iter_mut().zip(beside.map_or(&[][..], |x| &x[own])) {
                    *dx += d;
                }
            },
        );
        let d_bias = sums.split_off(hidden);
        Some(NormGradients {
            x: close(dx, shape),
            weight: close(sums, [hidden]),
            bias: self.bias.is_some().then(|| close(d_bias, [hidden])),
        })
    }
}

/// A norm's parameters, as rows are normalised with them.
struct Rows<'a> {
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    epsilon: f32,
}

impl Rows<'_> {
    #[inline(always)]
    fn norm(&self, x: &[f32], y: &mut [f32]) {
        let Row { mean, factor } = Row::of(x, self.bias.is_some(), self.epsilon);
        for (y, (&x, &w)) in y.iter_mut().zip(x.iter().zip(self.weight)) {
            *y = (x - mean) * factor * w;
        }
        for (y, &b) in y.iter_mut().zip(self.bias.unwrap_or_default()) {
            *y += b;
        }
    }

    /// The gradient of a row x from that of its norm; adds to those of weight and bias, side by side.
    #[inline(always)]
    fn gradient(&self, [x, g]: [&[f32]; 2], dx: &mut [f32], sums: &mut [f32]) {
        let layer = self.bias.is_some();
        let Row { mean, factor } = Row::of(x, layer, self.epsilon);
        let (d_weight, d_bias) = sums.split_at_mut(x.len());
        // Normalised, as long as it is needed.
        let sums = d_weight.iter_mut().zip(d_bias);
        for ((normal, (x, &g)), (d_weight, d_bias)) in dx.iter_mut().zip(x.iter().zip(g)).zip(sums)
        {
            *normal = (x - mean) * factor;
            *d_weight += g * *normal;
            *d_bias += g;
        }
        let along = mean_of(
            [g, self.weight, dx],
            #[inline(always)]
            |[g, w, normal]| g * w * normal,
        );
        let gradient = if layer {
            mean_of(
                [g, self.weight],
                #[inline(always)]
                |[g, w]| g * w,
            )
        } else {
            0.0
        };
        for (dx, (&g, &w)) in dx.iter_mut().zip(g.iter().zip(self.weight)) {
            *dx = (g * w - gradient - *dx * along) * factor;
        }
    }
}
