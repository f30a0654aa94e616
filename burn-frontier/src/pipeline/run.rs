//! Runs one stage's instructions.

use std::collections::HashMap;
use std::time::Instant;

use burn::tensor::{DType, Device, Shape, Tensor};

use super::part::{MicroBatch, Output, PipelinePart, Seed, StepContext, Tape};
use super::schedule::{Instruction, Kind, Payload, Schedule};
use crate::comm::groups::Groups;
use crate::comm::tensor::{from_buffer, to_buffer};
use crate::comm::{Buffer, Reduction};
use crate::error::{Error, Result};
use crate::observe::trace::{Category, SpanRecorder};
use crate::zero::reducer::GradientReducer;

/// One rank's stage of a pipeline.
#[derive(Debug)]
pub struct Pipeline<P> {
    /// This stage's parts, by chunk.
    pub parts: Vec<P>,
    kind: Kind,
    groups: Groups,
    device: Device,
    dtype: DType,
}

/// Numbers of one pass over a global batch. Its mean loss is the sum of the replicas' `loss_sum` over `counted`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PassResult {
    /// Sum of the losses of this replica's targets that count; zero except on the last stage.
    pub loss_sum: f64,
    /// Targets of the global batch that count: those of all replicas' micro-batches that are not negative. The same on all
    /// ranks.
    pub counted: u64,
}

/// What one pass goes over.
struct Work<'a> {
    schedule: Schedule,
    batches: &'a [MicroBatch],
    context: &'a StepContext,
    loss_gradient: f64,
}

type Key = (Payload, usize, usize);

/// What is under way between instructions.
struct State {
    received: HashMap<Key, Tensor<3>>,
    produced: HashMap<Key, Tensor<3>>,
    tapes: HashMap<(usize, usize), Tape>,
    loss_sum: f64,
}

impl<P: PipelinePart> Pipeline<P> {
    /// A stage that runs `parts` (one a chunk) in the order of `kind`. `device` is without autodiff.
    pub fn new(
        parts: Vec<P>,
        kind: Kind,
        groups: Groups,
        device: Device,
        dtype: DType,
    ) -> Result<Self> {
        if parts.len() != kind.chunks() {
            return Err(Error::Internal(format!(
                "a {kind} stage has {} chunks, not {} parts",
                kind.chunks(),
                parts.len()
            )));
        }
        Ok(Self {
            parts,
            kind,
            groups,
            device,
            dtype,
        })
    }

