//! Faster ways that a device has for an operation, which the operation's file asks for first.
//!
//! A backend is a folder, and implements [`Fused`]; it knows what operations are asked for ([`super::problem`]), and none of
//! their files.

#[cfg(any(feature = "wgpu", feature = "cuda", feature = "rocm"))]
mod cube;
#[cfg(feature = "flex")]
mod flex;
mod results;

use std::ops::Range;
use std::path::Path;

use burn::backend::DispatchTensor;
use burn::tensor::{DType, Device, Tensor};

pub(crate) use results::*;

use super::problem::adamw::AdamWRun;
use super::problem::attention::{AttentionOptions, Biases, SelfAttention, Sequences};
use super::problem::batch_norm::BatchNorm;
use super::problem::convolution::Convolution;
use super::problem::dropout::Dropout;
use super::problem::gradient_sum::LinearSums;
use super::problem::layers::{FeedForward, NormParameters};
use super::problem::pool::Windows;
use super::problem::rotary::RotaryTable;
use crate::error::Result;

/// Those that are compiled in.
const ALL: &[&dyn Fused] = &[
    #[cfg(any(feature = "wgpu", feature = "cuda", feature = "rocm"))]
    &cube::Cube,
    #[cfg(feature = "flex")]
    &flex::Flex,
];

/// The faster ways of a device.
pub(crate) fn of(device: &Device) -> &'static dyn Fused {
    let device = device.clone().without_autodiff();
    let found = ALL.iter().find(|backend| backend.has(&device));
    found.copied().unwrap_or(&Plain)
}

/// All faster ways that are compiled in.
pub(crate) fn all() -> impl Iterator<Item = &'static dyn Fused> {
    ALL.iter().copied()
}

/// A device that has none.
struct Plain;

impl Fused for Plain {
    fn has(&self, _device: &Device) -> bool {
        true
    }
}

/// Faster ways of a backend's devices, for tensors without autodiff that lie there.
///
/// Each gives `None`, or what it was given, where it does not apply, and a way back may do so too. What a backend does not have,
/// it leaves out.
pub(crate) trait Fused: Sync {
    /// Whether the device, which is without autodiff, is one of the backend's.
    fn has(&self, device: &Device) -> bool;

    /// GELU of each element of a tensor of any rank.
    fn gelu(&self, _x: DispatchTensor) -> Option<DispatchTensor> {
        None
    }

    /// The gradient of GELU's argument x from that of its value.
    fn gelu_gradient(
        &self,
        _x: DispatchTensor,
        g: DispatchTensor,
    ) -> Result<DispatchTensor, Box<DispatchTensor>> {
        Err(Box::new(g))
    }

    /// x, and `slope x` where it is negative, of each element of a tensor of any rank.
    fn leaky_relu(&self, _x: DispatchTensor, _slope: f64) -> Option<DispatchTensor> {
        None
    }

    /// The gradient of a leaky ReLU's argument x from that of its value.
    fn leaky_relu_gradient(
        &self,
        _x: DispatchTensor,
        _g: DispatchTensor,
        _slope: f64,
    ) -> Option<DispatchTensor> {
        None
    }

    /// SwiGLU of x `[batch, seq, 2 * ffn]`, gate and up side by side.
    fn swiglu(&self, _x: &Tensor<3>) -> Option<Tensor<3>> {
        None
    }

    /// The gradient of SwiGLU's argument x from that of its value.
    fn swiglu_gradient(&self, _x: &Tensor<3>, _g: &Tensor<3>) -> Option<Tensor<3>> {
        None
    }

    /// The softmax of each row of scores `[batch, heads, seq, keys]`; zeros where all of a row is -inf. With `causal`, the last
    /// query sees all keys, and each one before it one less.
    fn softmax(&self, scores: Tensor<4>, _causal: bool) -> Result<Tensor<4>, Box<Tensor<4>>> {
        Err(Box::new(scores))
    }

    /// The gradient of the scores from that of the probabilities `p`.
    fn softmax_gradient(
        &self,
        _p: &Tensor<4>,
        gradient: Tensor<4>,
    ) -> Result<Tensor<4>, Box<Tensor<4>>> {
        Err(Box::new(gradient))
    }

