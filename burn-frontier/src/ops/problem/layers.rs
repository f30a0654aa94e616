//! Parameters of a norm and of the feed-forward block, and its nonlinearity.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Scale, shift and epsilon of a norm, without autodiff: a layer norm with a bias, an RMS norm without.
pub(crate) struct NormParameters {
    /// `[hidden]`.
    pub weight: Tensor<1>,
    /// `[hidden]`.
    pub bias: Option<Tensor<1>>,
    /// What is added to the variance.
    pub epsilon: f64,
}

/// The nonlinearity between the two matrices of the feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// GELU, tanh form.
    Gelu,
    /// SwiGLU: a gate beside the projection.
    Swiglu,
}

/// sqrt(2 / pi).
pub(crate) const SCALE: f64 = 0.797_884_560_802_865_4;
/// Factor on the cube in GELU's tanh form.
pub(crate) const CUBIC: f64 = 0.044_715;

/// Parameters of the block.
#[derive(Debug, Clone)]
pub struct FeedForward {
    /// `[hidden, ffn]`; for SwiGLU `[hidden, 2 ffn]`, the gate's columns first.
    pub up: Tensor<2>,
    /// As many as `up` has columns.
    pub up_bias: Option<Tensor<1>>,
    /// Between the layers.
    pub activation: Activation,
    /// `[ffn, out]`.
    pub down: Tensor<2>,
    /// `[out]`.
    pub down_bias: Option<Tensor<1>>,
}
