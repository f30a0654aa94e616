//! A GPT's parts as a pipeline runs them.

use burn::tensor::{Device, Tensor};

use super::model::Pass;
use super::sharding::GptPart;
use crate::error::{Error, Result};
use crate::pipeline::part::{Forward, MicroBatch, Output, PipelinePart, StepContext, Tape};
use crate::pipeline::segment::segment;
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
        batch: &MicroBatch,
        pass: &Pass,
    ) -> Result<Tensor<3>> {
        let x = match &self.embedding {
            Some(embedding) => embedding.forward(&batch.tokens, batch.batch, pass)?,
            None => needed(input)?,
        };
        let mut blocks = self.blocks.iter();
        blocks.try_fold(x, |x, block| block.forward(x, pass))
    }

    /// Device of the parameters.
    pub fn device(&self) -> Device {
        self.device.clone()
    }

    fn pass(batch: &MicroBatch, context: &StepContext) -> Pass {
        Pass {
            seed: context.seed,
            step: context.step,
            samples: batch.positions.clone(),
            recompute_attention: context.recompute == Recompute::Selective,
        }
    }
}

fn needed(input: Option<Tensor<3>>) -> Result<Tensor<3>> {
    input.ok_or_else(|| Error::Internal("a part or a piece of it was given no input".into()))
}

impl PipelinePart for GptPart {
    fn check(&self, batch: &MicroBatch) -> Result<()> {
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
        input: Option<Tensor<3>>,
        batch: &MicroBatch,
        context: &StepContext,
    ) -> Result<Forward> {
        let pass = Self::pass(batch, context);
        let full = context.recompute == Recompute::Full;
        let mut segments = Vec::new();
        let mut x = input;
        if let Some(embedding) = &self.embedding {
            let (tokens, n, pass) = (batch.tokens.clone(), batch.batch, pass.clone());
            let (y, back) = segment(embedding, None, false, move |embedding, _| {
                embedding.forward(&tokens, n, &pass)
            })?;
            segments.push(back);
            x = Some(y);
        }
        let mut x = needed(x)?;
        for block in &self.blocks {
            let pass = pass.clone();
            let (y, back) = segment(block, Some(x.clone()), full, move |block, x| {
                block.forward(needed(x)?, &pass)
            })?;
            segments.push(back);
            x = y;
        }
        let Some(head) = &self.head else {
            let tape = Tape {
                segments,
                loss: None,
                losses: None,
            };
            return Ok(Forward {
                output: Output::Activation(x),
                tape,
            });
        };
        let targets = batch.targets.clone();
        let (losses, back) = segment(head, Some(x), false, move |head, x| {
            head.loss(needed(x)?, &targets)
        })?;
        let tape = Tape {
            segments,
            loss: Some(back),
            losses: Some(batch.targets.len()),
        };
        Ok(Forward {
            output: Output::Losses(losses),
            tape,
        })
    }

    fn activation_shape(&self, batch: &MicroBatch) -> [usize; 3] {
        let tokens = batch.sequence() / self.sequence_split;
        [batch.batch, tokens, self.hidden]
    }
}
