//! One step: forward and backward passes of the micro-batches, reduction, norm, scale, clipping, update.

use std::sync::Arc;
use std::time::Instant;

use burn::tensor::Tensor;

use super::TrainState;
use crate::comm::{Buffer, Reduction};
use crate::error::{Error, Result};
use crate::observe::metrics::StepRecord;
use crate::observe::trace::Category;
use crate::optim::clip_factor;
use crate::parameter::{Module, ParameterSpec, Selection, State};
use crate::pipeline::run::PassResult;
use crate::pipeline::stage::{Stage, StepContext};
use crate::random::GeneratorWatch;
use crate::recompute::Recompute;

/// What a step is done with.
#[derive(Debug, Clone, Copy)]
pub struct StepOptions {
    /// The optimiser whose parameters are trained, counted from 0.
    pub optimizer: usize,
    /// Learning rate.
    pub rate: f64,
    /// Norm that gradients are clipped to; `None`: not clipped.
    pub clip: Option<f64>,
    /// What the backward pass computes again.
    pub recompute: Recompute,
}

impl StepOptions {
    /// A step of the first optimiser at this rate, clipped to norm 1, nothing computed again.
    pub fn new(rate: f64) -> Self {
        Self {
            optimizer: 0,
            rate,
            clip: Some(1.0),
            recompute: Recompute::None,
        }
    }
}

/// What a step has done. The same on all ranks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Number of the step, from 1.
    pub step: u64,
    /// Mean loss of the global batch, before the update.
    pub loss: f64,
    /// What it is a mean over.
    pub count: u64,
    /// Norm of the gradients, before clipping.
    pub norm: f64,
    /// Whether the update was left out, because fp16 had overflowed: the next step has a smaller scale.
    pub skipped: bool,
}

impl From<StepReport> for StepRecord {
    /// What the report says; the rest is the program's to fill in.
    fn from(report: StepReport) -> Self {
        Self {
            step: report.step,
            loss: report.loss,
            gradient_norm: report.norm,
            ..Self::default()
        }
    }
}

/// What the first step is watched for.
struct Watch {
    /// On rank 0.
    generator: Option<GeneratorWatch>,
    /// Of each chunk, before the step.
    states: Vec<Vec<State>>,
}

/// The gradients of a global batch, reduced and not yet used: of an optimiser's parameters, times the loss scale.
#[derive(Debug)]
pub struct Gradients {
    /// The optimiser's number.
    optimizer: usize,
    /// What this replica found.
    pass: PassResult,
    /// By bucket.
    pub(super) reduced: Vec<Tensor<1>>,
    /// What they are multiplied with.
    scale: f64,
    /// Their norm, without the scale.
    pub norm: f64,
}

impl<S: Stage> TrainState<S> {
    /// One step on this replica's micro-batches: the loss is their sum over all replicas, divided once by the global count.
    /// Every rank calls it; ranks of one replica give the same micro-batches.
    ///
    /// # Communication
    /// That of [`Self::gradients`] and [`Self::update`].
    ///
    /// # Errors
    /// Those of [`Self::gradients`] and [`Self::update`].
    pub fn step(&mut self, batches: &[S::Batch], options: &StepOptions) -> Result<StepReport> {
        let gradients = self.gradients(batches, options)?;
        self.update(gradients, options)
    }

    /// The first half of a step: the gradients of the mean loss over the global batch, summed over micro-batches and replicas.
    /// They may be looked at, and dropped, before [`Self::update`].
    ///
    /// # Communication
    /// That of [`Pipeline::forward_backward`](crate::pipeline::run::Pipeline::forward_backward), the reducer's, and an all-reduce
    /// of one f64 over the world.
    ///
    /// # Errors
    /// Micro-batches that cannot be run, failed communication, what fails in the model.
    pub fn gradients(&mut self, batches: &[S::Batch], options: &StepOptions) -> Result<Gradients> {
        let (step, seed, scale) = (self.steps + 1, self.seed, self.scaler.scale);
        let number = options.optimizer;
        let context = StepContext {
            seed,
            step: Some(step),
            recompute: options.recompute,
            trained: self.trained(number)?.selection.clone(),
        };
        let watch = self.begin_watch()?;
        let trained = &mut self.optimizers[number];
        let pass = self.pipeline.forward_backward(
            batches,
            &context,
            scale,
            &mut trained.reducer,
            &mut self.spans,
        )?;
        let reduced = trained.reducer.finish()?;
        self.end_watch(watch)?;
        let trained = &self.optimizers[number];
        let norm = trained.optimizer.gradient_norm(&reduced)? / scale;
        Ok(Gradients {
            optimizer: number,
            pass,
            reduced,
            scale,
            norm,
        })
    }

    /// In the first step of a model that a user wrote: watches for draws from the process's random generator. All ranks of the
    /// process share it, so one of them does, and the others do not begin before.
    fn begin_watch(&mut self) -> Result<Option<Watch>> {
        let chunks = &self.pipeline.chunks;
        if std::mem::replace(&mut self.watched, true) || !chunks.iter().any(Stage::may_draw) {
            return Ok(None);
        }
        let world = &self.groups.world;
        world.barrier()?;
        let watches = world.rank() == 0;
        let generator = watches.then(|| GeneratorWatch::begin(self.pipeline.device(), self.seed));
        world.barrier()?;
        let states = chunks.iter().map(Module::state).collect::<Result<_>>()?;
        Ok(Some(Watch { generator, states }))
    }

