//! One error type for the library. Every message says what was expected, what was found, and what to do.

use std::any::Any;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong in a library call.
///
/// Errors are cheap to clone, because one failure is reported by every rank that it stops.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A configuration that cannot run, found before anything was allocated.
    #[error("{what}; {remedy}")]
    Config {
        /// What cannot work, with the numbers that clash.
        what: String,
        /// What would work instead.
        remedy: String,
    },
    /// A collective operation failed: ranks disagree, a peer is gone, or a time-out passed.
    #[error("rank {rank}: {what}; {remedy}")]
    Communication {
        /// World rank that reports the error.
        rank: usize,
        /// What happened, naming the ranks and operations involved.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// A file or folder could not be read or written.
    #[error("cannot {action} {}: {reason}", path.display())]
    Io {
        /// What was attempted: "read", "create", …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        reason: Arc<std::io::Error>,
    },
    /// A file was read, but its content is not what it should be.
    #[error("{}: {what}; {remedy}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// A broken invariant of this library, reported instead of panicking.
    #[error("internal error: {0}; please report this")]
    Internal(String),
}

impl Error {
    /// A configuration that cannot run, and what would.
    pub fn config(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Config {
            what: what.into(),
            remedy: remedy.into(),
        }
    }

    /// A failed file operation.
    pub fn io(action: &'static str, path: impl AsRef<Path>, reason: std::io::Error) -> Self {
        Self::Io {
            action,
            path: path.as_ref().to_path_buf(),
            reason: Arc::new(reason),
        }
    }

    /// A file with unexpected content.
    pub fn format(
        path: impl AsRef<Path>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::Format {
            path: path.as_ref().to_path_buf(),
            what: what.into(),
            remedy: remedy.into(),
        }
    }

    /// A failed collective operation, as seen by world rank `rank`.
    pub fn communication(rank: usize, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Communication {
            rank,
            what: what.into(),
            remedy: remedy.into(),
        }
    }
}

/// What a panic says.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}
