//! A GPT's parts as a pipeline runs them.

use burn::tensor::{Device, Tensor};

use super::batch::TokenBatch;
use super::model::{Embedding, Pass};
use super::sharding::GptPart;
use crate::error::{Error, Result};
use crate::pipeline::activation::Activation;
use crate::pipeline::segment::segment;
use crate::pipeline::stage::{Forward, Output, Stage, StepContext, Tape};
use crate::recompute::Recompute;
use crate::tensor_parallel::embedding::{check_split, check_tokens};

impl GptPart {
    /// Activations behind the last block, or in front of the head.
    ///
    /// # Errors
    /// No input for a part without embedding, or a micro-batch that is not of the model's shape.
    pub fn activations(
        &self,
        input: Option<Tensor<3>>,
        batch: &TokenBatch,
        pass: &Pass,
    ) -> Result<Tensor<3>> {
        let x = match &self.embedding {
            Some(embedding) => embedding.forward(&batch.tokens, batch.batch, pass)?,
            None => needed(input)?,
        };
        let mut blocks = self.blocks.iter();
        blocks.try_fold(x, |x, block| block.forward(x, pass))
    }

    /// Shape of the activations that parts hand on for a micro-batch.
    pub fn activation_shape(&self, batch: &TokenBatch) -> [usize; 3] {
        let tokens = batch.sequence() / self.sequence_split;
        [batch.batch, tokens, self.hidden]
    }

    /// Device of the parameters.
    pub fn device(&self) -> Device {
        self.device.clone()
    }

    fn pass(batch: &TokenBatch, context: &StepContext) -> Pass {
        Pass {
            seed: context.seed,
            step: context.step,
            samples: batch.positions.clone(),
            recompute_attention: context.recompute == Recompute::Selective,
        }
    }
}

fn needed<T>(input: Option<T>) -> Result<T> {
    input.ok_or_else(|| Error::Internal("a part or a piece of it was given no input".into()))
}

/// The one tensor that goes from piece to piece.
fn one(mut input: Vec<Activation>) -> Result<Tensor<3>> {
    needed(input.pop())?.tensor()
}

impl Stage for GptPart {
    type Batch = TokenBatch;

    fn check(&self, batch: &TokenBatch, _context: &StepContext) -> Result<()> {
        let tokens = batch.sequence();
        if tokens > self.sequence {
            return Err(Error::config(
                format!(
                    "a sample of {tokens} tokens, and the model has {} positions",
                    self.sequence
                ),
                "shorten the samples, or give the model a longer sequence",
            ));
        }
        check_split(tokens, self.sequence_split)?;
        let targets = batch.targets.iter().filter(|&&target| target >= 0);
        check_tokens(batch.tokens.iter().chain(targets), self.vocabulary)
    }

    fn forward(
        &self,
        input: Vec<Activation>,
        batch: &TokenBatch,
        context: &StepContext,
    ) -> Result<Forward> {
        let pass = Self::pass(batch, context);
        let (full, trained) = (context.recompute == Recompute::Full, &context.trained);
        let mut segments = Vec::new();
        let mut x = input;
        if let Some(embedding) = &self.embedding {
            let (tokens, n, pass) = (batch.tokens.clone(), batch.batch, pass.clone());
            let embed = move |embedding: &Embedding, _| {
                Ok(vec![embedding.forward(&tokens, n, &pass)?.into()])
            };
            let (y, back) = segment(embedding, Vec::new(), false, trained, embed)?;
            segments.push(back);
            x = y;
        }
        for block in &self.blocks {
            let pass = pass.clone();
            let (y, back) = segment(block, x, full, trained, move |block, x| {
                Ok(vec![block.forward(one(x)?, &pass)?.into()])
            })?;
            segments.push(back);
            x = y;
        }
        let output = match &self.head {
            None => Output::Activations(x),
            Some(head) => {
                let targets = batch.targets.clone();
                let (losses, back) = segment(head, x, false, trained, move |head, x| {
                    Ok(vec![head.loss(one(x)?, &targets)?.into()])
                })?;
                segments.push(back);
                Output::Losses(needed(losses.into_iter().next())?.tensor()?)
            }
        };
        let tape = Tape(segments);
        Ok(Forward { output, tape })
    }
}
