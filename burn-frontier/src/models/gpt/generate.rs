//! Text from a trained model, whatever its layout.

use burn::tensor::DType;

use super::batch::TokenBatch;
use super::model::Pass;
use super::sharding::GptPart;
use crate::comm::Buffer;
use crate::comm::groups::Groups;
use crate::comm::tensor::to_buffer;
use crate::error::{Error, Result};
use crate::pipeline::activation::{self, Activation};
use crate::pipeline::stage::{Batch, Stage, StepContext};
use crate::random::Stream;

/// How tokens are drawn.
#[derive(Debug, Clone, Copy)]
pub struct Sampling<'a> {
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f64,
    /// Draws among this many likeliest tokens.
    pub top_k: usize,
    /// Seed of the draws.
    pub seed: u64,
    /// The ids that may be drawn: those of the tokenizer. A model's vocabulary may be larger.
    pub ids: &'a [u32],
}

/// Continues `prompt` by `count` tokens; every rank calls it and gets the same tokens. The model sees the last `sequence`.
///
/// # Communication
/// Activations along the pipeline for every token, then a broadcast of the token from the last stage.
///
/// # Errors
/// An empty prompt, tokens or a `sequence` that the model does not have, no id of the vocabulary that may be drawn, or
/// failed communication.
pub fn generate(
    parts: &[GptPart],
    groups: &Groups,
    prompt: &[u32],
    count: usize,
    sequence: usize,
    sampling: &Sampling<'_>,
) -> Result<Vec<u32>> {
    if prompt.is_empty() || sequence == 0 {
        return Err(Error::config(
            format!(
                "a prompt of {} tokens for a model that sees the last {sequence}",
                prompt.len()
            ),
            "give at least one token, and let it see one at least",
        ));
    }
    let mut tokens = prompt.to_vec();
    for i in 0..count {
        let seen = &tokens[tokens.len().saturating_sub(sequence)..];
        let logits = last_logits(parts, groups, seen, sequence)?;
        let token = match logits {
            Some(logits) => i64::from(draw(&logits, sampling, i as u64)?),
            None => 0,
        };
        let last = groups.layout.pp - 1;
        let token = groups.pp.broadcast(Buffer::I64(vec![token]), last)?;
        tokens.extend(token.into_i64()?.iter().map(|&t| t as u32));
    }
    Ok(tokens)
}

/// Logits behind the last token, on the last stage.
fn last_logits(
    parts: &[GptPart],
    groups: &Groups,
    seen: &[u32],
    sequence: usize,
) -> Result<Option<Vec<f32>>> {
    // Attention is causal, so what stands behind the last token does not matter.
    let mut tokens: Vec<i64> = seen.iter().map(|&t| i64::from(t)).collect();
    tokens.resize(sequence, 0);
    let batch = TokenBatch {
        targets: vec![-1; sequence],
        tokens,
        batch: 1,
        positions: vec![0],
    };
    batch.check()?;
    parts
        .iter()
        .try_for_each(|part| part.check(&batch, &StepContext::default()))?;
    let pass = Pass {
        seed: 0,
        step: None,
        samples: vec![0],
        recompute_attention: false,
    };
    let (stage, stages) = (groups.at.pp, groups.layout.pp);
    for (chunk, part) in parts.iter().enumerate() {
        let input = if chunk * stages + stage == 0 {
            None
        } else {
            let before = (stage + stages - 1) % stages;
            let mut received = activation::receive(&*groups.pp, before, &part.device())?;
            received.pop().map(Activation::tensor).transpose()?
        };
        let x = part.activations(input, &batch, &pass)?;
        match &part.head {
            Some(head) => {
                let row = head
                    .logits(x)?
                    .narrow(0, seen.len() - 1, 1)
                    .cast(DType::F32);
                groups.world.failure().map_or(Ok(()), Err)?;
                return to_buffer(row)?.into_f32().map(Some);
            }
            None => activation::send(&[x.into()], &*groups.pp, (stage + 1) % stages)?,
        }
    }
    Ok(None)
}

fn draw(logits: &[f32], sampling: &Sampling<'_>, index: u64) -> Result<u32> {
    let ids = sampling.ids.iter().map(|&id| id as usize);
    let mut order: Vec<usize> = ids.filter(|&id| id < logits.len()).collect();
    if order.is_empty() {
        return Err(Error::config(
            format!(
                "of {} ids that may be drawn, none is in the vocabulary of {}",
                sampling.ids.len(),
                logits.len()
            ),
            "give the ids of the tokenizer that the model was trained with",
        ));
    }
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    order.truncate(if sampling.temperature > 0.0 {
        sampling.top_k.max(1)
    } else {
        1
    });
    let best = f64::from(logits[order[0]]);
    let weight =
        |&i: &usize| ((f64::from(logits[i]) - best) / sampling.temperature.max(1e-9)).exp();
    let total: f64 = order.iter().map(weight).sum();
    let mut uniform = [0.0f32];
    Stream::new(sampling.seed, index, "generate").uniform(0, &mut uniform);
    let mut left = f64::from(uniform[0]) * total;
    for i in &order {
        left -= weight(i);
        if left < 0.0 {
            return Ok(*i as u32);
        }
    }
    Ok(order[0] as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_that_may_be_drawn_are_drawn() {
        // The likeliest ids are padding that no tokenizer knows, and a gap.
        let logits = [0.0, 9.0, 0.5, 1.0, 99.0, 99.0];
        for temperature in [0.0, 0.8] {
            let sampling = Sampling {
                temperature,
                top_k: 40,
                seed: 1,
                ids: &[0, 2, 3, 70],
            };
            for index in 0..200 {
                let id = draw(&logits, &sampling, index).unwrap();
                assert!([0, 2, 3].contains(&id), "{id}");
            }
            let nothing = Sampling {
                ids: &[70],
                ..sampling
            };
            let error = draw(&logits, &nothing, 0).unwrap_err().to_string();
            assert!(error.contains("none is in the vocabulary of 6"), "{error}");
        }
    }
}
