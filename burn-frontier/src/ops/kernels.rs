//! Whether the GPU kernels of this library have to compute what they can be asked for.
//!
//! Where they refuse an operation (an element type, a size, a device's limit), Burn's own kernels compute it, and a warning of
//! `tracing` says so once for each operation and reason. [`require`] makes a refusal an error. One switch for the process, as
//! in [`tuning`](super::tuning).

use burn::tensor::{DType, Device};

use super::backends;
use crate::device::Choice;
use crate::error::{Error, Result};

/// From now on, an operation that the kernels refuse is an error of that operation. A backward pass cannot return one: what is
/// refused there is an error of every operation that is refused later, of the next sum of squares (the gradient's norm, in a
/// training step) and of [`check`].
///
/// # Errors
/// A device without kernels.
pub fn require(device: &Choice) -> Result<()> {
    if backends::of(&device.of_rank(0)).require() {
        return Ok(());
    }
    Err(Error::config(
        format!("{} has no kernels to require", device.name()),
        "do not require them, or take a GPU",
    ))
}

/// Whether operations of `dtype` on `device` are computed by the CPU's kernels, which keep less for the backward pass than those of a
/// GPU.
pub fn of_the_cpu(device: &Device, dtype: DType) -> bool {
    backends::of(device).is_cpu(dtype)
}

/// Fails if the kernels are required and refused an operation since.
///
/// # Errors
/// The first refusal.
pub fn check() -> Result<()> {
    backends::all().try_for_each(|backend| backend.refusal())
}
