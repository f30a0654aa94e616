//! A pass over a global batch: this stage's instructions, each done where it stands in its list.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::{DType, Shape, Tensor};

use super::{Pipeline, host_sum};
use crate::error::{Error, Result};
use crate::observe::trace::{Category, SpanRecorder};
use crate::pipeline::activation::{self, Activation};
use crate::pipeline::execute::execute;
use crate::pipeline::schedule::{Instruction, Message, Payload, Schedule};
use crate::pipeline::stage::{Output, Stage, StepContext, Tape};
use crate::zero::reducer::GradientReducer;

/// What one pass goes over.
pub(super) struct Work<'a, B> {
    pub schedule: Arc<Schedule>,
    pub batches: &'a [B],
    pub context: &'a StepContext,
    pub loss_gradient: f64,
}

/// What is under way between instructions.
struct State {
    /// What passes have made and messages have brought, until it is used or sent, by the instruction that it is from.
    values: HashMap<Instruction, Vec<Activation>>,
    /// By micro-batch and chunk.
    tapes: HashMap<(usize, usize), UnderWay>,
    /// Backward passes to come, by chunk.
    left: Vec<usize>,
    loss_sum: f64,
}

/// A micro-batch between its forward and its backward pass.
struct UnderWay {
    tape: Tape,
    /// Shapes of the activations that it gave, and so of the gradients that it gets.
    shapes: Vec<Shape>,
    /// Number and type of the losses that it gave.
    losses: Option<(usize, DType)>,
}

impl<S: Stage> Pipeline<S> {
    /// Does all instructions. Gives the sum of the losses.
    pub(super) fn run(
        &self,
        work: &Work<'_, S::Batch>,
        reducer: &mut GradientReducer,
        spans: &mut SpanRecorder,
    ) -> Result<f64> {
        let stage = self.groups.at.pp;
        let mut state = State {
            values: HashMap::new(),
            tapes: HashMap::new(),
            left: vec![work.batches.len(); self.chunks.len()],
            loss_sum: 0.0,
        };
        let list = |stage: usize, at: usize| work.schedule.orders[stage].get(at);
        execute(stage..stage + 1, list, |_, instruction| {
            let start = Instant::now();
            if let Some((category, micro_batch, chunk)) =
                self.perform(work, instruction, &mut state, reducer)?
            {
                spans.record(category, micro_batch, chunk, start);
            }
            // A receive waits where it stands: it is done when it returns.
            self.groups.world.failure().map_or(Ok(true), Err)
        })?;
        Ok(state.loss_sum)
    }

    /// Does one instruction. Gives what it is in a trace: kind, micro-batch, chunk.
    fn perform(
        &self,
        work: &Work<'_, S::Batch>,
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
                let from = message(&work.schedule, self.groups.at.pp, instruction)?.from;
                let received = match what {
                    Payload::Activation => {
                        activation::receive(&*self.groups.pp, from, &self.device)?
                    }
                    Payload::Gradient => {
                        let under_way = state.tapes.get(&(micro_batch, chunk));
                        let shapes = &under_way.ok_or_else(|| missing(instruction))?.shapes;
                        activation::receive_values(shapes, &*self.groups.pp, from, &self.device)?
                    }
                };
                state.values.insert(*instruction, received);
                Some((Category::Receive, Some(micro_batch), chunk))
            }
            Instruction::Send {
                what,
                micro_batch,
                chunk,
            } => {
                let to = message(&work.schedule, self.groups.at.pp, instruction)?.to;
                let x = state.take(what.made_by(micro_batch, chunk))?;
                match what {
                    Payload::Activation => activation::send(&x, &*self.groups.pp, to)?,
                    Payload::Gradient => activation::send_values(&x, &*self.groups.pp, to)?,
                }
                Some((Category::Send, Some(micro_batch), chunk))
            }
            Instruction::Forward { micro_batch, chunk } => {
                self.forward(work, instruction, (micro_batch, chunk), state)?;
                Some((Category::Forward, Some(micro_batch), chunk))
            }
            Instruction::Backward { micro_batch, chunk } => {
                self.backward(work, instruction, (micro_batch, chunk), state, reducer)?;
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

    fn forward(
        &self,
        work: &Work<'_, S::Batch>,
        pass: &Instruction,
        (micro_batch, chunk): (usize, usize),
        state: &mut State,
    ) -> Result<()> {
        let input = match work.schedule.input(self.groups.at.pp, pass) {
            Some(from) => state.take(from)?,
            None => Vec::new(),
        };
        let batch = &work.batches[micro_batch];
        let forward = self.chunks[chunk].forward(input, batch, work.context)?;
        self.check_output(chunk, &forward.output)?;
        let mut under_way = UnderWay {
            tape: forward.tape,
            shapes: Vec::new(),
            losses: None,
        };
        match forward.output {
            Output::Activations(x) => {
                under_way.shapes = x.iter().map(Activation::shape).collect();
                state.values.insert(*pass, x);
            }
            Output::Losses(losses) => {
                under_way.losses = Some((losses.dims()[0], losses.dtype()));
                state.loss_sum += host_sum(losses)?;
            }
        }
        state.tapes.insert((micro_batch, chunk), under_way);
        Ok(())
    }

    fn backward(
        &self,
        work: &Work<'_, S::Batch>,
        pass: &Instruction,
        (micro_batch, chunk): (usize, usize),
        state: &mut State,
        reducer: &mut GradientReducer,
    ) -> Result<()> {
        let under_way = state
            .tapes
            .remove(&(micro_batch, chunk))
            .ok_or_else(|| missing(pass))?;
        let gradients = if let Some((losses, dtype)) = under_way.losses {
            let gradient = work.loss_gradient;
            vec![Tensor::<1>::full([losses], gradient, (&self.device, dtype)).into()]
        } else {
            let from = work.schedule.input(self.groups.at.pp, pass);
            state.take(from.ok_or_else(|| missing(pass))?)?
        };
        state.left[chunk] -= 1;
        let last = state.left[chunk] == 0;
        let gradients = under_way
            .tape
            .backward(gradients, &mut |gradients| reducer.add(gradients, last))?;
        if !gradients.is_empty() {
            state.values.insert(*pass, gradients);
        }
        Ok(())
    }
}

impl State {
    /// What an instruction has left.
    fn take(&mut self, from: Instruction) -> Result<Vec<Activation>> {
        self.values.remove(&from).ok_or_else(|| missing(&from))
    }
}

fn message(schedule: &Schedule, stage: usize, instruction: &Instruction) -> Result<Message> {
    schedule
        .message(stage, instruction)
        .ok_or_else(|| Error::Internal(format!("`{instruction}` of stage {stage} has no partner")))
}

fn missing(from: &Instruction) -> Error {
    Error::Internal(format!("what `{from}` needs or gives is not there"))
}