    /// Says once what the first step has shown.
    fn end_watch(&self, watch: Option<Watch>) -> Result<()> {
        let Some(watch) = watch else {
            return Ok(());
        };
        self.groups.world.barrier()?;
        if let Some(generator) = watch.generator {
            generator.end()?;
        }
        let chunks = self.pipeline.chunks.iter().zip(&watch.states);
        for (chunk, before) in chunks {
            let asleep = chunk.asleep(before)?;
            if !asleep.is_empty() && self.groups.at.tp == 0 && self.groups.at.dp == 0 {
                tracing::warn!(
                    "a step of training left the running statistics of {} as they were: such a layer looks at its input's device to \
                     know that it trains, so pass the batch's tensors through Pass::input; or freeze it",
                    asleep.join(", ")
                );
            }
        }
        Ok(())
    }

    /// The gradients of some of this stage's parameters, each with what is true of its parameter: whole in the parameter's logical
    /// shape, flat `[elements]`, without the loss scale. Every rank calls it with the same selection.
    ///
    /// # Communication
    /// With ZeRO 1 an all-gather over dp of every bucket that has one of them; over tp one of each that is split.
    ///
    /// # Errors
    /// Failed communication.
    pub fn gradients_by_name(
        &self,
        gradients: &Gradients,
        selection: &Selection,
    ) -> Result<Vec<(Arc<ParameterSpec>, Tensor<1>)>> {
        let optimizer = &self.optimizers[gradients.optimizer].optimizer;
        let mut found = optimizer.gradients(&gradients.reduced, selection)?;
        if gradients.scale != 1.0 {
            for (_, gradient) in &mut found {
                *gradient = gradient.clone().div_scalar(gradients.scale);
            }
        }
        Ok(found)
    }

    /// The second half of a step: clips the gradients, and updates the parameters unless fp16 has overflowed.
    ///
    /// # Communication
    /// The optimiser's, and an all-reduce of one f64 over the world.
    ///
    /// # Errors
    /// Gradients or a loss that are not finite, which no loss scale can help: the parameters are then as they were if it is the
    /// gradients. Failed communication.
    pub fn update(&mut self, gradients: Gradients, options: &StepOptions) -> Result<StepReport> {
        let Gradients {
            pass, scale, norm, ..
        } = gradients;
        let (step, start) = (self.steps + 1, Instant::now());
        let skipped = match self.scaler.update(norm) {
            Some(updates) => !updates,
            None => return Err(diverged(step, "gradient norm", norm)),
        };
        if !skipped {
            let factor = clip_factor(norm, options.clip) / scale;
            let trained = &mut self.optimizers[gradients.optimizer];
            let (chunks, rate) = (&mut self.pipeline.chunks, options.rate);
            trained
                .optimizer
                .step(chunks, gradients.reduced, rate, factor)?;
        }
        self.spans.record(Category::Step, None, 0, start);
        self.steps = step;
        let loss = self.mean(pass)?;
        if !loss.is_finite() {
            return Err(diverged(step, "loss", loss));
        }
        Ok(StepReport {
            step,
            loss,
            count: pass.counted,
            norm,
            skipped,
        })
    }

    /// The mean loss of the micro-batches of all replicas, outside training. Every rank calls it.
    ///
    /// # Communication
    /// That of [`Pipeline::evaluate`](crate::pipeline::run::Pipeline::evaluate), and an all-reduce of one f64 over the world.
    ///
    /// # Errors
    /// Micro-batches that cannot be run, or of which nothing counts; failed communication.
    pub fn evaluate(&self, batches: &[S::Batch]) -> Result<f64> {
        let context = StepContext {
            seed: self.seed,
            ..StepContext::default()
        };
        let pass = self.pipeline.evaluate(batches, &context)?;
        if pass.counted == 0 {
            return Err(Error::config(
                "nothing of what is to be evaluated counts, so that its loss has no mean",
                "give it one sample or target at least that counts",
            ));
        }
        self.mean(pass)
    }

    /// The mean loss, on every rank.
    fn mean(&self, pass: PassResult) -> Result<f64> {
        // Tensor-parallel ranks have the same losses.
        let mine = if self.groups.at.tp == 0 {
            pass.loss_sum
        } else {
            0.0
        };
        let sum = Buffer::F64(vec![mine]);
        let sum = self.groups.world.all_reduce(sum, Reduction::Sum)?;
        Ok(sum.into_f64()?[0] / pass.counted as f64)
    }
}

fn diverged(step: u64, what: &str, value: f64) -> Error {
    Error::config(
        format!("the {what} of step {step} is {value}: training has diverged"),
        "go on from the last checkpoint with a smaller learning rate; if that diverges too, remove the newest checkpoint first",
    )
}
