//! AdamW (arXiv 1711.05101), fused.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::ops::adamw::{AdamWRun, AdamWState, AdamWStep};
use crate::precision::{full_precision, is_half};

/// AdamW's constants.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay of matrices and embeddings; vectors do not decay.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
        }
    }
}

/// What AdamW remembers of a flat piece of a bucket. `master` only if the parameters are in half precision.
#[derive(Debug)]
pub(super) struct Moments {
    pub first: Tensor<1>,
    pub second: Tensor<1>,
    pub master: Option<Tensor<1>>,
}

impl Moments {
    /// Of parameters that were never updated.
    pub fn new(piece: Tensor<1>) -> Self {
        let half = is_half(&piece);
        let piece = full_precision(piece);
        Self {
            first: piece.zeros_like(),
            second: piece.zeros_like(),
            master: half.then_some(piece),
        }
    }

    /// What a step does with the moments' run. `piece`: the parameters, which nobody else is to hold, so that they are updated in
    /// place.
    pub fn run(self, piece: Tensor<1>, gradient: Tensor<1>, step: AdamWStep) -> AdamWRun {
        AdamWRun {
            gradient,
            step,
            weights: piece.dtype(),
            state: AdamWState {
                parameters: self.master.unwrap_or(piece),
                first: self.first,
                second: self.second,
            },
        }
    }

    /// What is remembered after a step, which gave `weights` to the model.
    pub fn after(state: AdamWState, weights: &Tensor<1>) -> Self {
        Self {
            first: state.first,
            second: state.second,
            master: is_half(weights).then_some(state.parameters),
        }
    }
}