    /// Attention of query `[batch, heads, seq, head_dim]`, key and value `[batch, kv_heads, keys, head_dim]`; of `sequences`,
    /// if given, that lie one after the other in a batch of 1.
    fn attention(
        &self,
        _inputs: [&Tensor<4>; 3],
        _biases: &Biases,
        _sequences: Option<&Sequences>,
        _options: &AttentionOptions,
    ) -> Option<Attended> {
        None
    }

    /// Attention of query, key and value side by side, `[batch, seq, (heads + 2 kv_heads) head_dim]`; gives
    /// `[batch, seq, heads head_dim]`.
    fn self_attention(
        &self,
        _qkv: &Tensor<3>,
        _sizes: &SelfAttention,
        _options: &AttentionOptions,
    ) -> Option<(Tensor<3>, SelfAttentionBackward)> {
        None
    }

    /// Whether [`Self::attention`] applies to queries `[batch, heads, seq, head_dim]` and as many keys, in both directions.
    fn fuses_attention(
        &self,
        _device: &Device,
        _dtype: DType,
        _queries: [usize; 4],
        _kv_heads: usize,
    ) -> bool {
        false
    }

    /// `x W + b` of x `[batch, seq, in]`. The sums are those of `W^T` if they are transposed, as the second of `sums` says.
    fn linear(
        &self,
        _x: &Tensor<3>,
        _weight: &Tensor<2>,
        _bias: Option<&Tensor<1>>,
        _sums: (&LinearSums, bool),
    ) -> Option<(Tensor<3>, LinearBackward)> {
        None
    }

    /// The feed-forward block of x `[batch, seq, hidden]`.
    fn feed_forward(
        &self,
        _x: &Tensor<3>,
        _layers: &FeedForward,
        _sums: &[LinearSums; 2],
    ) -> Option<(Tensor<3>, FeedForwardBackward)> {
        None
    }

    /// The layer norm (with a bias) or RMS norm (without) of x `[batch, seq, hidden]`.
    fn norm(
        &self,
        _x: &Tensor<3>,
        _parameters: &NormParameters,
    ) -> Option<(Tensor<3>, NormBackward)> {
        None
    }

    /// `sum = dropout(x) + residual` and its norm, of x and residual `[batch, seq, hidden]`.
    fn add_norm(
        &self,
        _inputs: [&Tensor<3>; 2],
        _site: Option<&Dropout>,
        _parameters: &NormParameters,
    ) -> Option<AddNorm> {
        None
    }

    /// `dropout(x) + residual` of x and residual `[batch, seq, hidden]`; without a site, nothing is dropped.
    fn dropout(
        &self,
        _x: &Tensor<3>,
        _residual: Option<&Tensor<3>>,
        _site: Option<&Dropout>,
    ) -> Option<Tensor<3>> {
        None
    }

    /// The rows of a table `[n, hidden]`, zeros where there is none: `[rows, hidden]`.
    fn rows(&self, _table: &Tensor<2>, _rows: &[Option<u32>]) -> Option<Tensor<2>> {
        None
    }

    /// The table, flat, with g `[rows, hidden]` added to its rows, in place where nobody else holds it.
    fn add_rows(
        &self,
        table: Tensor<1>,
        _g: &Tensor<2>,
        _rows: &[Option<u32>],
    ) -> Result<Tensor<1>, Box<Tensor<1>>> {
        Err(Box::new(table))
    }

    /// x `[batch, heads, seq, head_dim]`, rotated by a table of as many positions, or back.
    fn rotary(&self, _x: &Tensor<4>, _table: &RotaryTable, _inverse: bool) -> Option<Tensor<4>> {
        None
    }

    /// The mean of each feature of x `[samples, features, places]`, and the sum of its squared distances from it.
    fn batch_norm_moments(&self, _x: &Tensor<3>) -> Option<[Vec<f64>; 2]> {
        None
    }

    /// The batch norm of x `[samples, features, places]`.
    fn batch_norm(&self, _x: &Tensor<3>, _norm: &BatchNorm) -> Option<Tensor<3>> {
        None
    }

    /// The gradients `[features]` of a batch norm's weight and bias from that of its value.
    fn batch_norm_gradient_sums(
        &self,
        _x: &Tensor<3>,
        _g: &Tensor<3>,
        _norm: &BatchNorm,
    ) -> Option<[Tensor<1>; 2]> {
        None
    }

