//! An AdamW step's numbers and tensors.

use burn::tensor::{DType, Tensor};

/// One step's numbers, as PyTorch's `AdamW` names them.
#[derive(Debug, Clone, Copy)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decoupled weight decay; zero for parameters that do not decay.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Number of this step, from 1, for the bias corrections.
    pub step: u64,
    /// Factor on the gradient: clipping and loss scale together.
    pub gradient_scale: f64,
}

impl AdamWStep {
    /// What is left of both moments' bias, `1 - beta^step`.
    pub(crate) fn corrections(&self) -> [f64; 2] {
        let power = i32::try_from(self.step).unwrap_or(i32::MAX);
        [self.beta1, self.beta2].map(|beta| 1.0 - beta.powi(power))
    }
}

/// Parameters and moments of a run, `[n]` each.
#[derive(Debug, Clone)]
pub struct AdamWState {
    /// Parameters in full precision.
    pub parameters: Tensor<1>,
    /// First moment.
    pub first: Tensor<1>,
    /// Second moment.
    pub second: Tensor<1>,
}

/// A run of parameters and what one step does with them.
#[derive(Debug, Clone)]
pub struct AdamWRun {
    /// What the step changes.
    pub state: AdamWState,
    /// `[n]`, in the state's type.
    pub gradient: Tensor<1>,
    /// The step's numbers.
    pub step: AdamWStep,
    /// Type in which the model computes with the parameters.
    pub weights: DType,
}
