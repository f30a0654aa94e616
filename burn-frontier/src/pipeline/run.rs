//! Runs one stage of a model on micro-batches.

use std::sync::Arc;

use burn::tensor::{Device, Tensor};

use super::activation;
use super::check::{Costs, check};
use super::schedule::{Kind, Schedule};
use super::stage::{Batch, Output, Stage, StepContext};
use crate::comm::groups::Groups;
use crate::comm::tensor::to_buffer;
use crate::comm::{Buffer, Reduction};
use crate::error::{Error, Result};
use crate::observe::trace::SpanRecorder;
use crate::zero::reducer::GradientReducer;

mod pass;

use crate::precision::full_precision;
use pass::Work;

/// One rank's stage of a pipeline.
#[derive(Debug)]
pub struct Pipeline<S> {
    /// This stage, by chunk.
    pub chunks: Vec<S>,
    kind: Kind,
    /// The lists of the last step, which the next has too if it has as many micro-batches.
    schedule: Option<Arc<Schedule>>,
    /// Whether they were given, so that a step can have no others.
    given: bool,
    tied: Option<&'static str>,
    groups: Groups,
    device: Device,
}

/// Numbers of one pass over a global batch. Its mean loss is the sum of the replicas' `loss_sum` over `counted`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PassResult {
    /// Sum of the losses of this replica; zero except on the last stage.
    pub loss_sum: f64,
    /// Count of the global batch: that of all replicas' micro-batches. The same on all ranks.
    pub counted: u64,
}

impl<S: Stage> Pipeline<S> {
    /// A stage that runs `chunks` in the order of `kind`. `device` is without autodiff.
    ///
    /// # Errors
    /// Another number of chunks than the schedule has.
    pub fn new(chunks: Vec<S>, kind: Kind, groups: Groups, device: Device) -> Result<Self> {
        if chunks.len() != kind.chunks() {
            return Err(Error::config(
                format!("{} chunks of a stage under a {kind} schedule", chunks.len()),
                format!("give it {}", kind.chunks()),
            ));
        }
        Ok(Self {
            chunks,
            kind,
            schedule: None,
            given: false,
            tied: None,
            groups,
            device,
        })
    }

    /// With the lists of `schedule` for every step, in place of those of the kind: any order that [`check`] proves. Every rank
    /// calls it.
    ///
    /// # Communication
    /// Over the world an all-reduce of two integers.
    ///
    /// # Errors
    /// What [`check`] refuses; a schedule of other stages or chunks, or that is not the same on all ranks.
    pub fn with_schedule(mut self, schedule: Schedule) -> Result<Self> {
        let (stages, chunks) = (self.groups.layout.pp, self.chunks.len());
        if (schedule.stages, schedule.kind.chunks()) != (stages, chunks) {
            return Err(self.failed(Error::config(
                format!(
                    "a schedule of {} stages of {} chunks for a pipeline of {stages} stages of {chunks}",
                    schedule.stages,
                    schedule.kind.chunks()
                ),
                "give one that is made for as many",
            )));
        }
        if let Err(error) = check(&schedule, &Costs::uniform(&schedule, 0.0, 0.0)) {
            return Err(self.failed(error));
        }
        let text = serde_json::to_vec(&schedule).map_err(|e| Error::Internal(e.to_string()))?;
        let sum = i64::from(crc32fast::hash(&text));
        let range = Buffer::I64(vec![sum, -sum]);
        let range = self.groups.world.all_reduce(range, Reduction::Max)?;
        if range.into_i64()? != [sum, -sum] {
            return Err(Error::config(
                "ranks are given different schedules",
                "give every rank the same, with the lists of all stages",
            ));
        }
        (self.schedule, self.given) = (Some(Arc::new(schedule)), true);
        Ok(self)
    }

    /// The lists for a step of so many micro-batches.
    fn schedule(&mut self, micro_batches: usize) -> Result<Arc<Schedule>> {
        match &self.schedule {
            Some(schedule) if schedule.micro_batches == micro_batches => Ok(schedule.clone()),
            Some(schedule) if self.given => Err(Error::config(
                format!(
                    "{micro_batches} micro-batches under a schedule of {}",
                    schedule.micro_batches
                ),
                "give every replica as many as the schedule has",
            )),
            _ => {
                let schedule = Schedule::new(self.kind, self.groups.layout.pp, micro_batches)?;
                Ok(self.schedule.insert(Arc::new(schedule)).clone())
            }
        }
    }

    /// With a parameter that first and last stage share: its gradient is the sum of both's.
    #[must_use]
    pub fn with_tied(mut self, name: Option<&'static str>) -> Self {
        self.tied = name;
        self
    }

