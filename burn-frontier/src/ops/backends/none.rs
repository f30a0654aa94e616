//! A build without a GPU: no operation has a faster way.

use burn::tensor::Tensor;

use super::NormBackward;

pub(crate) fn norm(
    _x: &Tensor<3>,
    _weight: &Tensor<1>,
    _bias: Option<&Tensor<1>>,
    _epsilon: f64,
) -> Option<(Tensor<3>, NormBackward)> {
    None
}
