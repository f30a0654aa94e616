//! Convolutions in one to three dimensions, and their gradients.
//!
//! Tensors are contiguous, as Burn and PyTorch have them: images `[batch, channels, depth, height, width]`, kernels
//! `[outputs, inputs / groups, depth, height, width]`. Fewer dimensions are leading ones of size 1.
//!
//! All directions are products whose one operand is a patch of an image, read where it lies: part of the image is copied with its
//! padding into memory of its own (staged), where places and elements of the kernel are steps. The lanes of a vector are channels that
//! are written, or, where these are few, neighbouring places. Padding that all of a tile's places meet is skipped where the depth is
//! large; the data gradient is taken apart by the residues of the stride, so that it multiplies no zeros either.

mod gather;
mod images;
mod pass;
mod pointwise;
#[cfg(test)]
mod reference;
mod strips;
#[cfg(test)]
mod tests;
mod weights;

use images::{Job, PARALLEL, part};
use pass::Pass;
use pointwise::Pointwise;

use crate::math;
use crate::parallel::{Shared, for_tasks};

/// What a convolution is: sizes and how the kernel moves. Each array has the depth, the height and the width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Problem {
    /// Images.
    pub batch: usize,
    /// Channels of the input.
    pub inputs: usize,
    /// Channels of the output.
    pub outputs: usize,
    /// Groups of channels that do not meet.
    pub groups: usize,
    /// Size of the input.
    pub input: [usize; 3],
    /// Size of the kernel.
    pub kernel: [usize; 3],
    /// From one place of the kernel to the next.
    pub stride: [usize; 3],
    /// Zeros before and behind the input.
    pub padding: [[usize; 2]; 3],
    /// From one element of the kernel to the next, in the input.
    pub dilation: [usize; 3],
}

/// A convolution that can be computed.
///
/// The transposed convolution is its [`data_gradient`](Self::data_gradient): what is called output padding there is a larger `input`
/// here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Convolution {
    problem: Problem,
    output: [usize; 3],
}

impl Convolution {
    /// Checks the sizes.
    ///
    /// # Errors
    /// If the groups do not divide the channels, a stride, a dilation or a kernel is 0, the kernel does not fit into the padded input,
    /// or a tensor is larger than memory.
    pub fn new(problem: Problem) -> Result<Self, String> {
        let p = problem;
        if p.groups == 0
            || !p.inputs.is_multiple_of(p.groups)
            || !p.outputs.is_multiple_of(p.groups)
        {
            return Err(format!(
                "{} groups for {} input and {} output channels; expected a divisor of both",
                p.groups, p.inputs, p.outputs
            ));
        }
        let mut output = [0; 3];
        for (i, output) in output.iter_mut().enumerate() {
            if p.kernel[i] == 0 || p.stride[i] == 0 || p.dilation[i] == 0 {
                return Err(format!(
                    "kernel {:?}, stride {:?}, dilation {:?}; expected at least 1 each",
                    p.kernel, p.stride, p.dilation
                ));
            }
            let padded = p.padding[i]
                .iter()
                .try_fold(p.input[i], |sum, &x| sum.checked_add(x));
            let extent = (p.kernel[i] - 1)
                .checked_mul(p.dilation[i])
                .and_then(|x| x.checked_add(1));
            let room = padded.zip(extent).and_then(|(x, y)| x.checked_sub(y));
            let Some(room) = room else {
                return Err(format!(
                    "a kernel {:?} with dilation {:?} for an input {:?} with padding {:?}; expected one that fits",
                    p.kernel, p.dilation, p.input, p.padding
                ));
            };
            *output = room / p.stride[i] + 1;
        }
        let fits = |count: &[usize], size: [usize; 3]| {
            let bytes = count.iter().chain(&size).try_fold(4, |product, &x| {
                usize::checked_mul(product, x).filter(|&x| x <= isize::MAX as usize)
            });
            bytes.is_some()
        };
        if !fits(&[p.batch, p.inputs], p.input)
            || !fits(&[p.batch, p.outputs], output)
            || !fits(&[p.outputs, p.inputs], p.kernel)
        {
            return Err(format!("{p:?} is larger than memory"));
        }
        Ok(Self { problem, output })
    }

