//! Convolutions and their gradients.

use burn::tensor::Tensor;
use frontier_kernels_cpu::convolution::{Convolution as Kernel, Problem, channel_sums};
use frontier_kernels_cpu::parallel::zeros;

use super::{close, elements, open};
use crate::ops::problem::convolution::Convolution;

/// The kernel's description; `None` where it has none.
fn kernel(convolution: &Convolution) -> Option<Kernel> {
    let Convolution {
        batch,
        groups,
        inputs,
        outputs,
        input,
        kernel,
        stride,
        padding,
        dilation,
    } = *convolution;
    Kernel::new(Problem {
        batch,
        inputs,
        outputs,
        groups,
        input,
        kernel,
        stride,
        padding,
        dilation,
    })
    .ok()
}

/// `[batch, channels, places...]`.
fn shape(batch: usize, channels: usize, [depth, height, width]: [usize; 3]) -> [usize; 5] {
    [batch, channels, depth, height, width]
}

/// The convolution of x, and a bias.
pub(super) fn forward(
    convolution: &Convolution,
    x: &Tensor<5>,
    weight: &Tensor<5>,
    bias: Option<&Tensor<1>>,
) -> Option<Tensor<5>> {
    let kernel = kernel(convolution)?;
    let shape = shape(convolution.batch, convolution.outputs, kernel.output());
    let run = |x: &[f32], w: &[f32], b: Option<&[f32]>, y: &mut [f32]| kernel.forward(x, w, b, y);
    from(x, weight, bias, shape, run)
}

/// The gradient of x from g, that of the value, and a bias.
pub(super) fn data_gradient(
    convolution: &Convolution,
    g: &Tensor<5>,
    weight: &Tensor<5>,
    bias: Option<&Tensor<1>>,
) -> Option<Tensor<5>> {
    let kernel = kernel(convolution)?;
    let shape = shape(convolution.batch, convolution.inputs, convolution.input);
    let run =
        |g: &[f32], w: &[f32], b: Option<&[f32]>, dx: &mut [f32]| kernel.data_gradient(g, w, b, dx);
    from(g, weight, bias, shape, run)
}

/// A tensor of that shape, which `run` writes from an input, weights and a bias.
fn from(
    x: &Tensor<5>,
    weight: &Tensor<5>,
    bias: Option<&Tensor<1>>,
    shape: [usize; 5],
    run: impl Fn(&[f32], &[f32], Option<&[f32]>, &mut [f32]),
) -> Option<Tensor<5>> {
    let (x, weight) = (open(x)?, open(weight)?);
    let bias = match bias {
        Some(bias) => Some(open(bias)?),
        None => None,
    };
    let mut y = zeros(shape.iter().product());
    let bias = bias.as_ref().map(elements);
    run(elements(&x), elements(&weight), bias, &mut y);
    Some(close(y, shape))
}

/// The gradient of the weights.
pub(super) fn weight_gradient(
    convolution: &Convolution,
    x: &Tensor<5>,
    g: &Tensor<5>,
) -> Option<Tensor<5>> {
    let (kernel, x, g) = (kernel(convolution)?, open(x)?, open(g)?);
    let Convolution {
        inputs,
        outputs,
        groups,
        ..
    } = convolution;
    let shape = shape(*outputs, inputs / groups, convolution.kernel);
    let mut weight = zeros(shape.iter().product());
    kernel.weight_gradient(elements(&x), elements(&g), &mut weight);
    Some(close(weight, shape))
}

/// The sums of the channels.
pub(super) fn bias_gradient(g: &Tensor<5>) -> Option<Tensor<1>> {
    let [batch, channels, places @ ..] = g.dims();
    let g = open(g)?;
    let mut sums = zeros(channels);
    let shape = [batch, channels, places.iter().product()];
    channel_sums(shape, elements(&g), &mut sums);
    Some(close(sums, [channels]))
}
