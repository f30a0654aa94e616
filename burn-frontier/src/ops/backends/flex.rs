//! Operations of f32 on the CPU in one pass over memory each; Burn's flex backend takes a pass for every step of a composition.
//!
//! Results are the same on every x86-64 CPU: loops are compiled for several instruction sets, but none fuses or reorders.

mod activation;
mod adamw;
mod attention;
mod batch_norm;
mod convolution;
mod cross_entropy;
mod dropout;
mod embedding;
mod half;
mod linear;
mod norm;
mod pool;
mod softmax;
mod sum_of_squares;
#[cfg(test)]
mod tests;

use std::ops::Range;

use burn::backend::{DispatchDevice, DispatchTensor, Flex as Backend};
use burn::tensor::{DType, Device, Shape, Tensor, TensorData};
use burn_flex::FlexTensor;
use frontier_kernels_cpu::math::vectorised;
use rayon::prelude::*;

use super::{
    AdamWOutcome, AddNorm, Attended, CrossEntropyBackward, FeedForwardBackward, Fused,
    LinearBackward, NormBackward, SelfAttentionBackward, TokenStatistics,
};
use crate::error::Result;
use crate::ops::problem::adamw::AdamWRun;
use crate::ops::problem::attention::{AttentionOptions, Biases, SelfAttention, Sequences};
use crate::ops::problem::batch_norm::BatchNorm;
use crate::ops::problem::convolution::Convolution;
use crate::ops::problem::dropout::Dropout;
use crate::ops::problem::gradient_sum::LinearSums;
use crate::ops::problem::layers::{FeedForward, NormParameters};
use crate::ops::problem::pool::Windows;

/// Burn's flex backend.
pub(super) struct Flex;

impl Fused for Flex {
    fn has(&self, device: &Device) -> bool {
        matches!(device.as_dispatch(), DispatchDevice::Flex(_))
    }

    fn gelu(&self, x: DispatchTensor) -> Option<DispatchTensor> {
        activation::gelu(x)
    }

    fn gelu_gradient(
        &self,
        x: DispatchTensor,
        g: DispatchTensor,
    ) -> Result<DispatchTensor, Box<DispatchTensor>> {
        activation::gelu_gradient(x, g)
    }

    fn leaky_relu(&self, x: DispatchTensor, slope: f64) -> Option<DispatchTensor> {
        activation::leaky_relu(x, slope as f32)
    }

    fn leaky_relu_gradient(
        &self,
        x: DispatchTensor,
        g: DispatchTensor,
        slope: f64,
    ) -> Option<DispatchTensor> {
        activation::leaky_relu_gradient(x, g, slope as f32)
    }

    fn swiglu(&self, x: &Tensor<3>) -> Option<Tensor<3>> {
        activation::swiglu(x)
    }

    fn swiglu_gradient(&self, x: &Tensor<3>, g: &Tensor<3>) -> Option<Tensor<3>> {
        activation::swiglu_gradient(x, g)
    }

    fn softmax(&self, scores: Tensor<4>, causal: bool) -> Result<Tensor<4>, Box<Tensor<4>>> {
        softmax::softmax(scores, causal)
    }

    fn softmax_gradient(
        &self,
        p: &Tensor<4>,
        gradient: Tensor<4>,
    ) -> Result<Tensor<4>, Box<Tensor<4>>> {
        softmax::softmax_gradient(p, gradient)
    }

    fn linear(
        &self,
        x: &Tensor<3>,
        weight: &Tensor<2>,
        bias: Option<&Tensor<1>>,
        sums: (&LinearSums, bool),
    ) -> Option<(Tensor<3>, LinearBackward)> {
        linear::linear(x, weight, bias, sums)
    }

    fn feed_forward(
        &self,
        x: &Tensor<3>,
        layers: &FeedForward,
        sums: &[LinearSums; 2],
    ) -> Option<(Tensor<3>, FeedForwardBackward)> {
        linear::feed_forward(x, layers, sums)
    }

    fn attention(
        &self,
        inputs: [&Tensor<4>; 3],
        biases: &Biases,
        sequences: Option<&Sequences>,
        options: &AttentionOptions,
    ) -> Option<Attended> {
        attention::attention(inputs, biases, sequences, options)
            .or_else(|| half::attention(inputs, biases, sequences, options))
    }

    fn self_attention(
        &self,
        qkv: &Tensor<3>,
        sizes: &SelfAttention,
        options: &AttentionOptions,
    ) -> Option<(Tensor<3>, SelfAttentionBackward)> {
        attention::self_attention(qkv, sizes, options)
            .or_else(|| half::self_attention(qkv, sizes, options))
    }

