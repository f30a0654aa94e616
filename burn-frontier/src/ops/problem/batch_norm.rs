//! Parameters of a batch norm.

use burn::tensor::Tensor;

/// A batch norm by known statistics, without autodiff: `(x - mean) inverse weight + bias` of each feature.
pub(crate) struct BatchNorm {
    /// Of each feature.
    pub mean: Vec<f64>,
    /// One over each feature's deviation.
    pub inverse: Vec<f64>,
    /// `[features]`.
    pub weight: Tensor<1>,
    /// `[features]`.
    pub bias: Tensor<1>,
}
