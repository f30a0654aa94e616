//! Pipeline schedules as plain data: what every stage does, in which order.
//!
//! A model is cut into `stages * chunks` parts. Stage `s` holds the parts `chunk * stages + s`, its model chunks.
//! The activation of part `p` goes to part `p + 1`, the gradient of part `p + 1` goes back to part `p`.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

mod instruction;
mod kind;
mod split;

pub use instruction::{Instruction, Message, Payload};
pub use kind::Kind;
pub use split::split_layers;

/// What every stage of a pipeline does in one optimizer step.
///
/// Sends never block, receives do, and the messages from one stage to another arrive in the order of their sends.
/// Schedules made by [`Schedule::new`] satisfy [`check`](super::check::check); one made by hand should be checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// Order of the passes, and chunks a stage.
    pub kind: Kind,
    /// Pipeline stages.
    pub stages: usize,
    /// Micro-batches of one step.
    pub micro_batches: usize,
    /// The instructions of every stage, in order.
    pub orders: Vec<Vec<Instruction>>,
}

impl Schedule {
    /// The schedule of `kind` for a pipeline of `stages` stages and a step of `micro_batches` micro-batches.
    ///
    /// # Errors
    /// No stages or micro-batches; for an interleaved schedule also fewer than two chunks, or micro-batches that are
    /// not a multiple of the stages.
    pub fn new(kind: Kind, stages: usize, micro_batches: usize) -> Result<Self> {
        validate(kind, stages, micro_batches)?;
        let mut schedule = Self {
            kind,
            stages,
            micro_batches,
            orders: Vec::new(),
        };
        let passes = |stage| {
            let pass = |at| kind.pass(stages, micro_batches, stage, at);
            (0..).map_while(pass).collect()
        };
        let passes: Vec<_> = (0..stages).map(passes).collect();
        schedule.orders = schedule.with_communication(&passes)?;
        Ok(schedule)
    }

    /// Refuses what [`Schedule::new`] refuses, without making the lists.
    ///
    /// # Errors
    /// As [`Schedule::new`].
    pub fn refuse(kind: Kind, stages: usize, micro_batches: usize) -> Result<()> {
        validate(kind, stages, micro_batches)
    }

    /// Model parts: `stages * chunks`.
    pub const fn parts(&self) -> usize {
        self.stages * self.kind.chunks()
    }

    /// The model part that is `chunk` of `stage`.
    pub const fn part(&self, stage: usize, chunk: usize) -> usize {
        chunk * self.stages + stage
    }

    /// The message that `instruction` of `stage` sends or receives. `None` for other instructions, at the ends of the
    /// model (nothing precedes the first part or follows the last), and when both parts lie on this stage.
    pub fn message(&self, stage: usize, instruction: &Instruction) -> Option<Message> {
        let (what, micro_batch, chunk, sends) = match *instruction {
            Instruction::Send {
                what,
                micro_batch,
                chunk,
            } => (what, micro_batch, chunk, true),
            Instruction::Receive {
                what,
                micro_batch,
                chunk,
            } => (what, micro_batch, chunk, false),
            _ => return None,
        };
        let part = self.part(stage, chunk);
        let next = (part + 1 < self.parts()).then_some(part + 1);
        let other = match (what, sends) {
            (Payload::Activation, true) | (Payload::Gradient, false) => next?,
            (Payload::Activation, false) | (Payload::Gradient, true) => part.checked_sub(1)?,
        };
        let (from, to) = if sends { (part, other) } else { (other, part) };
        (self.stages > 1).then_some(Message {
            from: from % self.stages,
            to: to % self.stages,
            what,
            micro_batch,
            part: to,
        })
    }

    /// What gives a pass of `stage` its input: a receive, or, where there is no other stage, the pass of the neighbouring
    /// chunk. `None` at the ends of the model, and for what is no pass.
    pub fn input(&self, stage: usize, pass: &Instruction) -> Option<Instruction> {
        let receive = pass.receive()?;
        if self.stages > 1 {
            return self.message(stage, &receive).map(|_| receive);
        }
        let (what, micro_batch, chunk) = pass.pass()?;
        let neighbour = match what {
            Payload::Activation => chunk.checked_sub(1),
            Payload::Gradient => Some(chunk + 1).filter(|&chunk| chunk < self.kind.chunks()),
        };
        neighbour.map(|chunk| what.made_by(micro_batch, chunk))
    }

