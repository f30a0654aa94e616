//! Training: one step, written once. The loop around it is the program's.

mod checkpoint;
mod step;

pub use checkpoint::Progress;
pub use step::{Gradients, StepOptions, StepReport};

use std::time::Instant;

use crate::comm::groups::Groups;
use crate::error::{Error, Result};
use crate::observe::trace::SpanRecorder;
use crate::optim::scaler::LossScaler;
use crate::optim::{Optimizer, OptimizerConfig};
use crate::parameter::Selection;
use crate::pipeline::run::Pipeline;
use crate::pipeline::stage::Stage;
use crate::zero::reducer::GradientReducer;

/// What one rank holds of a training: its stage of the model, the optimisers with their gradients, the loss scale, and how far
/// it has come.
#[derive(Debug)]
pub struct TrainState<S> {
    /// This rank's stage.
    pub pipeline: Pipeline<S>,
    /// Scale of the loss; off, but for fp16.
    pub scaler: LossScaler,
    /// Where forward and backward passes, reductions and updates are noted. Off, unless replaced.
    pub spans: SpanRecorder,
    /// Steps done, skipped ones included.
    steps: u64,
    seed: u64,
    groups: Groups,
    optimizers: Vec<Trained>,
    /// Whether a step has been watched for draws from the process's random generator.
    watched: bool,
}

/// An optimiser, and the gradients of what it trains.
#[derive(Debug)]
struct Trained {
    selection: Selection,
    reducer: GradientReducer,
    optimizer: Optimizer,
}

impl<S: Stage> TrainState<S> {
    /// Makes the optimisers of a stage, whose parameters are those of its checkpoint or its first values. Each optimiser trains
    /// the parameters that its config selects. Every rank calls it.
    ///
    /// # Errors
    /// An optimiser that cannot train its parameters, a parameter that has none or two, or groups that cannot be formed.
    pub fn new(
        mut pipeline: Pipeline<S>,
        optimizers: &[OptimizerConfig],
        seed: u64,
    ) -> Result<Self> {
        let (tied, groups) = (pipeline.tied(), pipeline.groups().clone());
        let found = check(&mut pipeline, optimizers);
        if let Err(error) = &found
            && groups.world.size() > 1
        {
            // Stages that wait for this one get its error.
            groups.world.fail(error.clone());
        }
        found?;
        let trained = optimizers.iter().map(|config| {
            let (reducer, optimizer) = config.init(&mut pipeline.chunks, tied, &groups)?;
            Ok(Trained {
                selection: config.trained(),
                reducer,
                optimizer,
            })
        });
        let optimizers = trained.collect::<Result<_>>()?;
        Ok(Self {
            pipeline,
            scaler: LossScaler::off(),
            spans: SpanRecorder::new(Instant::now(), groups.world.rank(), groups.at.pp, false),
            steps: 0,
            seed,
            groups,
            optimizers,
            watched: false,
        })
    }

    /// Steps done, skipped ones included.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The groups of this rank.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// The optimiser with this number, in the order in which they were given.
    ///
    /// # Errors
    /// No such optimiser.
    fn trained(&mut self, number: usize) -> Result<&mut Trained> {
        let known = self.optimizers.len();
        self.optimizers.get_mut(number).ok_or_else(|| {
            Error::config(
                format!("a step of optimiser {number} of {known}"),
                "they are counted from 0, in the order in which they were given",
            )
        })
    }
}

/// Fails unless the stage can be trained, and every parameter has an optimiser.
fn check<S: Stage>(pipeline: &mut Pipeline<S>, optimizers: &[OptimizerConfig]) -> Result<()> {
    let groups = pipeline.groups().clone();
    for chunk in &mut pipeline.chunks {
        chunk.check_training(&groups)?;
        let mut names = chunk.names().into_iter();
        let left_out = names.find(|name| optimizers.iter().all(|o| !o.selection.contains(name)));
        if let Some(name) = left_out {
            return Err(Error::config(
                format!("{name} has no optimiser"),
                "select it for one; a frozen parameter group keeps its value",
            ));
        }
    }
    Ok(())
}
