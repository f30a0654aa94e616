//! What a pipeline needs to know of a model: how one stage of it goes forward and back.

use burn::tensor::Tensor;

use super::activation::Activation;
use super::segment::BackwardFn;
use crate::comm::groups::Groups;
use crate::error::{Error, Result};
use crate::parameter::{Module, ParameterGradient, Selection, State};
use crate::recompute::Recompute;

/// Samples that go through a model together, of any type: a micro-batch.
pub trait Batch {
    /// What the sum of the losses is divided by, added up over the global batch: samples, tokens, atoms.
    fn count(&self) -> u64;

    /// Where each sample stands in the global batch. Random numbers are a function of it.
    fn samples(&self) -> &[u64];

    /// Fails unless the micro-batch is whole in itself.
    ///
    /// # Errors
    /// What does not fit.
    fn check(&self) -> Result<()> {
        Ok(())
    }
}

/// What a pass over a global batch is done for. The default is an evaluation.
#[derive(Debug, Clone, Default)]
pub struct StepContext {
    /// Seed of the run, for random numbers.
    pub seed: u64,
    /// Step, for random numbers; `None` outside training.
    pub step: Option<u64>,
    /// What is computed again in the backward pass.
    pub recompute: Recompute,
    /// Parameters that get gradients.
    pub trained: Selection,
}

/// A stage of a model, or one chunk of it: consecutive layers. The first takes its input from the batch, the last gives losses.
pub trait Stage: Module {
    /// A micro-batch. Every stage is given it.
    type Batch: Batch;

    /// Fails unless the model can take a micro-batch that is whole in itself ([`Batch::check`]), for a pass of this kind.
    /// Every stage is asked before anything is communicated, so all of a model's stages answer alike.
    ///
    /// # Errors
    /// What the model cannot take.
    fn check(&self, _batch: &Self::Batch, _context: &StepContext) -> Result<()> {
        Ok(())
    }

    /// Fails unless training this stage gives one rank's answer in any layout. Asked once, on every rank, before training.
    ///
    /// # Communication
    /// What the check needs, over the replicas.
    ///
    /// # Errors
    /// What does not, by name, with what to use in its place.
    fn check_training(&self, _groups: &Groups) -> Result<()> {
        Ok(())
    }

    /// Whether it is a user's code, which may draw from the process's random generator.
    fn may_draw(&self) -> bool {
        false
    }

    /// What should have changed its state in a training pass and has not: paths of layers. `before`: the state before it.
    ///
    /// # Errors
    /// A device that cannot be read.
    fn asleep(&self, _before: &[State]) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Whether a forward pass communicates over the replicas, which then need as many micro-batches each.
    fn synchronises(&self) -> bool {
        false
    }

    /// Goes forward. `input` is what the stage before gave, nothing for the first.
    ///
    /// # Errors
    /// Another input than the stage needs, or a micro-batch that is not of the model's shape.
    fn forward(
        &self,
        input: Vec<Activation>,
        batch: &Self::Batch,
        context: &StepContext,
    ) -> Result<Forward>;
}

/// What a stage gives.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one a pass, and a box would be one more thing to write in a model"
)]
pub enum Output {
    /// Activations for the next stage.
    Activations(Vec<Activation>),
    /// Losses `[any number]`, of which the sum counts.
    Losses(Tensor<1>),
}

/// Result of a forward pass: the value, without autodiff, and the way back.
pub struct Forward {
    /// The value.
    pub output: Output,
    /// The way back.
    pub tape: Tape,
}

/// The way back through a stage: through its pieces, in forward order. None after an evaluation.
#[derive(Default)]
pub struct Tape(pub Vec<BackwardFn>);

impl Tape {
    /// Goes back from the gradients of the stage's output, handing each piece's parameter gradients to `sink` as they come.
    /// Gives the gradients of the stage's input.
    ///
    /// # Errors
    /// Those of `sink` and of the pieces; a pass that was an evaluation.
    pub fn backward(
        self,
        gradients: Vec<Activation>,
        sink: &mut dyn FnMut(Vec<ParameterGradient>) -> Result<()>,
    ) -> Result<Vec<Activation>> {
        if self.0.is_empty() {
            return Err(Error::Internal("an evaluation has no way back".into()));
        }
        let mut gradients = gradients;
        for segment in self.0.into_iter().rev() {
            let piece = segment(gradients)?;
            sink(piece.parameters)?;
            gradients = piece.inputs;
        }
        Ok(gradients)
    }
}
