//! burn-frontier: training of very large transformers in Rust, on Burn, in any layout with one rank's answer.
//!
//! In reading order:
//!
//! - [`mesh`]: which rank stands where; [`placement`]: how a parameter lies on the ranks; [`parameter`]: parameters that know both
//! - [`comm`]: communication between ranks; [`random`]: numbers that no layout can change
//! - [`ops`]: operations with gradients of their own
//! - [`tensor_parallel`], [`pipeline`], [`zero`]: the three ways to split a model
//! - [`models`]: GPT
//! - [`optim`]: learning rate, clipping, loss scale
//! - [`data`]: text, tokenizers, datasets, sample order; [`checkpoint`]: save in one layout, load in another
//! - [`observe`]: what a run shows
//! - [`device`]: which device a run takes; [`error`]: what can go wrong

pub mod checkpoint;
pub mod comm;
pub mod data;
pub mod device;
pub mod error;
pub mod mesh;
pub mod models;
pub mod observe;
pub mod ops;
pub mod optim;
pub mod parameter;
pub mod pipeline;
pub mod placement;
pub mod random;
pub mod tensor_parallel;
pub mod zero;

pub use error::{Error, Result};
pub use mesh::Layout;
pub use placement::Placement;
