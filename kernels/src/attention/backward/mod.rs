//! The gradients of attention.

#[allow(missing_docs)]
mod layout;
pub mod plan;
pub mod reference;

// CubeCL's macros write public items beside each function and structure, without documentation.
#[allow(missing_docs)]
mod bias;
#[allow(missing_docs)]
mod kernels;
#[allow(missing_docs)]
mod score;
#[allow(missing_docs)]
mod sweep;
#[allow(missing_docs)]
mod tiles;

mod launch;
mod source;

pub use bias::Shared;
pub use kernels::GradientStrides;
pub use launch::{Buffers, launch};
pub use plan::{Form, Plan, Plans, Role, Workspace};
pub use source::sources;
