//! Pools in three dimensions.

use burn::tensor::Tensor;
use frontier_kernels_cpu::parallel::zeros;
use frontier_kernels_cpu::pool::{self as kernels, Windows as Kernel};

use super::{close, elements, open};
use crate::ops::problem::pool::Windows;

/// Windows over x of a shape, how many planes it has, and the shape of the result.
fn kernel(windows: &Windows, shape: [usize; 5]) -> (Kernel, usize, [usize; 5]) {
    let [batch, channels, input @ ..] = shape;
    let output: [usize; 3] = std::array::from_fn(|i| windows.count(i, input[i]));
    let kernel = Kernel {
        input,
        output,
        kernel: windows.kernel,
        stride: windows.stride,
        padding: windows.padding.map(|[before, _]| before),
        dilation: windows.dilation,
    };
    let [depth, height, width] = output;
    let shape = [batch, channels, depth, height, width];
    (kernel, batch * channels, shape)
}

/// One over the places of each window along each dimension; with `padded`, those of the padding count too.
fn factors(windows: &Windows, kernel: &Kernel, padded: bool) -> [Vec<f32>; 3] {
    std::array::from_fn(|i| {
        let ([before, behind], size) = (windows.padding[i], kernel.input[i]);
        let bounds = match padded {
            true => 0..size + before + behind,
            false => before..before + size,
        };
        let places = |window: usize| {
            let start = window * windows.stride[i];
            let end = (start + windows.kernel[i]).min(bounds.end);
            end.saturating_sub(start.max(bounds.start)).max(1)
        };
        let all = (0..kernel.output[i]).map(|window| 1.0 / places(window) as f32);
        all.collect()
    })
}

/// The greatest elements.
pub(super) fn max(x: &Tensor<5>, windows: &Windows) -> Option<Tensor<5>> {
    let (kernel, planes, shape) = kernel(windows, x.dims());
    let x = open(x)?;
    let mut y = zeros(shape.iter().product());
    kernels::greatest(&kernel, planes, elements(&x), &mut y);
    Some(close(y, shape))
}

/// The gradient of x from x, the greatest elements, and their gradient.
pub(super) fn max_gradient([x, y, g]: [&Tensor<5>; 3], windows: &Windows) -> Option<Tensor<5>> {
    let (kernel, planes, _) = kernel(windows, x.dims());
    let shape = x.dims();
    let [x, y, g] = [open(x)?, open(y)?, open(g)?];
    let mut dx = zeros(shape.iter().product());
    let all = [&x, &y, &g].map(elements);
    kernels::greatest_gradient(&kernel, planes, all, &mut dx);
    Some(close(dx, shape))
}

/// The means.
pub(super) fn mean(x: &Tensor<5>, windows: &Windows, padded: bool) -> Option<Tensor<5>> {
    let (kernel, planes, shape) = kernel(windows, x.dims());
    let x = open(x)?;
    let mut y = zeros(shape.iter().product());
    let factors = factors(windows, &kernel, padded);
    kernels::sums(&kernel, planes, &factors, elements(&x), &mut y);
    Some(close(y, shape))
}

/// The gradient of x, which is of that shape, from that of the means.
pub(super) fn mean_gradient(
    g: &Tensor<5>,
    shape: [usize; 5],
    windows: &Windows,
    padded: bool,
) -> Option<Tensor<5>> {
    let (kernel, planes, _) = kernel(windows, shape);
    let g = open(g)?;
    let mut dx = zeros(shape.iter().product());
    let factors = factors(windows, &kernel, padded);
    kernels::sums_gradient(&kernel, planes, &factors, elements(&g), &mut dx);
    Some(close(dx, shape))
}
