//! Which device a run takes.

use burn::tensor::Device;

use crate::error::{Error, Result};

/// A device and why it was taken.
#[derive(Debug, Clone)]
pub struct Choice {
    /// The device, without autodiff.
    pub device: Device,
    /// One sentence for the user.
    pub reason: String,
}

/// Takes the device named `name`, or the best that is compiled in and present.
///
/// # Errors
/// A device that is unknown or not compiled in.
pub fn choose(name: Option<&str>) -> Result<Choice> {
    match name {
        None | Some("auto") => pick("it is the only device compiled in"),
        Some("cpu" | "flex") => pick("it was asked for"),
        Some(other) => Err(Error::config(
            format!("there is no device named '{other}' in this build"),
            "use --device cpu",
        )),
    }
}

#[cfg(feature = "flex")]
fn pick(why: &str) -> Result<Choice> {
    Ok(Choice {
        device: Device::flex(),
        reason: format!("CPU (Burn's flex backend), because {why}"),
    })
}

#[cfg(not(feature = "flex"))]
fn pick(_why: &str) -> Result<Choice> {
    Err(Error::config(
        "no device is compiled in",
        "build with --features flex",
    ))
}