    /// Forward and backward pass of this replica's micro-batches. The loss is the mean over all targets of the global batch
    /// that count, times `loss_scale`: a sum over replicas and micro-batches, divided once. Parameter gradients go to
    /// `reducer`. Every rank calls it; ranks of one replica give the same micro-batches.
    ///
    /// # Communication
    /// Over dp an all-reduce of two integers. Point to point between neighbouring stages: activations forward, their gradients
    /// back; the parts' own; the reducer's.
    ///
    /// # Errors
    /// Micro-batches that the model or the schedule cannot take, in any replica, or of which no target counts, before anything
    /// is computed; failed communication; what fails in a part, which then fails the world. What the reducer has been given by
    /// then is dropped.
    pub fn forward_backward(
        &mut self,
        batches: &[MicroBatch],
        context: &StepContext,
        loss_scale: f64,
        reducer: &mut GradientReducer,
        spans: &mut SpanRecorder,
    ) -> Result<PassResult> {
        let schedule = Schedule::new(self.kind, self.groups.layout.pp, batches.len());
        let (schedule, counted) = self.agree(batches, schedule)?;
        if counted == 0 {
            return Err(Error::config(
                "no target of the global batch counts, so that its loss has no mean",
                "give it one target at least that is not negative",
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

    /// The losses of the micro-batches, without gradients. Nothing is wrong with a batch of which no target counts: both
    /// numbers are zero. Every rank calls it.
    ///
    /// # Communication
    /// Over dp an all-reduce of two integers; activations between neighbouring stages; the parts' own.
    ///
    /// # Errors
    /// Micro-batches that the model cannot take, in any replica, before anything is computed; failed communication.
    pub fn evaluate(&self, batches: &[MicroBatch], context: &StepContext) -> Result<PassResult> {
        let ((), counted) = self.agree(batches, Ok(()))?;
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
    fn losses(&self, batches: &[MicroBatch], context: &StepContext) -> Result<f64> {
        let (stage, stages) = (self.groups.at.pp, self.groups.layout.pp);
        let mut loss_sum = 0.0;
        for batch in batches {
            for chunk in 0..self.parts.len() {
                let part = chunk * stages + stage;
                let input = if part == 0 {
                    None
                } else {
                    Some(self.take_from_previous(chunk, batch)?)
                };
                match self.parts[chunk].forward(input, batch, context)?.output {
                    Output::Losses(losses) => loss_sum += host_sum(losses)?,
                    Output::Activation(x) => {
                        self.groups.pp.send(to_buffer(x)?, (stage + 1) % stages)?
                    }
                }
            }
            self.groups.world.failure().map_or(Ok(()), Err)?;
        }
        Ok(loss_sum)
    }

    /// `found`, and the number of targets of the global batch that count, once no replica has anything against its own
    /// micro-batches. A replica that refuses its own tells the others, which would wait for it.
    fn agree<T>(&self, batches: &[MicroBatch], found: Result<T>) -> Result<(T, u64)> {
        let found = found.and_then(|found| {
            for batch in batches {
                batch.check()?;
                self.parts.iter().try_for_each(|part| part.check(batch))?;
            }
            Ok(found)
        });
        let counted: usize = batches.iter().map(MicroBatch::counted).sum();
        let mine = Buffer::I64(vec![counted as i64, i64::from(found.is_err())]);
        let dp = &self.groups.dp;
        let sums = dp.all_reduce(mine, Reduction::Sum)?.into_i64()?;
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

    /// Does all instructions. Gives the sum of the losses.
    fn run(
        &self,
        work: &Work<'_>,
        reducer: &mut GradientReducer,
        spans: &mut SpanRecorder,
    ) -> Result<f64> {
        let mut state = State {
            received: HashMap::new(),
            produced: HashMap::new(),
            tapes: HashMap::new(),
            loss_sum: 0.0,
        };
        for instruction in &work.schedule.orders[self.groups.at.pp] {
            let start = Instant::now();
            if let Some((category, micro_batch, chunk)) =
                self.execute(work, instruction, &mut state, reducer)?
            {
                spans.record(category, micro_batch, chunk, start);
            }
            self.groups.world.failure().map_or(Ok(()), Err)?;
        }
        Ok(state.loss_sum)
    }

    /// Does one instruction. Gives what it is in a trace: kind, micro-batch, chunk.
    fn execute(
        &self,
        work: &Work<'_>,
        instruction: &Instruction,
        state: &mut State,
        reducer: &mut GradientReducer,
    ) -> Result<Option<(Category, Option<usize>, usize)>> {
        Ok(match *instruction {
            Instruction::Receive {
                what,
                micro_batch,
                chunk,
            } => {
                self.receive(work, instruction, (what, micro_batch, chunk), state)?;
                Some((Category::Receive, Some(micro_batch), chunk))
            }
            Instruction::Send {
                what,
                micro_batch,
                chunk,
            } => {
                self.send(work, instruction, (what, micro_batch, chunk), state)?;
                Some((Category::Send, Some(micro_batch), chunk))
            }
            Instruction::Forward { micro_batch, chunk } => {
                self.forward(work, micro_batch, chunk, state)?;
                Some((Category::Forward, Some(micro_batch), chunk))
            }
            Instruction::Backward { micro_batch, chunk } => {
                self.backward(work, micro_batch, chunk, state, reducer)?;
                Some((Category::Backward, Some(micro_batch), chunk))
            }
            Instruction::Reduce { chunk } => {
                reducer.finish_chunk(chunk)?;
                Some((Category::Reduce, None, chunk))
            }
            // The optimiser's step needs the global gradient norm, so it is the training loop's.
            Instruction::Step => None,
        })
    }

    /// Receives a part's input from the previous stage (this one, if it is the only one).
    fn take_from_previous(&self, chunk: usize, batch: &MicroBatch) -> Result<Tensor<3>> {
        let (stage, stages) = (self.groups.at.pp, self.groups.layout.pp);
        let data = self.groups.pp.recv((stage + stages - 1) % stages)?;
        from_buffer(
            data,
            Shape::from(self.parts[chunk].activation_shape(batch)),
            &self.device,
        )
    }

    fn receive(
        &self,
        work: &Work<'_>,
        instruction: &Instruction,
        key: Key,
        state: &mut State,
    ) -> Result<()> {
        let message = message(&work.schedule, self.groups.at.pp, instruction)?;
        let data = self.groups.pp.recv(message.from)?;
        let shape = Shape::from(self.parts[key.2].activation_shape(&work.batches[key.1]));
        state
            .received
            .insert(key, from_buffer(data, shape, &self.device)?);
        Ok(())
    }

    fn send(
        &self,
        work: &Work<'_>,
        instruction: &Instruction,
        key: Key,
        state: &mut State,
    ) -> Result<()> {
        let message = message(&work.schedule, self.groups.at.pp, instruction)?;
        let x = state.produced.remove(&key).ok_or_else(|| missing(&key))?;
        self.groups.pp.send(to_buffer(x)?, message.to)
    }

    fn forward(
        &self,
        work: &Work<'_>,
        micro_batch: usize,
        chunk: usize,
        state: &mut State,
    ) -> Result<()> {
        let key = (Payload::Activation, micro_batch, chunk);
        let first = chunk == 0 && self.groups.is_first_stage();
        let input = match self.input(key, state) {
            Some(x) => Some(x),
            None if first => None,
            None => return Err(missing(&key)),
        };
        let batch = &work.batches[micro_batch];
        let forward = self.parts[chunk].forward(input, batch, work.context)?;
        match forward.output {
            Output::Activation(x) => _ = state.produced.insert(key, x),
            Output::Losses(losses) => state.loss_sum += host_sum(losses)?,
        }
        state.tapes.insert((micro_batch, chunk), forward.tape);
        Ok(())
    }

    fn backward(
        &self,
        work: &Work<'_>,
        micro_batch: usize,
        chunk: usize,
        state: &mut State,
        reducer: &mut GradientReducer,
    ) -> Result<()> {
        let key = (Payload::Gradient, micro_batch, chunk);
        let tape = state
            .tapes
            .remove(&(micro_batch, chunk))
            .ok_or_else(|| missing(&key))?;
        let seed = if let Some(losses) = tape.losses {
            let dtype = if self.dtype == DType::F64 {
                DType::F64
            } else {
                DType::F32
            };
            let gradient = work.loss_gradient;
            Seed::Losses(Tensor::full([losses], gradient, (&self.device, dtype)))
        } else {
            Seed::Activation(self.input(key, state).ok_or_else(|| missing(&key))?)
        };
        let last = micro_batch + 1 == work.batches.len();
        let gradient = tape.backward(seed, &mut |gradients| reducer.add(gradients, last))?;
        if let Some(gradient) = gradient {
            state.produced.insert(key, gradient);
        }
        Ok(())
    }

    /// What a part needs: received from a neighbour, or left by the neighbouring chunk of this only stage.
    fn input(&self, key: Key, state: &mut State) -> Option<Tensor<3>> {
        if let Some(x) = state.received.remove(&key) {
            return Some(x);
        }
        let (what, micro_batch, chunk) = key;
        let neighbour = match what {
            Payload::Activation => chunk.checked_sub(1)?,
            Payload::Gradient => chunk + 1,
        };
        if self.groups.layout.pp > 1 {
            return None;
        }
        state.produced.remove(&(what, micro_batch, neighbour))
    }
}

fn message(
    schedule: &Schedule,
    stage: usize,
    instruction: &Instruction,
) -> Result<super::schedule::Message> {
    schedule
        .message(stage, instruction)
        .ok_or_else(|| Error::Internal(format!("{instruction} of stage {stage} has no partner")))
}

fn missing(key: &Key) -> Error {
    let (what, micro_batch, chunk) = key;
    Error::Internal(format!(
        "{what:?} of micro-batch {micro_batch}, chunk {chunk} is not there"
    ))
}

/// Sum in f64, so that it does not depend on how tokens are divided.
fn host_sum(x: Tensor<1>) -> Result<f64> {
    Ok(match to_buffer(x)? {
        Buffer::F32(v) => v.into_iter().map(f64::from).sum(),
        Buffer::F64(v) => v.into_iter().sum(),
        other => return Err(Error::Internal(format!("losses are {}", other.dtype()))),
    })
}
