//! The process's tuner of kernels.

use std::path::Path;
use std::sync::OnceLock;

use frontier_kernels::tune::{Counts, Tuner};

use crate::error::{Error, Result};

static TUNER: OnceLock<Tuner> = OnceLock::new();

/// Makes the tuner.
pub(super) fn tune(folder: &Path) -> Result<()> {
    let tuner = Tuner::new(folder).map_err(|error| {
        Error::config(
            error.to_string(),
            "name a folder that can be written, or do without tuning",
        )
    })?;
    TUNER.set(tuner).map_err(|tuner| {
        Error::config(
            format!(
                "kernels are tuned already, not with {}",
                tuner.folder().display()
            ),
            "switch tuning on once",
        )
    })
}

/// The tuner, if there is one.
pub(super) fn tuner() -> Option<&'static Tuner> {
    TUNER.get()
}

/// Where the choices came from.
pub(super) fn tuning() -> Option<String> {
    let tuner = tuner()?;
    let Counts { timed, found, lost } = tuner.counts();
    let folder = tuner.folder().display();
    let lost = match lost {
        0 => String::new(),
        lost => format!("; {lost} could not be written"),
    };
    Some(format!(
        "{timed} shapes timed, {found} known, in {folder}{lost}"
    ))
}
