//! bf16: what is f32 around a product is widened before and rounded behind, a pass over memory each.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::ops::Range;

use burn::backend::Flex as Backend;
use burn::tensor::{DType, Element as Kind, Shape, Tensor, TensorData, bf16};
use burn_flex::FlexTensor;
use bytemuck::Pod;
use frontier_kernels_cpu::element::{Element, round_all, widen_all};
use frontier_kernels_cpu::parallel::{Shared, for_tasks, zeros};

use super::{PARALLEL, attention, cross_entropy, dropout, embedding, norm};
use crate::ops::backends::{
    AddNorm, Attended, AttentionGradients, CrossEntropyBackward, NormBackward, NormGradients,
    SelfAttentionBackward, TokenStatistics,
};
use crate::ops::problem::attention::{AttentionOptions, Biases, SelfAttention, Sequences};
use crate::ops::problem::dropout::Dropout;
use crate::ops::problem::layers::NormParameters;

/// A type that products are computed of.
pub(super) trait Number: Element + Kind + Pod + Default {
    /// The elements in f32.
    fn wide(x: &[Self]) -> Cow<'_, [f32]>;

    /// The nearest elements.
    fn nearest(x: Vec<f32>) -> Vec<Self>;
}

impl Number for f32 {
    fn wide(x: &[Self]) -> Cow<'_, [f32]> {
        Cow::Borrowed(x)
    }

    fn nearest(x: Vec<f32>) -> Vec<Self> {
        x
    }
}

impl Number for bf16 {
    fn wide(x: &[Self]) -> Cow<'_, [f32]> {
        let mut wide = zeros(x.len());
        pieces(x, &mut wide, widen_all);
        Cow::Owned(wide)
    }

    fn nearest(x: Vec<f32>) -> Vec<Self> {
        let mut near = zeros(x.len());
        pieces(&x, &mut near, round_all);
        near
    }
}

/// Calls `change` with each piece of two slices of one length, on several threads if that pays.
fn pieces<A: Sync, B: Copy + Send + Sync>(x: &[A], y: &mut [B], change: fn(&[A], &mut [B])) {
    let count = x.len();
    let y = Shared::new(y);
    for_tasks(count.div_ceil(PARALLEL), count > PARALLEL, |task| {
        let start = task * PARALLEL;
        let len = PARALLEL.min(count - start);
        #[expect(unsafe_code, reason = "tasks write parts of a slice")]
        // SAFETY: tasks have different pieces.
        let y = unsafe { y.range(start, len) };
        change(&x[start..start + len], y);
    });
}

/// The tensor without autodiff, contiguous; `None` where it has another type or lives elsewhere.
pub(super) fn open_as<E: Number, const D: usize>(x: &Tensor<D>) -> Option<FlexTensor> {
    if x.dtype() != E::dtype() {
        return None;
    }
    let x = x.clone().try_into_primitive::<Backend>().ok()?;
    let x = match x.as_slice::<E>() {
        Some(_) => x,
        None => x.to_contiguous(),
    };
    x.as_slice::<E>().is_some().then_some(x)
}

/// Its elements.
pub(super) fn elements_as<E: Number>(x: &FlexTensor) -> &[E] {
    x.as_slice().unwrap_or_default()
}

/// A tensor of these elements.
pub(super) fn close_as<E: Number, const D: usize>(
    elements: Vec<E>,
    shape: impl Into<Shape>,
) -> Tensor<D> {
    let data = TensorData::new(elements, shape.into());
    Tensor::from_primitive::<Backend>(FlexTensor::from_data(data))
}

/// A tensor of bf16 in f32; `None` where it has another type or lives elsewhere.
fn widen<const D: usize>(x: &Tensor<D>) -> Option<Tensor<D>> {
    let opened = open_as::<bf16, D>(x)?;
    let wide = bf16::wide(elements_as(&opened)).into_owned();
    Some(close_as(wide, x.shape()))
}

/// A tensor of f32 in bf16; as it is where it has another type.
fn round<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let Some(opened) = open_as::<f32, D>(&x) else {
        return x;
    };
    let mut near = zeros(x.shape().num_elements());
    pieces(elements_as(&opened), &mut near, round_all::<bf16>);
    close_as(near, x.shape())
}

fn widen_parameters(parameters: &NormParameters) -> Option<NormParameters> {
    Some(NormParameters {
        weight: widen(&parameters.weight)?,
        bias: match &parameters.bias {
            Some(bias) => Some(widen(bias)?),
            None => None,
        },
        epsilon: parameters.epsilon,
    })
}

