//! Noise that is the same in every layout.

use burn::config::Config;
use burn::module::{Flag, Module, Param};
use burn::tensor::Tensor;

use crate::error::{Error, Result};
use crate::random::Draws;

/// Configuration of [`GaussianNoise`].
#[derive(Config, Debug)]
pub struct GaussianNoiseConfig {
    /// Standard deviation of the noise.
    pub std: f64,
}

impl GaussianNoiseConfig {
    /// The layer `name`: a name that no other layer of the model has, as its path in the model.
    ///
    /// # Errors
    /// A standard deviation that is negative or not finite.
    pub fn init(&self, name: impl Into<String>) -> Result<GaussianNoise> {
        let (name, std) = (name.into(), self.std);
        if !(0.0..f64::INFINITY).contains(&std) {
            return Err(Error::config(
                format!("the noise '{name}' has the standard deviation {std}"),
                "use a finite one, 0 at least",
            ));
        }
        Ok(GaussianNoise {
            name,
            std,
            active: Param::from_bool(true),
        })
    }
}

/// Adds normal noise of mean zero in training.
///
/// As `burn::nn::GaussianNoise`, except that the noise is a function of (seed, step, name, index), as what
/// [`Dropout`](super::Dropout) drops. For noise that is a model's input or part of its mathematics, as in a GAN or a VAE, in
/// training or not, see [`Draws::normal`].
#[derive(Module, Debug)]
pub struct GaussianNoise {
    /// Name of the layer.
    pub name: String,
    /// Standard deviation of the noise.
    pub std: f64,
    /// Whether the layer takes part in training: freezing it clears the flag.
    pub active: Param<Flag>,
}

impl GaussianNoise {
    /// Adds noise to x `[samples, ...]`, or `[samples * rows, ...]` with the rows of a sample together. For rows that are no
    /// samples' see [`Draws::of_rows`]. Returns x outside training.
    ///
    /// # Errors
    /// A first dimension that is not a multiple of the samples.
    pub fn forward<const D: usize>(&self, x: Tensor<D>, draws: &Draws) -> Result<Tensor<D>> {
        if draws.step.is_none() || !self.active.is_enabled() || self.std == 0.0 {
            return Ok(x);
        }
        let options = (&x.device(), x.dtype());
        let noise = draws.normal(&self.name, x.dims(), options)?;
        Ok(x + noise.mul_scalar(self.std))
    }
}
