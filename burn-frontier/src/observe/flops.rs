//! Floating-point operations of a training step, each figure under its name.
//!
//! One multiply-add is two operations. Attention is counted in full, as the field does, although a causal mask needs
//! only half of it. Norms, activations, the optimizer and the token embedding are left out.
//!
//! - **Model FLOPs** are what the mathematics of one step needs: a forward pass and twice that for the backward pass.
//!   Divided by time and peak they give **MFU**.
//! - **Hardware FLOPs** add what activation recompute executes again. Divided by time and peak they give **HFU**. HFU is
//!   never below MFU, and equals it without recompute.
//!
//! Papers quote one or the other; compare them only under the same name.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::recompute::Recompute;

/// The numbers of a decoder-only transformer that decide its operation count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelShape {
    /// Transformer layers, `L`.
    pub layers: usize,
    /// Width of the residual stream, `h`.
    pub hidden: usize,
    /// Query heads; together they are `hidden` wide.
    pub heads: usize,
    /// Key and value heads; fewer than `heads` is grouped-query attention.
    pub kv_heads: usize,
    /// Inner width of the feed-forward block; `4 h` in GPT.
    pub ffn: usize,
    /// Whether the feed-forward block has a gate (SwiGLU): three matrices instead of two.
    pub gated: bool,
    /// Rows of the logits matrix, padding included, `V`.
    pub vocabulary: usize,
    /// Tokens in a sequence, `s`.
    pub sequence: usize,
}

impl ModelShape {
    /// A GPT as in the papers: multi-head attention and an ungated feed-forward block of `4 hidden`.
    pub const fn gpt(
        layers: usize,
        hidden: usize,
        heads: usize,
        vocabulary: usize,
        sequence: usize,
    ) -> Self {
        Self {
            layers,
            hidden,
            heads,
            kv_heads: heads,
            ffn: 4 * hidden,
            gated: false,
            vocabulary,
            sequence,
        }
    }

    /// Operations of a token.
    pub fn flops(&self, recompute: Recompute) -> Flops {
        Flops {
            model: model_flops_per_token(self),
            hardware: hardware_flops_per_token(self, recompute),
        }
    }
}

/// Forward operations per token of one layer's matrix products with weights: query, key, value, output, feed-forward.
fn layer_weights_forward(shape: &ModelShape) -> f64 {
    let hidden = shape.hidden as f64;
    let kv_width = hidden * shape.kv_heads as f64 / shape.heads as f64;
    let attention = 2.0 * hidden * hidden + 2.0 * hidden * kv_width;
    let matrices = if shape.gated { 3.0 } else { 2.0 };
    2.0 * (attention + matrices * hidden * shape.ffn as f64)
}

/// Forward operations per token of one layer's attention core: scores and weighted values over the full sequence.
fn attention_core_forward(shape: &ModelShape) -> f64 {
    4.0 * shape.sequence as f64 * shape.hidden as f64
}

/// Operations per token that the mathematics of a step needs: three times the forward pass of layers and logits.
///
/// Counts grouped-query attention and gated feed-forward blocks as they are.
pub fn model_flops_per_token(shape: &ModelShape) -> f64 {
    let layer = layer_weights_forward(shape) + attention_core_forward(shape);
    let logits = 2.0 * shape.hidden as f64 * shape.vocabulary as f64;
    3.0 * (shape.layers as f64 * layer + logits)
}

/// Operations per token that the hardware executes: [`model_flops_per_token`] and what `recompute` repeats.
pub fn hardware_flops_per_token(shape: &ModelShape, recompute: Recompute) -> f64 {
    let again = match recompute {
        Recompute::None => 0.0,
        Recompute::Selective => attention_core_forward(shape),
        Recompute::Full => layer_weights_forward(shape) + attention_core_forward(shape),
    };
    model_flops_per_token(shape) + shape.layers as f64 * again
}

/// Operations of one token, or of one sample of a model that knows no tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Flops {
    /// What the mathematics of a step needs.
    pub model: f64,
    /// What the hardware executes.
    pub hardware: f64,
}

/// Refuses a time or a number of ranks that no speed can be computed from.
fn check_clock(seconds: f64, ranks: usize) -> Result<()> {
    if seconds.is_finite() && seconds > 0.0 && ranks > 0 {
        return Ok(());
    }
    Err(Error::config(
        format!("no speed from {seconds} s on {ranks} ranks"),
        "measure a step that takes time, on at least one rank",
    ))
}

/// The share of the ranks' peak that `flops` operations in `seconds` make, `0..=1`. `peak` is in FLOP/s of one rank.
///
/// # Errors
/// A share above 1: either the count or the clock is wrong. Seconds, ranks or peak that are not positive.
pub fn utilization(flops: f64, seconds: f64, ranks: usize, peak: f64) -> Result<f64> {
    check_clock(seconds, ranks)?;
    if !(peak.is_finite() && peak > 0.0 && flops.is_finite() && flops >= 0.0) {
        return Err(Error::config(
            format!("no utilization from {flops} FLOP at a peak of {peak} FLOP/s"),
            "give a count and a peak that are positive and finite; a shape with 0 heads has no count",
        ));
    }
    let share = flops / (seconds * ranks as f64 * peak);
    if share > 1.0 {
        return Err(Error::config(
            format!(
                "{flops:.3e} FLOP in {seconds:.4} s on {ranks} ranks is {:.1} % of their peak of {:.1} TFLOP/s each, \
                 more than is possible: the count or the clock is wrong",
                100.0 * share,
                peak / 1e12
            ),
            "check the global batch, the micro-batch and the sequence length that were counted, wait for the device \
             before reading the clock, and check the peak for this precision",
        ));
    }
    Ok(share)
}

/// The speed of one step under all its names.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Throughput {
    /// Tokens per second of the whole job.
    pub tokens_per_second: f64,
    /// Tokens per second of one rank.
    pub tokens_per_second_per_rank: f64,
    /// Model FLOPs utilization, `0..=1`; none when the peak is unknown.
    pub mfu: Option<f64>,
    /// Hardware FLOPs utilization, `0..=1`; none when the peak is unknown.
    pub hfu: Option<f64>,
}

impl Throughput {
    /// The speed of a step that took `tokens` tokens of `flops` each through the model in `seconds` on `ranks` ranks, each with a peak
    /// of `peak` FLOP/s if that is known.
    ///
    /// # Errors
    /// As [`utilization`].
    pub fn measure(
        flops: Flops,
        tokens: u64,
        seconds: f64,
        ranks: usize,
        peak: Option<f64>,
    ) -> Result<Self> {
        check_clock(seconds, ranks)?;
        let share = |per_token: f64| {
            peak.map(|peak| utilization(tokens as f64 * per_token, seconds, ranks, peak))
                .transpose()
        };
        let tokens_per_second = tokens as f64 / seconds;
        Ok(Self {
            tokens_per_second,
            tokens_per_second_per_rank: tokens_per_second / ranks as f64,
            mfu: share(flops.model)?,
            hfu: share(flops.hardware)?,
        })
    }
}
