//! The random generator that Burn has once a process, for each kind of device.

use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::{Device, Distribution, Tensor};

use super::Philox;
use crate::error::{Error, Result};

/// Whoever seeds the generator must be alone until he has drawn.
static GENERATOR: Mutex<()> = Mutex::new(());

/// Keeps this library's other users of the generator away.
pub(super) fn alone() -> MutexGuard<'static, ()> {
    GENERATOR.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A seed of the generator for what has this name.
pub(super) fn seed_of(seed: u64, name: &str) -> u64 {
    let [low, high] = Philox::new(seed, 0, name).key.map(u64::from);
    high << 32 | low
}

/// Finds out whether a step of training draws from the process's generator: by `Tensor::random` in a model's code, which no
/// one can read off a module.
///
/// The generator belongs to all ranks of the process, so one of them watches: it begins before any of them starts the step, and
/// ends after all have finished it. A data loader that draws from the generator meanwhile is seen as well, and so is another
/// model that is initialised.
#[derive(Debug)]
#[must_use = "only the end says whether anything was drawn"]
pub struct GeneratorWatch {
    device: Device,
    seed: u64,
}

impl GeneratorWatch {
    /// Seeds the generator of this kind of device by the run's seed, and watches it.
    pub fn begin(device: &Device, seed: u64) -> Self {
        let watch = Self {
            device: device.clone().without_autodiff(),
            seed: seed_of(seed, "watch"),
        };
        let _alone = alone();
        watch.device.seed(watch.seed);
        watch
    }

    /// Whether anything was drawn, which is also said in a warning. The generator is then as it was at the beginning.
    ///
    /// # Errors
    /// A device that fails.
    pub fn end(self) -> Result<bool> {
        let failed = |e: &dyn std::fmt::Debug| Error::Internal(format!("a device failed: {e:?}"));
        self.device.sync().map_err(|e| failed(&e))?;
        let _alone = alone();
        let draw = || {
            let numbers = Tensor::<1>::random([4], Distribution::Default, &self.device);
            numbers.try_into_data().map_err(|e| failed(&e))
        };
        let next = draw()?;
        self.device.seed(self.seed);
        let first = draw()?;
        self.device.seed(self.seed);
        let drawn = next != first;
        if drawn {
            tracing::warn!(
                "the step drew random numbers from the process's generator (Tensor::random or random_like in the model's or the \
                 loader's code): they depend on threads and restarts, and layouts will differ; draw from the pass's Draws (normal, uniform), \
                 or use burn_frontier::layers"
            );
        }
        Ok(drawn)
    }
}
