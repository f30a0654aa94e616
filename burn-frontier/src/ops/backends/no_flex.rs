//! A build without the CPU.

use std::ops::Range;

use burn::tensor::Tensor;

use super::{CrossEntropyBackward, NormBackward, TokenStatistics};
use crate::ops::norm::NormParameters;

pub(crate) fn gelu<const D: usize>(_x: &Tensor<D>) -> Option<Tensor<D>> {
    None
}

pub(crate) fn gelu_gradient<const D: usize>(
    _x: &Tensor<D>,
    g: Tensor<D>,
) -> Result<Tensor<D>, Box<Tensor<D>>> {
    Err(Box::new(g))
}

pub(crate) fn swiglu(_x: &Tensor<3>) -> Option<Tensor<3>> {
    None
}

pub(crate) fn swiglu_gradient(_x: &Tensor<3>, _g: &Tensor<3>) -> Option<Tensor<3>> {
    None
}

pub(crate) fn softmax(scores: Tensor<4>, _causal: bool) -> Result<Tensor<4>, Box<Tensor<4>>> {
    Err(Box::new(scores))
}

pub(crate) fn softmax_gradient(
    _p: &Tensor<4>,
    gradient: Tensor<4>,
) -> Result<Tensor<4>, Box<Tensor<4>>> {
    Err(Box::new(gradient))
}

pub(crate) fn cross_entropy(
    _logits: &Tensor<2>,
    _targets: &[i64],
    _ids: &Range<usize>,
) -> Option<(TokenStatistics, CrossEntropyBackward)> {
    None
}

pub(crate) fn norm(
    _x: &Tensor<3>,
    _parameters: &NormParameters,
) -> Option<(Tensor<3>, NormBackward)> {
    None
}
