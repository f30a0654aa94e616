//! Matrix products with what follows them: `C = epilogue(A B)`, accumulated in f32.
//!
//! A [`Plan`] says what is computed and how; [`launch`] runs it on a device, [`Plan::source`] writes its text. A linear layer
//! `y = x W^T + bias` is layout [`Layout::Nt`]; its gradients are `dx = dy W` ([`Layout::Nn`]) and `dW += dy^T x`
//! ([`Layout::Tn`], [`Epilogue::accumulate`]) with the bias's gradient beside it ([`Plan::sums_of`]). K may be split over
//! workgroups ([`Plan::split`]; the parts are added in order, so results do not vary), and many products of different shapes may
//! be one launch ([`grouped`]).
//!
//! Source of the method: tiles in shared memory and registers as in CUTLASS (github.com/NVIDIA/cutlass, "Efficient GEMM"); the
//! lanes' maps are those of [`crate::matrix`].

mod candidates;
mod choose;
pub mod launch;
pub mod plan;
pub mod problem;
pub mod reference;
pub mod source;
pub mod tile;
pub mod tuned;

// CubeCL's macros write public items beside each function and structure, without documentation.
#[allow(missing_docs)]
pub(crate) mod accumulate;
#[allow(missing_docs)]
mod epilogue;
#[allow(missing_docs)]
pub mod grouped;
#[allow(missing_docs)]
mod multiply;
#[allow(missing_docs)]
mod order;
#[allow(missing_docs)]
pub(crate) mod product;
#[allow(missing_docs)]
mod reduce;
mod request;
#[allow(missing_docs)]
pub(crate) mod side;
#[allow(missing_docs)]
pub(crate) mod stage;

pub use plan::Plan;
pub use problem::{Activation, Epilogue, Layout, Shape};
pub(crate) use source::candidates;
pub use source::sources;
