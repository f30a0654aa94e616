//! Runs one stage's instructions.

use std::collections::HashMap;
use std::time::Instant;

use burn::tensor::{DType, Device, Shape, Tensor};

use super::part::{MicroBatch, Output, PipelinePart, Seed, StepContext, Tape};
use super::schedule::{Instruction, Kind, Payload, Schedule};
use crate::comm::groups::Groups;
use crate::error::{Error, Result};
use crate::observe::trace::{Category, SpanRecorder};
use crate::ops::exchange::{from_buffer, to_buffer};
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

/// Numbers of one forward and backward pass.
#[derive(Debug, Clone, Copy)]
pub struct PassResult {
    /// Sum of the losses of this replica's tokens; zero except on the last stage.
    pub loss_sum: f64,
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

    /// Forward and backward pass of this replica's micro-batches. Every token's loss gets the gradient `loss_gradient`
    /// (one over the global number of counted tokens, times the loss scale). Parameter gradients go to `reducer`.
    ///
    /// # Communication
    /// Point to point between neighbouring stages: activations forward, their gradients back; the parts' own; the reducer's.
    ///
    /// # Errors
    /// A micro-batch count that the schedule cannot run, or failed communication.
    pub fn forward_backward(
        &mut self,
        batches: &[MicroBatch],
        context: &StepContext,
        loss_gradient: f64,
        reducer: &mut GradientReducer,
        spans: &mut SpanRecorder,
    ) -> Result<PassResult> {
        let schedule = Schedule::new(self.kind, self.groups.layout.pp, batches.len())?;
        let stage = self.groups.at.pp;
        let mut state = State {
            received: HashMap::new(),
            produced: HashMap::new(),
            tapes: HashMap::new(),
            loss_sum: 0.0,
        };
        for instruction in &schedule.orders[stage] {
            let start = Instant::now();
            let span = match *instruction {
                Instruction::Receive {
                    what,
                    micro_batch,
                    chunk,
                } => {
                    self.receive(
                        &schedule,
                        instruction,
                        (what, micro_batch, chunk),
                        batches,
                        &mut state,
                    )?;
                    Some((Category::Receive, Some(micro_batch), chunk))
                }
                Instruction::Send {
                    what,
                    micro_batch,
                    chunk,
                } => {
                    self.send(
                        &schedule,
                        instruction,
                        (what, micro_batch, chunk),
                        &mut state,
                    )?;
                    Some((Category::Send, Some(micro_batch), chunk))
                }
                Instruction::Forward { micro_batch, chunk } => {
                    self.forward(
                        micro_batch,
                        chunk,
                        &batches[micro_batch],
                        context,
                        &mut state,
                    )?;
                    Some((Category::Forward, Some(micro_batch), chunk))
                }
                Instruction::Backward { micro_batch, chunk } => {
                    let last = micro_batch + 1 == batches.len();
                    self.backward(micro_batch, chunk, loss_gradient, last, &mut state, reducer)?;
                    Some((Category::Backward, Some(micro_batch), chunk))
                }
                Instruction::Reduce { chunk } => {
                    reducer.finish_chunk(chunk)?;
                    Some((Category::Reduce, None, chunk))
                }
                // The optimiser's step needs the global gradient norm, so it is the training loop's.
                Instruction::Step => None,
            };
            if let Some((category, micro_batch, chunk)) = span {
                spans.record(category, micro_batch, chunk, start);
            }
            self.groups.world.failure().map_or(Ok(()), Err)?;
        }
        Ok(PassResult {
            loss_sum: state.loss_sum,
        })
    }

    /// Sum of the losses of the micro-batches, without gradients; zero except on the last stage.
    ///
    /// # Communication
    /// Activations between neighbouring stages.
    pub fn evaluate(&self, batches: &[MicroBatch], context: &StepContext) -> Result<f64> {
        let (stage, stages) = (self.groups.at.pp, self.groups.layout.pp);
        let mut sum = 0.0;
        for batch in batches {
            for chunk in 0..self.parts.len() {
                let part = chunk * stages + stage;
                let input = if part == 0 {
                    None
                } else {
                    Some(self.take_from_previous(chunk, batch)?)
                };
                match self.parts[chunk].forward(input, batch, context)?.output {
                    Output::Losses(losses) => sum += host_sum(losses)?,
                    Output::Activation(x) => {
                        self.groups.pp.send(to_buffer(x)?, (stage + 1) % stages)?
                    }
                }
            }
            self.groups.world.failure().map_or(Ok(()), Err)?;
        }
        Ok(sum)
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
        schedule: &Schedule,
        instruction: &Instruction,
        key: Key,
        batches: &[MicroBatch],
        state: &mut State,
    ) -> Result<()> {
        let message = message(schedule, self.groups.at.pp, instruction)?;
        let data = self.groups.pp.recv(message.from)?;
        let shape = Shape::from(self.parts[key.2].activation_shape(&batches[key.1]));
        state
            .received
            .insert(key, from_buffer(data, shape, &self.device)?);
        Ok(())
    }

    fn send(
        &self,
        schedule: &Schedule,
        instruction: &Instruction,
        key: Key,
        state: &mut State,
    ) -> Result<()> {
        let message = message(schedule, self.groups.at.pp, instruction)?;
        let x = state.produced.remove(&key).ok_or_else(|| missing(&key))?;
        self.groups.pp.send(to_buffer(x)?, message.to)
    }

    fn forward(
        &self,
        micro_batch: usize,
        chunk: usize,
        batch: &MicroBatch,
        context: &StepContext,
        state: &mut State,
    ) -> Result<()> {
        let key = (Payload::Activation, micro_batch, chunk);
        let first = chunk == 0 && self.groups.is_first_stage();
        let input = match self.input(key, state) {
            Some(x) => Some(x),
            None if first => None,
            None => return Err(missing(&key)),
        };
        let forward = self.parts[chunk].forward(input, batch, context)?;
        match forward.output {
            Output::Activation(x) => _ = state.produced.insert(key, x),
            Output::Losses(losses) => state.loss_sum += host_sum(losses)?,
        }
        state.tapes.insert((micro_batch, chunk), forward.tape);
        Ok(())
    }

    fn backward(
        &self,
        micro_batch: usize,
        chunk: usize,
        loss_gradient: f64,
        last: bool,
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
            Seed::Losses(Tensor::full([losses], loss_gradient, (&self.device, dtype)))
        } else {
            Seed::Activation(self.input(key, state).ok_or_else(|| missing(&key))?)
        };
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
    use crate::comm::Buffer;
    Ok(match to_buffer(x)? {
        Buffer::F32(v) => v.into_iter().map(f64::from).sum(),
        Buffer::F64(v) => v.into_iter().sum(),
        other => return Err(Error::Internal(format!("losses are {}", other.dtype()))),
    })
}