    /// The gradient of a batch norm's x from that of its value, and from the means of the gradients of weight and bias.
    fn batch_norm_gradient(
        &self,
        _x: &Tensor<3>,
        _g: &Tensor<3>,
        _norm: &BatchNorm,
        _means: &[Tensor<1>; 2],
    ) -> Option<Tensor<3>> {
        None
    }

    /// The convolution of x `[batch, inputs, input...]`, and a bias.
    fn convolution(
        &self,
        _convolution: &Convolution,
        _x: &Tensor<5>,
        _weight: &Tensor<5>,
        _bias: Option<&Tensor<1>>,
    ) -> Option<Tensor<5>> {
        None
    }

    /// The gradient of a convolution's input from that of its value, g `[batch, outputs, output...]`, and a bias.
    fn convolution_data_gradient(
        &self,
        _convolution: &Convolution,
        _g: &Tensor<5>,
        _weight: &Tensor<5>,
        _bias: Option<&Tensor<1>>,
    ) -> Option<Tensor<5>> {
        None
    }

    /// The gradient of a convolution's weights from its input and the gradient of its value.
    fn convolution_weight_gradient(
        &self,
        _convolution: &Convolution,
        _x: &Tensor<5>,
        _g: &Tensor<5>,
    ) -> Option<Tensor<5>> {
        None
    }

    /// The sums of each channel of g `[batch, channels, places...]`.
    fn convolution_bias_gradient(&self, _g: &Tensor<5>) -> Option<Tensor<1>> {
        None
    }

    /// The greatest element of each window.
    fn max_pool(&self, _x: &Tensor<5>, _windows: &Windows) -> Option<Tensor<5>> {
        None
    }

    /// The gradient of x from x, the greatest elements, and their gradient.
    fn max_pool_gradient(
        &self,
        _tensors: [&Tensor<5>; 3],
        _windows: &Windows,
    ) -> Option<Tensor<5>> {
        None
    }

    /// The mean of each window; if `padded`, the places around x count.
    fn avg_pool(&self, _x: &Tensor<5>, _windows: &Windows, _padded: bool) -> Option<Tensor<5>> {
        None
    }

    /// The gradient of x, which is of that shape, from that of the means.
    fn avg_pool_gradient(
        &self,
        _g: &Tensor<5>,
        _shape: [usize; 5],
        _windows: &Windows,
        _padded: bool,
    ) -> Option<Tensor<5>> {
        None
    }

    /// The statistics of logits `[tokens, columns]`, whose columns stand for the tokens `ids`; those beyond are padding.
    fn cross_entropy(
        &self,
        _logits: &Tensor<2>,
        _targets: &[i64],
        _ids: &Range<usize>,
    ) -> Option<(TokenStatistics, CrossEntropyBackward)> {
        None
    }

    /// One AdamW step of each run, in place where nobody else holds the tensors, which gives the parameters in the model's type
    /// too.
    fn adamw(&self, runs: Vec<AdamWRun>) -> Vec<AdamWOutcome> {
        runs.into_iter().map(|run| Err(Box::new(run))).collect()
    }

    /// Whether many short runs take AdamW no longer than a long one.
    fn takes_short_runs(&self) -> bool {
        false
    }

    /// The sum of the squares of all elements, the same to the bit on every run.
    fn sum_of_squares(&self, _all: &[Tensor<1>]) -> Option<Result<f64>> {
        None
    }

    /// The tensor, ready to be read by another thread.
    fn for_another_thread(&self, x: Tensor<1>) -> Tensor<1> {
        x
    }

    /// Whether these are the CPU's kernels, for this type.
    fn is_cpu(&self, _dtype: DType) -> bool {
        false
    }

    /// Makes what the backend refuses from now on an error; whether it has kernels that can.
    fn require(&self) -> bool {
        false
    }

    /// Fails if kernels are required and refused an operation.
    fn refusal(&self) -> Result<()> {
        Ok(())
    }

    /// From now on, times plans of kernels and notes the fastest in the folder; `None` without kernels to tune.
    fn tune(&self, _folder: &Path) -> Option<Result<()>> {
        None
    }

    /// Where the timed choices came from, if there are any.
    fn tuning(&self) -> Option<String> {
        None
    }
}
