//! Plans of the GPU kernels, chosen by timing them.
//!
//! Off unless [`enable`] is called. One switch for the process, as CubeCL's devices and compiled kernels are the process's: an
//! operation takes tensors, and has no argument for it. No result depends on it: only plans that give the same bits are timed
//! against each other.

use std::path::Path;

use super::backends;
use crate::device::Choice;
use crate::error::{Error, Result};

/// From now on, the first launch of a kernel of `device` with a new class of shapes times the plans for it, each a few times
/// on memory of its own, and notes the fastest in `folder`; later launches, and other processes with the same folder, take
/// that one. Deleting the folder forgets the choices.
///
/// Timed are the matrix products of linear layers and feed-forward blocks, and attention in both directions.
///
/// # Errors
/// A device without kernels, a folder that cannot be made, or tuning that is on already.
pub fn enable(device: &Choice, folder: &Path) -> Result<()> {
    backends::of(&device.of_rank(0))
        .tune(folder)
        .unwrap_or_else(|| {
            Err(Error::config(
                format!("{} has no kernels to tune", device.name()),
                "do without tuning, or take a GPU",
            ))
        })
}

/// Where the choices of this process came from, in a line; `None` if tuning is off.
pub fn summary() -> Option<String> {
    backends::all().find_map(|backend| backend.tuning())
}
