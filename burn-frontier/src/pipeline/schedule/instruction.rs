//! What a stage can be told to do, and what travels between stages.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a message between two stages carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Payload {
    /// The output of a part, on its way to the next part.
    Activation,
    /// The gradient with respect to a part's input, on its way to the previous part.
    Gradient,
}

impl Payload {
    /// The pass of `chunk` that makes it.
    pub(crate) const fn made_by(self, micro_batch: usize, chunk: usize) -> Instruction {
        match self {
            Self::Activation => Instruction::Forward { micro_batch, chunk },
            Self::Gradient => Instruction::Backward { micro_batch, chunk },
        }
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Activation => "activation",
            Self::Gradient => "gradient",
        })
    }
}

/// One thing that a stage does. `chunk` is always the chunk on the stage that executes the instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Instruction {
    /// Waits for the activation that enters the chunk, or the gradient of its output, and keeps it until it is used.
    Receive {
        /// Activation or gradient.
        what: Payload,
        /// Index of the micro-batch.
        micro_batch: usize,
        /// The chunk that will use it.
        chunk: usize,
    },
    /// The chunk's forward pass.
    Forward {
        /// Index of the micro-batch.
        micro_batch: usize,
        /// Index of the chunk on this stage.
        chunk: usize,
    },
    /// Sends the chunk's output, or the gradient of its input; does not wait for the receiver.
    Send {
        /// Activation or gradient.
        what: Payload,
        /// Index of the micro-batch.
        micro_batch: usize,
        /// The chunk that made it.
        chunk: usize,
    },
    /// The chunk's backward pass; frees the activations that its forward pass kept.
    Backward {
        /// Index of the micro-batch.
        micro_batch: usize,
        /// Index of the chunk on this stage.
        chunk: usize,
    },
    /// The chunk's gradients are final: their data-parallel reduction may begin, beside the instructions that follow.
    Reduce {
        /// Index of the chunk on this stage.
        chunk: usize,
    },
    /// The optimizer step, after every reduction of this stage.
    Step,
}

impl fmt::Display for Instruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Receive {
                what,
                micro_batch,
                chunk,
            } => write!(
                f,
                "receive {what} of micro-batch {micro_batch} for chunk {chunk}"
            ),
            Self::Forward { micro_batch, chunk } => {
                write!(f, "forward of micro-batch {micro_batch} on chunk {chunk}")
            }
            Self::Send {
                what,
                micro_batch,
                chunk,
            } => write!(
                f,
                "send {what} of micro-batch {micro_batch} from chunk {chunk}"
            ),
            Self::Backward { micro_batch, chunk } => {
                write!(f, "backward of micro-batch {micro_batch} on chunk {chunk}")
            }
            Self::Reduce { chunk } => write!(f, "reduce gradients of chunk {chunk}"),
            Self::Step => f.write_str("step"),
        }
    }
}

/// A message from one stage to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Message {
    /// The stage that sends.
    pub from: usize,
    /// The stage that receives.
    pub to: usize,
    /// Activation or gradient.
    pub what: Payload,
    /// Index of the micro-batch.
    pub micro_batch: usize,
    /// The model part that uses it.
    pub part: usize,
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            what,
            micro_batch,
            part,
            ..
        } = self;
        write!(f, "{what} of micro-batch {micro_batch} for part {part}")
    }
}

impl Instruction {
    /// The receive that a pass needs, wherever it comes from. `None` for what is not a pass.
    pub(super) fn receive(&self) -> Option<Self> {
        let (what, micro_batch, chunk) = self.pass()?;
        Some(Self::Receive {
            what,
            micro_batch,
            chunk,
        })
    }

    /// The send that follows a pass, wherever it goes. `None` for what is not a pass.
    pub(super) fn send(&self) -> Option<Self> {
        let (what, micro_batch, chunk) = self.pass()?;
        Some(Self::Send {
            what,
            micro_batch,
            chunk,
        })
    }

    /// What a pass takes and makes, for which micro-batch and chunk.
    pub(super) fn pass(&self) -> Option<(Payload, usize, usize)> {
        match *self {
            Self::Forward { micro_batch, chunk } => Some((Payload::Activation, micro_batch, chunk)),
            Self::Backward { micro_batch, chunk } => Some((Payload::Gradient, micro_batch, chunk)),
            _ => None,
        }
    }
}
