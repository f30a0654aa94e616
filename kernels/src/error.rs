//! What can go wrong outside a GPU's own errors.

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A kernel whose text cannot be generated.
    #[error("{kernel} cannot be generated: {reason}")]
    Emit {
        /// The kernel's name.
        kernel: String,
        /// What CubeCL said.
        reason: String,
    },
    /// A program or file that is needed for a proof: the compiler, a scratch folder.
    #[error("{0}")]
    Tool(String),
    /// A kernel that does not compile, or fails where it is executed.
    #[error("{kernel}: {reason}")]
    Run {
        /// The kernel's name.
        kernel: String,
        /// What happened.
        reason: String,
    },
    /// Arguments that a kernel cannot take.
    #[error("{operation}: {problem}; {remedy}")]
    Argument {
        /// The operation, e.g. `attention`.
        operation: &'static str,
        /// What was expected and what was found.
        problem: String,
        /// What to do.
        remedy: String,
    },
}

impl Error {
    /// Arguments that `operation` cannot take.
    pub fn argument(
        operation: &'static str,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::Argument {
            operation,
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }
}
