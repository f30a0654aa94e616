//! Dropout of a model's elements that is the same in every layout.

use burn::config::Config;
use burn::module::{Flag, Module, Param};
use burn::tensor::Tensor;

use crate::error::{Error, Result};
use crate::ops::dropout::{Dropout as Site, dropout};
use crate::random::Draws;

/// Configuration of [`Dropout`].
#[derive(Config, Debug)]
pub struct DropoutConfig {
    /// Probability that an element is dropped, in [0, 1).
    pub probability: f64,
}

impl DropoutConfig {
    /// The layer `name`: a name that no other layer of the model has, as its path in the model.
    ///
    /// # Errors
    /// A probability outside [0, 1).
    pub fn init(&self, name: impl Into<String>) -> Result<Dropout> {
        let (name, probability) = (name.into(), self.probability);
        if !(0.0..1.0).contains(&probability) {
            return Err(Error::config(
                format!("the dropout '{name}' has the probability {probability}"),
                "use one from 0 to below 1",
            ));
        }
        Ok(Dropout {
            name,
            probability,
            active: Param::from_bool(true),
        })
    }
}

/// Sets elements to zero at random in training, and divides the others by the probability to be kept (Srivastava et al., 2014).
///
/// As `burn::nn::Dropout`, except that what is dropped is a function of (seed, step, name, index), where the index counts the
/// elements of the samples in the order of the global batch: one rank and many drop the same, also when they start again.
#[derive(Module, Debug)]
pub struct Dropout {
    /// Name of the layer.
    pub name: String,
    /// Probability that an element is dropped, in [0, 1).
    pub probability: f64,
    /// Whether the layer takes part in training: freezing it clears the flag.
    pub active: Param<Flag>,
}

impl Dropout {
    /// Drops elements of x `[samples, ...]`, or `[samples * rows, ...]` with the rows of a sample together. For rows that are
    /// no samples' see [`Draws::of_rows`]. Returns x outside training.
    ///
    /// # Errors
    /// A first dimension that is not a multiple of the samples.
    pub fn forward<const D: usize>(&self, x: Tensor<D>, draws: &Draws) -> Result<Tensor<D>> {
        let takes_part = self.active.is_enabled() && self.probability > 0.0;
        let Some(step) = draws.step.filter(|_| takes_part) else {
            return Ok(x);
        };
        let shape = x.dims();
        let elements = draws.elements_a_sample(&self.name, &shape)?;
        let site = Site {
            probability: self.probability,
            seed: draws.seed,
            step,
            name: draws.site(&self.name),
            samples: draws.samples.clone(),
            global: 1,
            start: [0; 3],
            len: [1, 1, elements],
        };
        let rows = x.reshape([draws.samples.len(), 1, elements]);
        Ok(dropout(rows, Some(&site))?.reshape(shape))
    }
}
