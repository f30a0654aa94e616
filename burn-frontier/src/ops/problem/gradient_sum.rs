//! Where gradients of parameters are summed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::precision::full_precision;
use burn::tensor::Tensor;

/// The sum of one parameter's gradients, in f32, or f64 for a parameter of f64: `[count]`, as the parameter lies in memory.
/// Clones share it.
#[derive(Debug, Clone, Default)]
pub struct GradientSum(Arc<Mutex<Option<Tensor<1>>>>);

impl GradientSum {
    /// Adds a gradient of any type.
    pub fn add(&self, gradient: Tensor<1>) {
        let gradient = full_precision(gradient);
        self.put(match self.take() {
            Some(sum) => sum + gradient,
            None => gradient,
        });
    }

    /// Whether both are the same sum.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Takes the sum, if anything was added since it was taken last.
    pub fn take(&self) -> Option<Tensor<1>> {
        self.lock().take()
    }

    /// Puts back what was taken, with what was added to it.
    pub(crate) fn put(&self, sum: Tensor<1>) {
        *self.lock() = Some(sum);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Tensor<1>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a linear layer's backward pass may add the gradients of its parameters. What it adds there is not in the graph's
/// gradients; what it cannot add is.
#[derive(Debug, Clone, Default)]
pub struct LinearSums {
    /// Of the weight.
    pub weight: Option<GradientSum>,
    /// Of the bias.
    pub bias: Option<GradientSum>,
}
