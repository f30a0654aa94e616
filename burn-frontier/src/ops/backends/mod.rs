//! Faster ways that a device has for an operation, which the operation's file asks for first.
//!
//! Each function gives `None` where its kernels do not apply, and a way back that may do so too.

#[cfg(any(feature = "wgpu", feature = "cuda", feature = "rocm"))]
mod cube;
#[cfg(any(feature = "wgpu", feature = "cuda", feature = "rocm"))]
pub(crate) use cube::norm::norm;

#[cfg(not(any(feature = "wgpu", feature = "cuda", feature = "rocm")))]
mod none;
#[cfg(not(any(feature = "wgpu", feature = "cuda", feature = "rocm")))]
pub(crate) use none::norm;

use burn::tensor::Tensor;

/// A norm's gradients: of x, weight, and bias if it has one.
pub(crate) struct NormGradients {
    /// Of x `[batch, seq, hidden]`.
    pub x: Tensor<3>,
    /// Of the weight `[hidden]`.
    pub weight: Tensor<1>,
    /// Of the bias `[hidden]`.
    pub bias: Option<Tensor<1>>,
}

/// From a norm's output gradient to its gradients.
pub(crate) type NormBackward = Box<dyn FnOnce(Tensor<3>) -> Option<NormGradients> + Send>;
