//! Runs one stage's instructions.

use std::collections::HashMap;
use std::time::Instant;

use burn::tensor::{DType, Device, Shape, Tensor};

use super::activation::{self, Activation};
use super::schedule::{Instruction, Kind, Payload, Schedule};
use super::stage::{Batch, Output, Stage, StepContext, Tape};
use crate::comm::groups::Groups;
use crate::comm::tensor::to_buffer;
use crate::comm::{Buffer, Reduction};
use crate::error::{Error, Result};
use crate::observe::trace::{Category, SpanRecorder};
use crate::zero::reducer::GradientReducer;

/// One rank's stage of a pipeline.
#[derive(Debug)]
pub struct Pipeline<S> {
    /// This stage, by chunk.
    pub chunks: Vec<S>,
    kind: Kind,
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

/// What one pass goes over.
struct Work<'a, B> {
    schedule: Schedule,
    batches: &'a [B],
    context: &'a StepContext,
    loss_gradient: f64,
}

type Key = (Payload, usize, usize);

/// What is under way between instructions.
#[derive(Default)]
struct State {
    received: HashMap<Key, Vec<Activation>>,
    produced: HashMap<Key, Vec<Activation>>,
    tapes: HashMap<(usize, usize), UnderWay>,
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
            tied: None,
            groups,
            device,
        })
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
        let schedule = Schedule::new(self.kind, self.groups.layout.pp, batches.len());
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
                match chunk.forward(input, batch, context)?.output {
                    Output::Losses(losses) => loss_sum += host_sum(losses)?,
                    Output::Activations(x) => activation::send(&x, &*self.groups.pp, behind)?,
                }
            }
            self.groups.world.failure().map_or(Ok(()), Err)?;
        }
        Ok(loss_sum)
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

    /// Does all instructions. Gives the sum of the losses.
    fn run(
        &self,
        work: &Work<'_, S::Batch>,
        reducer: &mut GradientReducer,
        spans: &mut SpanRecorder,
    ) -> Result<f64> {
        let mut state = State::default();
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

    fn receive(
        &self,
        work: &Work<'_, S::Batch>,
        instruction: &Instruction,
        key: Key,
        state: &mut State,
    ) -> Result<()> {
        let from = message(&work.schedule, self.groups.at.pp, instruction)?.from;
        let (what, micro_batch, chunk) = key;
        let received = match what {
            Payload::Activation => activation::receive(&*self.groups.pp, from, &self.device)?,
            Payload::Gradient => {
                let under_way = state.tapes.get(&(micro_batch, chunk));
                let shapes = &under_way.ok_or_else(|| missing(&key))?.shapes;
                activation::receive_values(shapes, &*self.groups.pp, from, &self.device)?
            }
        };
        state.received.insert(key, received);
        Ok(())
    }

    fn send(
        &self,
        work: &Work<'_, S::Batch>,
        instruction: &Instruction,
        key: Key,
        state: &mut State,
    ) -> Result<()> {
        let to = message(&work.schedule, self.groups.at.pp, instruction)?.to;
        let x = state.produced.remove(&key).ok_or_else(|| missing(&key))?;
        match key.0 {
            Payload::Activation => activation::send(&x, &*self.groups.pp, to),
            Payload::Gradient => activation::send_values(&x, &*self.groups.pp, to),
        }
    }

    fn forward(
        &self,
        work: &Work<'_, S::Batch>,
        micro_batch: usize,
        chunk: usize,
        state: &mut State,
    ) -> Result<()> {
        let key = (Payload::Activation, micro_batch, chunk);
        let first = chunk == 0 && self.groups.is_first_stage();
        let input = match self.input(key, state) {
            Some(x) => x,
            None if first => Vec::new(),
            None => return Err(missing(&key)),
        };
        let batch = &work.batches[micro_batch];
        let forward = self.chunks[chunk].forward(input, batch, work.context)?;
        let mut under_way = UnderWay {
            tape: forward.tape,
            shapes: Vec::new(),
            losses: None,
        };
        match forward.output {
            Output::Activations(x) => {
                under_way.shapes = x.iter().map(Activation::shape).collect();
                state.produced.insert(key, x);
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
        micro_batch: usize,
        chunk: usize,
        state: &mut State,
        reducer: &mut GradientReducer,
    ) -> Result<()> {
        let key = (Payload::Gradient, micro_batch, chunk);
        let under_way = state
            .tapes
            .remove(&(micro_batch, chunk))
            .ok_or_else(|| missing(&key))?;
        let gradients = if let Some((losses, dtype)) = under_way.losses {
            let gradient = work.loss_gradient;
            vec![Tensor::<1>::full([losses], gradient, (&self.device, dtype)).into()]
        } else {
            self.input(key, state).ok_or_else(|| missing(&key))?
        };
        let last = micro_batch + 1 == work.batches.len();
        let gradients = under_way
            .tape
            .backward(gradients, &mut |gradients| reducer.add(gradients, last))?;
        if !gradients.is_empty() {
            state.produced.insert(key, gradients);
        }
        Ok(())
    }

    /// What a part needs: received from a neighbour, or left by the neighbouring chunk of this only stage.
    fn input(&self, key: Key, state: &mut State) -> Option<Vec<Activation>> {
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
    let x = match x.dtype() {
        DType::F32 | DType::F64 => x,
        _ => x.cast(DType::F32),
    };
    Ok(match to_buffer(x)? {
        Buffer::F32(v) => v.into_iter().map(f64::from).sum(),
        Buffer::F64(v) => v.into_iter().sum(),
        other => return Err(Error::Internal(format!("losses are {}", other.dtype()))),
    })
}