    fn fuses_attention(
        &self,
        _device: &Device,
        dtype: DType,
        _queries: [usize; 4],
        _kv_heads: usize,
    ) -> bool {
        self.is_cpu(dtype)
    }

    fn is_cpu(&self, dtype: DType) -> bool {
        matches!(dtype, DType::F32 | DType::BF16)
    }

    fn norm(
        &self,
        x: &Tensor<3>,
        parameters: &NormParameters,
    ) -> Option<(Tensor<3>, NormBackward)> {
        norm::norm(x, parameters).or_else(|| half::norm(x, parameters))
    }

    fn batch_norm_moments(&self, x: &Tensor<3>) -> Option<[Vec<f64>; 2]> {
        batch_norm::moments(x)
    }

    fn batch_norm(&self, x: &Tensor<3>, norm: &BatchNorm) -> Option<Tensor<3>> {
        batch_norm::apply(x, norm)
    }

    fn batch_norm_gradient_sums(
        &self,
        x: &Tensor<3>,
        g: &Tensor<3>,
        norm: &BatchNorm,
    ) -> Option<[Tensor<1>; 2]> {
        batch_norm::gradient_sums(x, g, norm)
    }

    fn batch_norm_gradient(
        &self,
        x: &Tensor<3>,
        g: &Tensor<3>,
        norm: &BatchNorm,
        means: &[Tensor<1>; 2],
    ) -> Option<Tensor<3>> {
        batch_norm::gradient(x, g, norm, means)
    }

    fn convolution(
        &self,
        convolution: &Convolution,
        x: &Tensor<5>,
        weight: &Tensor<5>,
        bias: Option<&Tensor<1>>,
    ) -> Option<Tensor<5>> {
        convolution::forward(convolution, x, weight, bias)
    }

    fn convolution_data_gradient(
        &self,
        convolution: &Convolution,
        g: &Tensor<5>,
        weight: &Tensor<5>,
        bias: Option<&Tensor<1>>,
    ) -> Option<Tensor<5>> {
        convolution::data_gradient(convolution, g, weight, bias)
    }

    fn convolution_weight_gradient(
        &self,
        convolution: &Convolution,
        x: &Tensor<5>,
        g: &Tensor<5>,
    ) -> Option<Tensor<5>> {
        convolution::weight_gradient(convolution, x, g)
    }

    fn convolution_bias_gradient(&self, g: &Tensor<5>) -> Option<Tensor<1>> {
        convolution::bias_gradient(g)
    }

    fn add_norm(
        &self,
        inputs: [&Tensor<3>; 2],
        site: Option<&Dropout>,
        parameters: &NormParameters,
    ) -> Option<AddNorm> {
        norm::add_norm(inputs, site, parameters)
            .or_else(|| half::add_norm(inputs, site, parameters))
    }

    fn dropout(
        &self,
        x: &Tensor<3>,
        residual: Option<&Tensor<3>>,
        site: Option<&Dropout>,
    ) -> Option<Tensor<3>> {
        dropout::dropout(x, residual, site).or_else(|| half::dropout(x, residual, site))
    }

    fn rows(&self, table: &Tensor<2>, rows: &[Option<u32>]) -> Option<Tensor<2>> {
        embedding::rows(table, rows)
    }

    fn add_rows(
        &self,
        table: Tensor<1>,
        g: &Tensor<2>,
        rows: &[Option<u32>],
    ) -> Result<Tensor<1>, Box<Tensor<1>>> {
        embedding::add_rows(table, g, rows).or_else(|table| half::add_rows(*table, g, rows))
    }

    fn max_pool(&self, x: &Tensor<5>, windows: &Windows) -> Option<Tensor<5>> {
        pool::max(x, windows)
    }

    fn max_pool_gradient(&self, tensors: [&Tensor<5>; 3], windows: &Windows) -> Option<Tensor<5>> {
        pool::max_gradient(tensors, windows)
    }

    fn avg_pool(&self, x: &Tensor<5>, windows: &Windows, padded: bool) -> Option<Tensor<5>> {
        pool::mean(x, windows, padded)
    }

    fn avg_pool_gradient(
        &self,
        g: &Tensor<5>,
        shape: [usize; 5],
        windows: &Windows,
        padded: bool,
    ) -> Option<Tensor<5>> {
        pool::mean_gradient(g, shape, windows, padded)
    }

