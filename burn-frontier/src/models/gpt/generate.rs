//! Text from a trained model, whatever its layout.

use burn::tensor::DType;

use super::model::Pass;
use super::sharding::GptPart;
use crate::comm::Buffer;
use crate::comm::groups::Groups;
use crate::error::{Error, Result};
use crate::ops::exchange::{from_buffer, to_buffer};
use crate::pipeline::part::{MicroBatch, PipelinePart};
use crate::random::Stream;

/// How tokens are drawn.
#[derive(Debug, Clone, Copy)]
pub struct Sampling {
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f64,
    /// Draws among this many likeliest tokens.
    pub top_k: usize,
    /// Seed of the draws.
    pub seed: u64,
}

/// Continues `prompt` by `count` tokens; every rank calls it and gets the same tokens. The model sees the last `sequence`.
///
/// # Communication
/// Activations along the pipeline for every token, then a broadcast of the token from the last stage.
///
/// # Errors
/// An empty prompt, tokens or a `sequence` that the model does not have, or failed communication.
pub fn generate(
    parts: &[GptPart],
    groups: &Groups,
    prompt: &[u32],
    count: usize,
    sequence: usize,
    sampling: &Sampling,
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
            Some(logits) => i64::from(draw(&logits, sampling, i as u64)),
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
    let batch = MicroBatch {
        targets: vec![-1; sequence],
        tokens,
        batch: 1,
        positions: vec![0],
    };
    batch.check()?;
    parts.iter().try_for_each(|part| part.check(&batch))?;
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
            let data = groups.pp.recv((stage + stages - 1) % stages)?;
            let device = part.device();
            Some(from_buffer(
                data,
                part.activation_shape(&batch).into(),
                &device,
            )?)
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
            None => groups.pp.send(to_buffer(x)?, (stage + 1) % stages)?,
        }
    }
    Ok(None)
}

fn draw(logits: &[f32], sampling: &Sampling, index: u64) -> u32 {
    let mut order: Vec<usize> = (0..logits.len()).collect();
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
            return *i as u32;
        }
    }
    order[0] as u32
}
