//! The gradients of attention by recomputation (Dao, FlashAttention-2, arXiv 2307.08691, section 3.1.2), without atomics:
//! every launch gives the same bits.
//!
//! With P = softmax(S), S = scale Q K^T + biases, dP = dO V^T (after dropout as P is) and delta = rowsum(dO O):
//! dS = P (dP - delta), dV = P^T dO, dK = scale dS^T Q, dQ = scale dS K, and the gradient of a bias is the sum of dS over all
//! that share it.
//!
//! Four passes, a [`Role`] each but for the first: the rows' statistics; dK and dV for the keys that a workgroup owns, over the
//! queries; dQ for the queries that it owns, over the keys; where a bias varies along queries and keys, dS for the pairs that
//! it owns, over all that share the bias. A bias that varies along keys only takes the sums that the second pass leaves
//! beside its results. [`launch`] does all of it; [`Workspace`] says what memory that takes.

pub mod plan;
pub mod plans;
pub mod reference;
pub mod tuned;

// CubeCL's macros write public items beside each function and structure, without documentation.
#[allow(missing_docs)]
mod bias;
#[allow(missing_docs)]
mod blocks;
#[allow(missing_docs)]
mod ends;
#[allow(missing_docs)]
mod kernels;
#[allow(missing_docs)]
mod layout;
#[allow(missing_docs)]
mod pairs;
#[allow(missing_docs)]
mod products;
mod score;
#[allow(missing_docs)]
mod sweep;
#[allow(missing_docs)]
mod tiles;

pub(crate) mod candidates;
mod launch;
mod source;

pub use super::bias::Form;
pub use bias::Shared;
pub use ends::GradientStrides;
pub use launch::{Buffers, launch};
pub use plan::{Plan, Role};
pub use plans::{Plans, Workspace};
pub use source::sources;
