//! The steps of a batch norm.

use burn::tensor::Tensor;
use frontier_kernels_cpu::batch_norm::{self as kernels, Affine, Size};
use frontier_kernels_cpu::parallel::zeros;

use super::{close, elements, open};
use crate::ops::problem::batch_norm::BatchNorm;

fn size([samples, features, places]: [usize; 3]) -> Size {
    Size {
        samples,
        features,
        places,
    }
}

/// A number a feature, in f64.
fn numbers(of: &Tensor<1>) -> Option<Vec<f64>> {
    let of = open(of)?;
    Some(elements(&of).iter().copied().map(f64::from).collect())
}

/// Each feature's mean, and the sum of its squared distances from it.
pub(super) fn moments(x: &Tensor<3>) -> Option<[Vec<f64>; 2]> {
    let size = size(x.dims());
    Some(kernels::moments(size, elements(&open(x)?)))
}

/// The normalised x.
pub(super) fn apply(x: &Tensor<3>, norm: &BatchNorm) -> Option<Tensor<3>> {
    let (input, shape) = (open(x)?, x.dims());
    let [weight, bias] = [numbers(&norm.weight)?, numbers(&norm.bias)?];
    let map = |feature: usize| Affine {
        center: norm.mean[feature],
        scale: norm.inverse[feature] * weight[feature],
        shift: bias[feature],
    };
    let maps: Vec<_> = (0..shape[1]).map(map).collect();
    let mut y = zeros(elements(&input).len());
    kernels::apply(size(shape), elements(&input), &maps, &mut y);
    Some(close(y, shape))
}

/// The gradients of weight and bias.
pub(super) fn gradient_sums(
    x: &Tensor<3>,
    g: &Tensor<3>,
    norm: &BatchNorm,
) -> Option<[Tensor<1>; 2]> {
    let (size, x, g) = (size(x.dims()), open(x)?, open(g)?);
    let [sums, products] = kernels::gradient_sums(size, elements(&x), elements(&g), &norm.mean);
    let of_weight = products
        .iter()
        .zip(&norm.inverse)
        .map(|(x, inverse)| (x * inverse) as f32);
    let of_bias = sums.iter().map(|&x| x as f32);
    let both: [Vec<f32>; 2] = [of_weight.collect(), of_bias.collect()];
    Some(both.map(|x| close(x, [size.features])))
}

/// The gradient of x: `scale (g - shift - (x - mean) inverse slope)` with the means `[slope, shift]`.
pub(super) fn gradient(
    x: &Tensor<3>,
    g: &Tensor<3>,
    norm: &BatchNorm,
    [slope, shift]: &[Tensor<1>; 2],
) -> Option<Tensor<3>> {
    let (shape, input, g) = (x.dims(), open(x)?, open(g)?);
    let [weight, slope, shift] = [numbers(&norm.weight)?, numbers(slope)?, numbers(shift)?];
    let map = |feature: usize| {
        let inverse = norm.inverse[feature];
        let scale = inverse * weight[feature];
        let map = Affine {
            center: norm.mean[feature],
            scale: -scale * inverse * slope[feature],
            shift: -scale * shift[feature],
        };
        (map, scale)
    };
    let maps: Vec<_> = (0..shape[1]).map(map).collect();
    let mut dx = zeros(elements(&input).len());
    kernels::gradient(size(shape), elements(&input), elements(&g), &maps, &mut dx);
    Some(close(dx, shape))
}