fn round_gradients(gradients: NormGradients) -> NormGradients {
    NormGradients {
        x: round(gradients.x),
        weight: round(gradients.weight),
        bias: gradients.bias.map(round),
    }
}

/// [`norm::norm`] of bf16.
pub(super) fn norm(
    x: &Tensor<3>,
    parameters: &NormParameters,
) -> Option<(Tensor<3>, NormBackward)> {
    let (y, back) = norm::norm(&widen(x)?, &widen_parameters(parameters)?)?;
    let backward = move |g: Tensor<3>| back(widen(&g)?).map(round_gradients);
    Some((round(y), Box::new(backward)))
}

/// [`norm::add_norm`] of bf16.
pub(super) fn add_norm(
    [x, residual]: [&Tensor<3>; 2],
    site: Option<&Dropout>,
    parameters: &NormParameters,
) -> Option<AddNorm> {
    let inputs = [widen(x)?, widen(residual)?];
    let parameters = widen_parameters(parameters)?;
    let (outputs, back) = norm::add_norm(inputs.each_ref(), site, &parameters)?;
    let backward = move |g: Tensor<3>, of_sum: Option<Tensor<3>>| {
        let of_sum = match of_sum {
            Some(g) => Some(widen(&g)?),
            None => None,
        };
        let (residual, gradients) = back(widen(&g)?, of_sum)?;
        Some((round(residual), round_gradients(gradients)))
    };
    Some((outputs.map(round), Box::new(backward)))
}

/// [`attention::attention`] of bf16.
pub(super) fn attention(
    inputs: [&Tensor<4>; 3],
    biases: &Biases,
    sequences: Option<&Sequences>,
    options: &AttentionOptions,
) -> Option<Attended> {
    let [Some(q), Some(k), Some(v)] = inputs.map(widen) else {
        return None;
    };
    let attended = attention::attention([&q, &k, &v], biases, sequences, options)?;
    let back = attended.backward;
    let backward = move |g: Tensor<4>, log_sum_exp: Option<Tensor<3>>| {
        let gradients = back(widen(&g)?, log_sum_exp)?;
        Some(AttentionGradients {
            inputs: gradients.inputs.map(round),
            ..gradients
        })
    };
    Some(Attended {
        output: round(attended.output),
        backward: Box::new(backward),
        ..attended
    })
}

/// [`attention::self_attention`] of bf16.
pub(super) fn self_attention(
    qkv: &Tensor<3>,
    sizes: &SelfAttention,
    options: &AttentionOptions,
) -> Option<(Tensor<3>, SelfAttentionBackward)> {
    let (output, back) = attention::self_attention(&widen(qkv)?, sizes, options)?;
    let backward = move |g: Tensor<3>| {
        let g = widen(&g).unwrap_or_else(|| g.cast(DType::F32));
        round(back(g))
    };
    Some((round(output), Box::new(backward)))
}

/// [`dropout::dropout`] of bf16.
pub(super) fn dropout(
    x: &Tensor<3>,
    residual: Option<&Tensor<3>>,
    site: Option<&Dropout>,
) -> Option<Tensor<3>> {
    let residual = match residual {
        Some(residual) => Some(widen(residual)?),
        None => None,
    };
    dropout::dropout(&widen(x)?, residual.as_ref(), site).map(round)
}

/// [`embedding::add_rows`] of rows of bf16.
pub(super) fn add_rows(
    table: Tensor<1>,
    g: &Tensor<2>,
    rows: &[Option<u32>],
) -> Result<Tensor<1>, Box<Tensor<1>>> {
    match widen(g) {
        Some(g) => embedding::add_rows(table, &g, rows),
        None => Err(Box::new(table)),
    }
}

/// [`cross_entropy::cross_entropy`] of logits of bf16.
pub(super) fn cross_entropy(
    logits: &Tensor<2>,
    targets: &[i64],
    ids: &Range<usize>,
) -> Option<(TokenStatistics, CrossEntropyBackward)> {
    let (statistics, back) = cross_entropy::cross_entropy(&widen(logits)?, targets, ids)?;
    let backward = move |combined| match back(combined) {
        Ok(gradient) => Ok(round(gradient)),
        Err(logits) => Err(Box::new(round(*logits))),
    };
    Some((statistics, Box::new(backward)))
}