    /// Adds sends, receives, reductions and the step to every stage's passes.
    ///
    /// A stage receives from each peer in the order in which that peer sends. So before a pass it receives, besides
    /// what the pass needs, whatever its peer sent earlier: those messages arrive earlier, so this waits for nothing more.
    fn with_communication(&self, passes: &[Vec<Instruction>]) -> Result<Vec<Vec<Instruction>>> {
        let mut sent: HashMap<(usize, usize), VecDeque<Message>> = HashMap::new();
        for (stage, passes) in passes.iter().enumerate() {
            for message in passes
                .iter()
                .filter_map(|pass| self.message(stage, &pass.send()?))
            {
                sent.entry((message.from, message.to))
                    .or_default()
                    .push_back(message);
            }
        }
        let mut orders = Vec::new();
        for (stage, passes) in passes.iter().enumerate() {
            let (mut order, mut received) = (Vec::new(), HashSet::new());
            let mut left = vec![self.micro_batches; self.kind.chunks()];
            for pass in passes {
                let need = pass
                    .receive()
                    .and_then(|receive| self.message(stage, &receive));
                while let Some(need) = need.filter(|need| !received.contains(need)) {
                    let inbox = sent.get_mut(&(need.from, need.to));
                    let Some(message) = inbox.and_then(VecDeque::pop_front) else {
                        return Err(Error::Internal(format!("no stage sends the {need}")));
                    };
                    received.insert(message);
                    order.push(Instruction::Receive {
                        what: message.what,
                        micro_batch: message.micro_batch,
                        chunk: message.part / self.stages,
                    });
                }
                order.push(*pass);
                order.extend(
                    pass.send()
                        .filter(|send| self.message(stage, send).is_some()),
                );
                if let Instruction::Backward { chunk, .. } = *pass {
                    left[chunk] -= 1;
                    // After the send, which the previous stage may be waiting for.
                    order.extend((left[chunk] == 0).then_some(Instruction::Reduce { chunk }));
                }
            }
            order.push(Instruction::Step);
            orders.push(order);
        }
        Ok(orders)
    }
}

/// The orders as Megatron-LM's papers draw them, a line a stage: `stage 0: F0 F1 B0 B1`. With several chunks `F0.1` is
/// the forward pass of micro-batch 0 on chunk 1.
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (stage, order) in self.orders.iter().enumerate() {
            if stage > 0 {
                writeln!(f)?;
            }
            write!(f, "stage {stage}:")?;
            for instruction in order {
                let (letter, micro_batch, chunk) = match instruction {
                    Instruction::Forward { micro_batch, chunk } => ('F', micro_batch, chunk),
                    Instruction::Backward { micro_batch, chunk } => ('B', micro_batch, chunk),
                    _ => continue,
                };
                write!(f, " {letter}{micro_batch}")?;
                if self.kind.chunks() > 1 {
                    write!(f, ".{chunk}")?;
                }
            }
        }
        Ok(())
    }
}

/// Most forward passes of a step over all stages and chunks: each is in a list.
pub const MAX_PASSES: usize = 1 << 22;

fn validate(kind: Kind, stages: usize, micro_batches: usize) -> Result<()> {
    let what = format!(
        "the schedule {kind} cannot run {micro_batches} micro-batches over {stages} stages"
    );
    if stages == 0 || micro_batches == 0 {
        return Err(Error::config(
            what,
            "use at least one stage and one micro-batch",
        ));
    }
    let passes = stages
        .checked_mul(micro_batches)
        .and_then(|n| n.checked_mul(kind.chunks()));
    if passes.is_none_or(|n| n > MAX_PASSES) {
        return Err(Error::config(
            what,
            format!("use smaller numbers: it has more than {MAX_PASSES} passes"),
        ));
    }
    let Kind::Interleaved { chunks } = kind else {
        return Ok(());
    };
    if chunks < 2 {
        return Err(Error::config(
            what,
            "use at least 2 chunks a stage, or 1f1b for one",
        ));
    }
    if !micro_batches.is_multiple_of(stages) {
        let below = micro_batches / stages * stages;
        let choice = match below {
            0 => format!("{stages}"),
            _ => format!("{below} or {}", below + stages),
        };
        return Err(Error::config(
            what,
            format!(
                "micro-batches must be a multiple of the stages: use {choice} of them, or 1f1b"
            ),
        ));
    }
    Ok(())
}