    /// The parameter that first and last stage share, if any.
    pub fn tied(&self) -> Option<&'static str> {
        self.tied
    }

    /// Its device, without autodiff.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The groups of this rank.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Forward and backward pass of this replica's micro-batches. The loss is the mean over what counts of the
    /// global batch, times `loss_scale`: a sum over replicas and micro-batches, divided once. Parameter gradients go to
    /// `reducer`. Every rank calls it; ranks of one replica give the same micro-batches.
    ///
    /// # Communication
    /// Over dp an all-reduce of four integers. Point to point between neighbouring stages: activations forward, their gradients
    /// back; the parts' own; the reducer's.
    ///
    /// # Errors
    /// Micro-batches that the model or the schedule cannot take, in any replica, or of which nothing counts, before anything
    /// is computed; failed communication; what fails in a part, which then fails the world. What the reducer has been given by
    /// then is dropped.
    pub fn forward_backward(
        &mut self,
        batches: &[S::Batch],
        context: &StepContext,
        loss_scale: f64,
        reducer: &mut GradientReducer,
        spans: &mut SpanRecorder,
    ) -> Result<PassResult> {
        let schedule = self.schedule(batches.len());
        let (schedule, counted) = self.agree(batches, context, schedule)?;
        if counted == 0 {
            return Err(Error::config(
                "nothing of the global batch counts, so that its loss has no mean",
                "give it one sample or target at least that counts",
            ));
        }
        let work = Work {
            schedule,
            batches,
            context,
            loss_gradient: loss_scale / counted as f64,
        };
        reducer.begin()?;
        match self.run(&work, reducer, spans) {
            Ok(loss_sum) => Ok(PassResult { loss_sum, counted }),
            Err(error) => {
                let error = self.failed(error);
                reducer.discard()?;
                Err(error)
            }
        }
    }

    /// The losses of the micro-batches, without gradients. Nothing is wrong with a batch of which nothing counts: both
    /// numbers are zero. Every rank calls it.
    ///
    /// # Communication
    /// Over dp an all-reduce of four integers; activations between neighbouring stages; the parts' own.
    ///
    /// # Errors
    /// Micro-batches that the model cannot take, in any replica, before anything is computed; failed communication.
    pub fn evaluate(&self, batches: &[S::Batch], context: &StepContext) -> Result<PassResult> {
        let ((), counted) = self.agree(batches, context, Ok(()))?;
        match self.losses(batches, context) {
            Ok(loss_sum) => Ok(PassResult { loss_sum, counted }),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// The error of a pass that ends half-way. Ranks that wait for this one get it too.
    fn failed(&self, error: Error) -> Error {
        if self.groups.world.size() > 1 {
            self.groups.world.fail(error.clone());
        }
        error
    }

    /// The sum of the losses of the micro-batches, without gradients.
    fn losses(&self, batches: &[S::Batch], context: &StepContext) -> Result<f64> {
        let (stage, stages) = (self.groups.at.pp, self.groups.layout.pp);
        let (before, behind) = ((stage + stages - 1) % stages, (stage + 1) % stages);
        let mut loss_sum = 0.0;
        for batch in batches {
            for (i, chunk) in self.chunks.iter().enumerate() {
                let input = if i * stages + stage == 0 {
                    Vec::new()
                } else {
                    activation::receive(&*self.groups.pp, before, &self.device)?
                };
                let output = chunk.forward(input, batch, context)?.output;
                self.check_output(i, &output)?;
                match output {
                    Output::Losses(losses) => loss_sum += host_sum(losses)?,
                    Output::Activations(x) => activation::send(&x, &*self.groups.pp, behind)?,
                }
            }
            self.groups.world.failure().map_or(Ok(()), Err)?;
        }
        Ok(loss_sum)
    }

    /// Fails unless the last part of the model gives losses, and every other one activations.
    fn check_output(&self, chunk: usize, output: &Output) -> Result<()> {
        let (stage, stages) = (self.groups.at.pp, self.groups.layout.pp);
        let (part, parts) = (chunk * stages + stage, self.chunks.len() * stages);
        match (output, part + 1 == parts) {
            (Output::Losses(_), true) | (Output::Activations(_), false) => Ok(()),
            (Output::Activations(_), true) => Err(Error::config(
                "the last stage of the model gives activations",
                "let its forward pass end in Output::Losses",
            )),
            (Output::Losses(_), false) => Err(Error::config(
                format!(
                    "part {part} of a model in {parts} parts gives losses, and is not the last"
                ),
                "let its forward pass end in Output::Activations, and only that of the last stage in losses",
            )),
        }
    }

    /// `found`, and the count of the global batch, once no replica has anything against its own micro-batches. A replica that
    /// refuses its own tells the others, which would wait for it.
    fn agree<T>(
        &self,
        batches: &[S::Batch],
        context: &StepContext,
        found: Result<T>,
    ) -> Result<(T, u64)> {
        let found = found.and_then(|found| {
            for batch in batches {
                batch.check()?;
                let mut chunks = self.chunks.iter();
                chunks.try_for_each(|chunk| chunk.check(batch, context))?;
            }
            Ok(found)
        });
        let counted: u64 = batches.iter().map(Batch::count).sum();
        let n = batches.len() as i64;
        let mine = Buffer::I64(vec![counted as i64, i64::from(found.is_err()), n, n * n]);
        let dp = &self.groups.dp;
        let sums = dp.all_reduce(mine, Reduction::Sum)?.into_i64()?;
        // As many of each are they if their squares have the least sum.
        let alike = dp.size() as i64 * sums[3] == sums[2] * sums[2];
        let found = found.and_then(|found| {
            if alike || !self.chunks.iter().any(Stage::synchronises) {
                return Ok(found);
            }
            Err(Error::config(
                format!("{n} micro-batches on this replica, and another number on others, of a model that communicates over the replicas"),
                "choose a global batch that gives every replica as many micro-batches",
            ))
        });
        if sums[1] == 0 {
            return Ok((found?, sums[0] as u64));
        }
        let reason = found.as_ref().err().map_or(String::new(), Error::to_string);
        let reasons = dp.all_gather(Buffer::U8(reason.into_bytes()))?.into_u8()?;
        found?;
        Err(Error::config(
            format!(
                "another replica refuses its micro-batches: {}",
                String::from_utf8_lossy(&reasons)
            ),
            "every replica needs some that it can run",
        ))
    }
}

/// Sum in f64, so that it does not depend on how tokens are divided.
fn host_sum(x: Tensor<1>) -> Result<f64> {
    Ok(match to_buffer(full_precision(x))? {
        Buffer::F32(v) => v.into_iter().map(f64::from).sum(),
        Buffer::F64(v) => v.into_iter().sum(),
        other => return Err(Error::Internal(format!("losses are {}", other.dtype()))),
    })
}
