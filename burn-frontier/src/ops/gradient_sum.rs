//! Gradients of parameters, summed over micro-batches beside the graph.
//!
//! A parameter's gradient is a number in its own type for every micro-batch, which is then added to a sum in f32. Where a GPU's
//! kernel can add to the sum itself, that number is neither rounded nor written (Megatron's gradient accumulation fusion).

use burn::tensor::Tensor;

use super::backends;

pub use super::problem::gradient_sum::{GradientSum, LinearSums};

/// A sum that another thread will read, ready for it.
pub(crate) fn for_another_thread(sum: Tensor<1>) -> Tensor<1> {
    backends::of(&sum.device()).for_another_thread(sum)
}
