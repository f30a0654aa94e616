//! What the kernels refuse: said once, and an error of the operation where they are required.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};

static REFUSALS: Mutex<Refusals> = Mutex::new(Refusals {
    required: false,
    first: None,
    said: BTreeSet::new(),
});

struct Refusals {
    required: bool,
    /// The first one since kernels are required.
    first: Option<Error>,
    said: BTreeSet<(&'static str, String)>,
}

fn lock() -> MutexGuard<'static, Refusals> {
    REFUSALS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on, a refusal is an error.
pub(super) fn require() {
    lock().required = true;
}

/// Fails if the kernels are required and refused an operation.
pub(super) fn refusal() -> Result<()> {
    lock().first.clone().map_or(Ok(()), Err)
}

/// Says, once in a process, why the kernels do not apply to an operation, as a warning of `tracing`.
pub(super) fn refused<T>(operation: &'static str, reason: &str) -> Option<T> {
    let mut all = lock();
    if all.required && all.first.is_none() {
        all.first = Some(Error::config(
            format!("{operation}: the GPU kernels, which are required, refuse it: {reason}"),
            "give it what they take, or do not require them",
        ));
    }
    let new = all.said.insert((operation, reason.to_owned()));
    drop(all);
    if new {
        tracing::warn!("{operation}: Burn's own kernels are used: {reason}");
    } else {
        tracing::debug!("{operation}: Burn's own kernels are used: {reason}");
    }
    None
}
