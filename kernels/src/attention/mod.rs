//! Attention without a matrix of scores in memory (Dao et al., FlashAttention-2, arXiv 2307.08691):
//! O = softmax(scale Q K^T + bias1 + bias2) V, and its gradients by recomputation.
//!
//! [`Problem`] says what is computed, [`Variant`] what of it is compiled into a kernel, [`Plan`] how the forward kernel does
//! it, and [`backward`] has the gradients.

pub mod backward;
pub mod plan;
pub mod reference;
pub mod tuned;

mod arguments;
pub(crate) mod candidates;
mod launch;
mod sequences;

// CubeCL's macros write public items beside each function and structure, without documentation.
mod bias;
#[allow(missing_docs)]
mod blocks;
#[allow(missing_docs)]
mod forward;
#[allow(missing_docs)]
mod problem;
#[allow(missing_docs)]
mod score;

pub use bias::Access;
pub use launch::{Buffers, launch};
pub use plan::{Plan, sources};
pub use problem::{BiasStrides, Dropout, Geometry, MAX_HEAD_DIM, Problem, Strides, Variant};
pub use sequences::Sequences;