    /// What it was made from.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// Size of the output.
    pub fn output(&self) -> [usize; 3] {
        self.output
    }

    /// `y = x * weight + bias`, one bias an output channel.
    ///
    /// # Panics
    /// If a slice has another length than its tensor.
    pub fn forward(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
        self.check(x.len(), weight.len(), y.len());
        check_bias(bias, self.problem.outputs);
        if let Some(pointwise) = Pointwise::of(self) {
            return pointwise.forward(x, weight, bias, y);
        }
        let passes = [Pass::over_input(self)];
        Job::forward(self, x, weight, bias).run(&passes, y);
    }

    /// The gradient of the input, to which `bias`, one an input channel, is added: the forward of a transposed convolution.
    ///
    /// # Panics
    /// If a slice has another length than its tensor.
    pub fn data_gradient(&self, dy: &[f32], weight: &[f32], bias: Option<&[f32]>, dx: &mut [f32]) {
        self.check(dx.len(), weight.len(), dy.len());
        check_bias(bias, self.problem.inputs);
        if let Some(pointwise) = Pointwise::of(self) {
            return pointwise.data_gradient(dy, weight, bias, dx);
        }
        let passes = Pass::all_over_output(self);
        Job::data_gradient(self, dy, weight, bias).run(&passes, dx);
    }

    /// The gradient of the kernels.
    ///
    /// # Panics
    /// If a slice has another length than its tensor.
    pub fn weight_gradient(&self, x: &[f32], dy: &[f32], dweight: &mut [f32]) {
        self.check(x.len(), dweight.len(), dy.len());
        match Pointwise::of(self) {
            Some(pointwise) => pointwise.weight_gradient(x, dy, dweight),
            None => weights::gradient(self, x, dy, dweight),
        }
    }

    /// The gradient of the bias: the sum of each output channel.
    ///
    /// # Panics
    /// If a slice has another length than its tensor.
    pub fn bias_gradient(&self, dy: &[f32], dbias: &mut [f32]) {
        let Problem { batch, outputs, .. } = self.problem;
        let pixels: usize = self.output.iter().product();
        assert_eq!(dy.len(), batch * outputs * pixels, "gradient of {self:?}");
        channel_sums([batch, outputs, pixels], dy, dbias);
    }

    fn check(&self, x: usize, weight: usize, y: usize) {
        let p = &self.problem;
        let size = |count: usize, size: [usize; 3]| count * size.iter().product::<usize>();
        let expected = [
            size(p.batch * p.inputs, p.input),
            size(p.outputs * (p.inputs / p.groups), p.kernel),
            size(p.batch * p.outputs, self.output),
        ];
        assert_eq!([x, weight, y], expected, "input, kernels, output of {p:?}");
    }
}

fn check_bias(bias: Option<&[f32]>, channels: usize) {
    if let Some(bias) = bias {
        assert_eq!(bias.len(), channels, "one bias a channel");
    }
}

/// The sum of each channel of `[batch, channels, pixels]`: a transposed convolution's gradient of the bias is that of its output.
///
/// # Panics
/// If a slice has another length than its tensor.
pub fn channel_sums([batch, channels, pixels]: [usize; 3], x: &[f32], sums: &mut [f32]) {
    assert_eq!(
        [x.len(), sums.len()],
        [batch * channels * pixels, channels],
        "values and sums"
    );
    let sums = Shared::new(sums);
    for_tasks(channels, x.len() >= PARALLEL, |channel| {
        let images = (0..batch).map(|n| &x[(n * channels + channel) * pixels..][..pixels]);
        let sum = images.map(|x| math::sum([x], |[x]| x)).sum();
        part(sums, channel..channel + 1)[0] = sum;
    });
}
