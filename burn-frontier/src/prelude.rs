//! What a program that trains a model of its own names: `use burn_frontier::prelude::*;`.

pub use crate::checkpoint::Checkpoint;
pub use crate::comm::groups::Groups;
pub use crate::comm::local::{self, LocalOptions};
pub use crate::layers;
pub use crate::observe::metrics::StepRecord;
pub use crate::observe::run_log::RunLog;
pub use crate::optim::{AdamWConfig, OptimizerConfig, ParameterGroup};
pub use crate::parameter::{BurnModule, Selection};
pub use crate::pipeline::activation::Activation;
pub use crate::pipeline::micro_batches::micro_batches;
pub use crate::pipeline::model::{Model, Pass};
pub use crate::pipeline::run::Pipeline;
pub use crate::pipeline::schedule::Kind;
pub use crate::pipeline::stage::{Batch, Output};
pub use crate::train::{StepOptions, StepReport, TrainState};
pub use crate::{Error, Layout, Result};
