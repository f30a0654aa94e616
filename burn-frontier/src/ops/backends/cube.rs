//! CubeCL devices: Burn's tensors as the buffers of frontier-kernels.

mod adamw;
mod attention;
mod bridge;
mod buffer;
mod cross_entropy;
mod dropout;
mod gemm;
mod norm;
mod refusal;
mod rotary;
mod tuning;

use std::ops::Range;
use std::path::Path;

use buffer::{Buffer, element, number};
use burn::backend::DispatchDevice;
use burn::tensor::{DType, Device, Tensor};
use frontier_kernels::error::Result as Launched;
use refusal::refused;

use super::{
    AdamWOutcome, AddNorm, Attended, CrossEntropyBackward, FeedForwardBackward, Fused,
    LinearBackward, NormBackward, TokenStatistics,
};
use crate::error::Result;
use crate::ops::problem::adamw::AdamWRun;
use crate::ops::problem::attention::{AttentionOptions, Biases, Sequences};
use crate::ops::problem::dropout::Dropout;
use crate::ops::problem::gradient_sum::LinearSums;
use crate::ops::problem::layers::{FeedForward, NormParameters};
use crate::ops::problem::rotary::RotaryTable;

/// Burn's backend of CubeCL's devices.
pub(super) struct Cube;

impl Fused for Cube {
    fn has(&self, device: &Device) -> bool {
        matches!(device.as_dispatch(), DispatchDevice::Cube(_))
    }

    fn attention(
        &self,
        inputs: [&Tensor<4>; 3],
        biases: &Biases,
        sequences: Option<&Sequences>,
        options: &AttentionOptions,
    ) -> Option<Attended> {
        attention::attention(inputs, biases, sequences, options)
    }

    fn fuses_attention(
        &self,
        device: &Device,
        dtype: DType,
        queries: [usize; 4],
        kv_heads: usize,
    ) -> bool {
        attention::fuses_attention(device, dtype, queries, kv_heads)
    }

    fn linear(
        &self,
        x: &Tensor<3>,
        weight: &Tensor<2>,
        bias: Option<&Tensor<1>>,
        sums: (&LinearSums, bool),
    ) -> Option<(Tensor<3>, LinearBackward)> {
        gemm::linear(x, weight, bias, sums)
    }

    fn feed_forward(
        &self,
        x: &Tensor<3>,
        layers: &FeedForward,
        sums: &[LinearSums; 2],
    ) -> Option<(Tensor<3>, FeedForwardBackward)> {
        gemm::feed_forward(x, layers, sums)
    }

    fn norm(
        &self,
        x: &Tensor<3>,
        parameters: &NormParameters,
    ) -> Option<(Tensor<3>, NormBackward)> {
        norm::norm(x, parameters)
    }

    fn add_norm(
        &self,
        inputs: [&Tensor<3>; 2],
        site: Option<&Dropout>,
        parameters: &NormParameters,
    ) -> Option<AddNorm> {
        norm::add_norm(inputs, site, parameters)
    }

    fn dropout(
        &self,
        x: &Tensor<3>,
        residual: Option<&Tensor<3>>,
        site: Option<&Dropout>,
    ) -> Option<Tensor<3>> {
        dropout::dropout(x, residual, site?)
    }

    fn rotary(&self, x: &Tensor<4>, table: &RotaryTable, inverse: bool) -> Option<Tensor<4>> {
        rotary::rotary(x, table, inverse)
    }

    fn cross_entropy(
        &self,
        logits: &Tensor<2>,
        targets: &[i64],
        ids: &Range<usize>,
    ) -> Option<(TokenStatistics, CrossEntropyBackward)> {
        cross_entropy::cross_entropy(logits, targets, ids)
    }

    fn adamw(&self, runs: Vec<AdamWRun>) -> Vec<AdamWOutcome> {
        runs.into_iter().map(adamw::adamw).collect()
    }

    fn sum_of_squares(&self, all: &[Tensor<1>]) -> Option<Result<f64>> {
        all.iter().map(adamw::sum_of_squares).sum()
    }

    /// In memory of its own: CubeCL lets another thread's stream wait for what stood in this thread's when a memory was
    /// allocated, not for what has been written to it in place since.
    fn for_another_thread(&self, x: Tensor<1>) -> Tensor<1> {
        match bridge::open(x.clone()) {
            Some(here) => bridge::close(here.copy()),
            None => x,
        }
    }

    fn require(&self) -> bool {
        refusal::require();
        true
    }

    fn refusal(&self) -> Result<()> {
        refusal::refusal()
    }

    fn tune(&self, folder: &Path) -> Option<Result<()>> {
        Some(tuning::tune(folder))
    }

    fn tuning(&self) -> Option<String> {
        tuning::tuning()
    }
}

/// What a launch gave. One that refuses its arguments leaves the operation to Burn's own kernels.
fn accepted<T>(operation: &'static str, result: Launched<T>) -> Option<T> {
    match result {
        Ok(done) => Some(done),
        Err(error) => refused(operation, &error.to_string()),
    }
}

/// Says that kernels of frontier-kernels compute an operation, as an event of `tracing`.
fn taken(operation: &str) {
    tracing::trace!(operation, "kernels of frontier-kernels are used");
}