    fn cross_entropy(
        &self,
        logits: &Tensor<2>,
        targets: &[i64],
        ids: &Range<usize>,
    ) -> Option<(TokenStatistics, CrossEntropyBackward)> {
        cross_entropy::cross_entropy(logits, targets, ids)
            .or_else(|| half::cross_entropy(logits, targets, ids))
    }

    fn adamw(&self, runs: Vec<AdamWRun>) -> Vec<AdamWOutcome> {
        adamw::adamw(runs)
    }

    fn takes_short_runs(&self) -> bool {
        true
    }

    fn sum_of_squares(&self, all: &[Tensor<1>]) -> Option<Result<f64>> {
        sum_of_squares::sum_of_squares(all).map(Ok)
    }
}

/// Elements that are worth another thread.
const PARALLEL: usize = 1 << 15;

/// The f32 tensor without autodiff, contiguous; `None` where it has another type or lives elsewhere.
fn open<const D: usize>(x: &Tensor<D>) -> Option<FlexTensor> {
    if x.dtype() != DType::F32 {
        return None;
    }
    let x = x.clone().try_into_primitive::<Backend>().ok()?;
    let x = match x.as_slice::<f32>() {
        Some(_) => x,
        None => x.to_contiguous(),
    };
    x.as_slice::<f32>().is_some().then_some(x)
}

/// Its elements.
fn elements(x: &FlexTensor) -> &[f32] {
    x.as_slice().unwrap_or_default()
}

/// A tensor of these elements.
fn close<const D: usize>(elements: Vec<f32>, shape: impl Into<Shape>) -> Tensor<D> {
    let data = TensorData::new(elements, shape.into());
    Tensor::from_primitive::<Backend>(FlexTensor::from_data(data))
}

/// Lets `change` overwrite the elements, in place if nobody else holds them; the tensor where [`open`] gives `None`.
fn overwrite<const D: usize>(
    x: Tensor<D>,
    change: impl FnOnce(&mut [f32]),
) -> Result<Tensor<D>, Box<Tensor<D>>> {
    if x.dtype() != DType::F32 {
        return Err(Box::new(x));
    }
    let Ok(primitive) = x.clone().try_into_primitive::<Backend>() else {
        return Err(Box::new(x));
    };
    drop(x);
    let mut data = primitive.into_data();
    let changed = data.as_mut_slice::<f32>().map(change).is_ok();
    let x = Tensor::from_primitive::<Backend>(FlexTensor::from_data(data));
    if changed { Ok(x) } else { Err(Box::new(x)) }
}

/// Calls `work` with the index of each row of `out` and the row, on several threads if that pays.
fn for_rows(out: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    sum_rows(
        [out],
        [width; 2],
        0,
        #[inline(always)]
        |row, [out], _| work(row, out),
    );
}

/// As [`for_rows`] of several tensors of one width, and `work` adds to sums over all rows, so many as `sums`. Gives them; how many
/// threads there are does not change them. `size`: the width, and how many elements a row takes the time of.
fn sum_rows<const N: usize>(
    outs: [&mut [f32]; N],
    [width, cost]: [usize; 2],
    sums: usize,
    work: impl Fn(usize, [&mut [f32]; N], &mut [f32]) + Sync,
) -> Vec<f32> {
    let count = outs[0].len().div_ceil(width.max(1));
    if count == 0 {
        return vec![0.0; sums];
    }
    let rows = (PARALLEL / cost).clamp(1, count);
    let mut partial = vec![0.0; count.div_ceil(rows) * sums];
    let part = |(part, (outs, sums)): (usize, ([&mut [f32]; N], &mut [f32]))| {
        let mut outs = outs.map(|out| out.chunks_mut(width));
        vectorised(
            #[inline(always)]
            || {
                for row in part * rows..((part + 1) * rows).min(count) {
                    let outs = outs.each_mut().map(|out| out.next().unwrap_or_default());
                    work(row, outs, sums);
                }
            },
        );
    };
    if rows == count {
        part((0, (outs, &mut partial)));
        return partial;
    }
    let mut outs = outs.map(|out| out.chunks_mut(rows * width));
    let mut all_sums = partial.chunks_mut(sums.max(1));
    let parts: Vec<_> = (0..count.div_ceil(rows))
        .map(|i| {
            let outs = outs.each_mut().map(|out| out.next().unwrap_or_default());
            (i, (outs, all_sums.next().unwrap_or_default()))
        })
        .collect();
    parts.into_par_iter().for_each(part);
    let (total, rest) = partial.split_at_mut(sums);
    for part in rest.chunks(sums.max(1)) {
        total.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
    }
    partial.truncate(sums);
    partial
}
