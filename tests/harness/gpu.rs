//! A GPU for tests.

use burn_frontier::device::{self, Choice};

/// The GPU that the variable GPU names: wgpu, if there is none, cuda or rocm. Without such a device a test is skipped and says
/// so; where the variable names it, or CI is true, it fails.
pub fn gpu() -> Option<Choice> {
    let named = std::env::var("GPU").ok();
    let must = named.is_some() || std::env::var("CI").is_ok_and(|ci| ci == "true");
    match device::choose(Some(named.as_deref().unwrap_or("wgpu"))) {
        Ok(choice) => Some(choice),
        Err(error) if must => panic!("no device for GPU={named:?}: {error}"),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}
