//! Training on many ranks in Rust, on Burn: tensor, pipeline and data parallel, with ZeRO, checkpoints and a planner, for a GPT and
//! for any Burn module, in any layout with one rank's answer.
//!
//! A network of Burn's own layers on any number of replicas, from `examples/own_model`, a whole program to copy
//! (`cargo run --example own_model -- --dp 4`); `docs/add-a-model.md` goes on from there:
//!
//! ```ignore
//! #[derive(Module, Debug)]
//! struct Net {
//!     input: Linear,
//!     output: Linear,
//! }
//!
//! impl Model for Net {
//!     type Batch = Points;
//!
//!     fn forward(&self, _: Vec<Activation>, points: &Points, _: &Pass) -> Result<Output> {
//!         let hidden = tanh(self.input.forward(points.x.clone()));
//!         let error = self.output.forward(hidden) - points.y.clone();
//!         Ok(Output::Losses(error.square().reshape([-1]))) // each sample's, not their mean
//!     }
//! }
//!
//! fn train(options: &Options, groups: Groups, device: Device) -> Result<()> {
//!     let (rank, saved) = (groups.world.rank(), options.out.join("checkpoints"));
//!     let shares = micro_batches(BATCH, BATCH, groups.at.dp, options.dp)?;
//!     let net = BurnModule::new(Net::new(&device), SEED)?;
//!     let pipeline = Pipeline::new(vec![net], Kind::default(), groups, device.clone())?;
//!     let mut state = TrainState::new(pipeline, &[OptimizerConfig::new(1, true)], SEED)?; // ZeRO 1
//!     if let Some(checkpoint) = Checkpoint::newest(&saved)? {
//!         state.resume(&checkpoint)?; // of any number of replicas
//!     }
//!     let steps = state.steps()..state.steps() + options.steps;
//!     let mut log = RunLog::new(&options.out, steps.clone(), rank)?;
//!     for step in steps {
//!         let batch = |share: &Range<u64>| Points::new(step * BATCH, share.clone(), &device);
//!         let batches: Vec<_> = shares.iter().map(batch).collect();
//!         let report = state.step(&batches, &StepOptions::new(RATE))?;
//!         log.step(StepRecord {
//!             samples: report.step * BATCH,
//!             learning_rate: RATE,
//!             ..report.into()
//!         })?;
//!     }
//!     state.save(&saved, 2)?; // the newest two stay
//!     log.finish("Training loss") // as loss.svg
//! }
//! ```
//!
//! The modules, in reading order:
//!
//! - [`prelude`] is what such a program names
//! - [`mesh`] says which rank stands where, [`placement`] how a parameter lies on the ranks; [`parameter`] holds parameters that know
//!   both, and takes those of any Burn module
//! - [`comm`] is communication between ranks, [`random`] numbers that no layout can change
//! - [`ops`] has operations with gradients of their own, [`layers`] Burn modules that give one rank's answer on many
//! - [`tensor_parallel`], [`pipeline`], [`zero`] are the three ways to split a model
//! - [`optim`] is what an update is: AdamW, any of Burn's rules, parameter groups; learning rate, clipping, loss scale
//! - [`train`] is one step, written once
//! - [`data`] has text, tokenizers, datasets, sample order; [`checkpoint`] saves in one layout and loads in another
//! - [`models`] has GPT
//! - [`plan`] says before a job what it needs and how fast it will be; [`observe`] is what a run shows
//! - [`run_folder`] is where a run writes; [`utf8`] reads the text files that people give
//! - [`device`] says which device a run takes, [`precision`] what its numbers are, [`recompute`] what a backward pass computes
//!   again, [`error`] what can go wrong

// The threshold is clippy.toml's.
#![warn(clippy::too_many_lines)]

pub mod checkpoint;
pub mod comm;
pub mod data;
pub mod device;
pub mod error;
pub mod layers;
pub mod mesh;
pub mod models;
#[cfg(test)]
#[path = "../../tests/numbers/mod.rs"]
mod numbers;
pub mod observe;
pub mod ops;
pub mod optim;
pub mod parameter;
pub mod pipeline;
pub mod placement;
pub mod plan;
pub mod precision;
pub mod prelude;
pub mod random;
pub mod recompute;
pub mod run_folder;
pub mod tensor_parallel;
pub mod train;
pub mod utf8;
pub mod zero;

pub use error::{Error, Result};
pub use mesh::Layout;
pub use placement::Placement;
pub use precision::Precision;
pub use recompute::Recompute;

/// The examples of the documents are compiled and run as tests.
#[cfg(doctest)]
mod documents {
    #[doc = include_str!("../../README.md")]
    pub struct Readme;
    #[doc = include_str!("../../docs/add-a-model.md")]
    pub struct AddAModel;
    #[doc = include_str!("../../docs/add-a-kernel.md")]
    pub struct AddAKernel;
}
