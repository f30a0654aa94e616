//! A build without a GPU.

use std::ops::Range;
use std::path::Path;

use burn::tensor::{DType, Device, Tensor};

use super::{
    AdamWOutcome, AddNorm, AttentionBackward, CrossEntropyBackward, FeedForwardBackward,
    LinearBackward, NormBackward, TokenStatistics,
};
use crate::error::{Error, Result};
use crate::ops::adamw::{AdamWState, AdamWStep};
use crate::ops::attention::{AttentionOptions, Biases, Sequences};
use crate::ops::dropout::Dropout;
use crate::ops::feed_forward::FeedForward;
use crate::ops::gradient_sum::LinearSums;
use crate::ops::norm::NormParameters;
use crate::ops::rotary::RotaryTable;

pub(crate) fn norm(
    _x: &Tensor<3>,
    _parameters: &NormParameters,
) -> Option<(Tensor<3>, NormBackward)> {
    None
}

pub(crate) fn add_norm(
    _inputs: [&Tensor<3>; 2],
    _site: Option<&Dropout>,
    _parameters: &NormParameters,
) -> Option<AddNorm> {
    None
}

pub(crate) fn dropout(
    _x: &Tensor<3>,
    _residual: Option<&Tensor<3>>,
    _site: &Dropout,
) -> Option<Tensor<3>> {
    None
}

pub(crate) fn attention(
    _inputs: [&Tensor<4>; 3],
    _biases: &Biases,
    _sequences: Option<&Sequences>,
    _options: &AttentionOptions,
) -> Option<(Tensor<4>, AttentionBackward)> {
    None
}

pub(crate) fn fuses_attention(
    _device: &Device,
    _dtype: DType,
    _queries: [usize; 4],
    _kv_heads: usize,
) -> bool {
    false
}

pub(crate) fn linear(
    _x: &Tensor<3>,
    _weight: &Tensor<2>,
    _bias: Option<&Tensor<1>>,
    _sums: (&LinearSums, bool),
) -> Option<(Tensor<3>, LinearBackward)> {
    None
}

pub(crate) fn feed_forward(
    _x: &Tensor<3>,
    _layers: &FeedForward,
    _sums: &[LinearSums; 2],
) -> Option<(Tensor<3>, FeedForwardBackward)> {
    None
}

pub(crate) fn cross_entropy(
    _logits: &Tensor<2>,
    _targets: &[i64],
    _ids: &Range<usize>,
) -> Option<(TokenStatistics, CrossEntropyBackward)> {
    None
}

pub(crate) fn rotary(_x: &Tensor<4>, _table: &RotaryTable, _inverse: bool) -> Option<Tensor<4>> {
    None
}

pub(crate) fn adamw(
    state: AdamWState,
    gradient: Tensor<1>,
    _step: &AdamWStep,
    _weights: DType,
) -> AdamWOutcome {
    Err(Box::new((state, gradient)))
}

pub(crate) fn for_another_thread(x: Tensor<1>) -> Tensor<1> {
    x
}

pub(crate) fn sum_of_squares(_x: &Tensor<1>) -> Option<Result<f64>> {
    None
}

pub(crate) fn require() -> Result<()> {
    Err(Error::config(
        "this build has no kernels to require",
        "build with --features wgpu, cuda or rocm",
    ))
}

pub(crate) fn refusal() -> Result<()> {
    Ok(())
}

pub(crate) fn tune(_folder: &Path) -> Result<()> {
    Err(Error::config(
        "this build has no kernels to tune",
        "build with --features wgpu, cuda or rocm",
    ))
}

pub(crate) fn tuning() -> Option<String> {
    None
}
