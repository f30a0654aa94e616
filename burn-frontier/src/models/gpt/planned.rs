//! What the planner asks a GPT: the work of its passes, and what they keep.

use super::specs::TOKEN_EMBEDDING;
use super::{Activation, GptConfig, Positions};
use crate::error::{Error, Result};
use crate::mesh::Layout;
use crate::observe::flops::{Flops, ModelShape};
use crate::parameter::ParameterSpec;
use crate::placement::Placement;
use crate::plan::machine::Program;
use crate::plan::model::Exchange;
use crate::plan::model::{Activations, AttentionWork, HeadWork, LayerWork, Planned, Share, Work};
use crate::recompute::Recompute;
use crate::tensor_parallel::embedding::VOCABULARY_MULTIPLE;

impl Planned for GptConfig {
    fn describe(&self) -> String {
        format!(
            "{} layers, hidden {}, {} heads, vocabulary {}, sequence {}",
            self.layers, self.hidden, self.heads, self.vocabulary, self.sequence
        )
    }

    fn first_specs(&self, gradient: &Placement) -> Vec<ParameterSpec> {
        self.declared(gradient).embedding().list()
    }

    fn layer_specs(&self, gradient: &Placement) -> Vec<ParameterSpec> {
        self.declared(gradient).block(0).list()
    }

    fn last_specs(&self, gradient: &Placement) -> Vec<ParameterSpec> {
        self.declared(gradient).head().list()
    }

    fn tied(&self) -> Option<&str> {
        self.tied.then_some(TOKEN_EMBEDDING)
    }

    fn layers(&self) -> usize {
        self.layers
    }

    fn tokens(&self) -> usize {
        self.sequence
    }

    fn width(&self) -> Option<usize> {
        Some(self.hidden)
    }

    fn parameters(&self) -> usize {
        self.parameters()
    }

    fn largest_activation(&self) -> u128 {
        let scores = self.heads as u128 * self.sequence as u128;
        let widest = scores
            .max(2 * self.ffn as u128)
            .max(self.vocabulary as u128);
        self.sequence as u128 * widest
    }

    fn flops(&self, recompute: Recompute, tp: usize) -> Flops {
        let shape = ModelShape {
            vocabulary: self.padded_vocabulary(tp),
            ..self.shape()
        };
        shape.flops(recompute)
    }

    fn validate(&self, layout: &Layout, sequence_parallel: bool) -> Result<()> {
        self.validate(layout, sequence_parallel)
    }

    fn on_context_rank(&self, ranks: usize, tp: usize, exchange: Exchange) -> Result<Self> {
        if ranks > 1 && !self.sequence.is_multiple_of(2 * ranks) {
            return Err(Error::config(
                format!(
                    "a sequence of {} cannot be cut into {} equal blocks, two for each of {ranks} context-parallel ranks",
                    self.sequence,
                    2 * ranks
                ),
                format!("use a sequence that is a multiple of {}", 2 * ranks),
            ));
        }
        let divides = |heads: usize| heads.is_multiple_of(tp.max(1) * ranks);
        if exchange == Exchange::Ulysses && !(divides(self.heads) && divides(self.kv_heads)) {
            return Err(Error::config(
                format!(
                    "{} attention heads ({} for keys and values) cannot be split over tp {tp} and {ranks} context-parallel ranks",
                    self.heads, self.kv_heads
                ),
                "use the ring, or fewer ranks",
            ));
        }
        Ok(Self {
            sequence: self.sequence / ranks,
            ..self.clone()
        })
    }

    fn work(&self, share: &Share) -> Work {
        let (tokens, h) = (share.tokens as f64, self.hidden as f64);
        let columns = self.padded_vocabulary(share.tp) as f64 / share.tp as f64;
        Work {
            layer: self.layer_work(share),
            stream: tokens * h * share.element,
            embedding: Some(6.0 * tokens * h * share.element),
            head: Some(HeadWork {
                matrix: (h, columns),
                // In fp32.
                loss_bytes: 20.0 * tokens * columns,
            }),
        }
    }

    fn activations(&self, share: &Share) -> Activations {
        let sizes = Sizes::new(self, share);
        let kept = sizes.kept();
        Activations {
            handed_on: sizes.between,
            layer: match share.recompute {
                Recompute::None => kept + sizes.kept_scores(),
                Recompute::Selective => kept,
                Recompute::Full => sizes.between,
            },
            backward: sizes.backward(),
            exchanged: sizes.exchanged(),
            weight: sizes.weight(),
            loss: 4.0 * sizes.logits(),
            head: sizes.head(),
        }
    }
}

impl GptConfig {
    /// Rows of the logits matrix over all tensor-parallel ranks, padding included.
    fn padded_vocabulary(&self, tp: usize) -> usize {
        self.vocabulary.next_multiple_of(VOCABULARY_MULTIPLE * tp)
    }

    /// Elements of a token's keys and values together.
    fn key_value_width(&self) -> usize {
        2 * self.kv_heads * self.head_dim()
    }

    fn layer_work(&self, share: &Share) -> LayerWork {
        let (tokens, t) = (share.tokens as f64, share.tp as f64);
        let (h, ffn) = (self.hidden as f64, self.ffn as f64);
        let kv = self.key_value_width() as f64;
        let wide = ffn / h;
        // Elements moved per token and hidden: by the activation, forward and backward.
        let (up, forward, backward) = match self.activation {
            Activation::Gelu => (ffn, 2.0 * wide, 3.0 * wide),
            Activation::Swiglu => (2.0 * ffn, 3.0 * wide, 5.0 * wide),
        };
        // Two norms and two residuals with dropout; transposes beside the activation.
        let moved = |between: f64, inside: f64| {
            (between / share.sequence_split() + inside / t) * tokens * h * share.element
        };
        LayerWork {
            matrices: vec![(h, (h + kv) / t), (h / t, h), (h, up / t), (ffn / t, h)],
            attention: Some(AttentionWork {
                scores: tokens * self.sequence as f64 * self.heads as f64 / t,
                head_dim: self.head_dim() as f64,
                queries: tokens * h / t,
                key_value: tokens * kv / t,
            }),
            flops: 0.0,
            forward_bytes: moved(11.0, forward + 2.0),
            backward_bytes: moved(23.0, backward + 10.0),
            kernels: 1.0,
        }
    }
}

/// Bytes of a micro-batch's tensors on one rank.
struct Sizes<'a> {
    model: &'a GptConfig,
    share: &'a Share,
    /// Activations between tensor-parallel regions.
    between: f64,
    /// The same inside of them, for one hidden size: split over tp.
    inside: f64,
    /// A tensor that every rank holds whole.
    whole: f64,
    /// All scores.
    scores: f64,
}

impl<'a> Sizes<'a> {
    fn new(model: &'a GptConfig, share: &'a Share) -> Self {
        let (tokens, tp) = (share.tokens as f64, share.tp as f64);
        let whole = tokens * model.hidden as f64 * share.element;
        let scores = tokens * (model.sequence * model.heads) as f64;
        Self {
            model,
            share,
            between: whole / share.sequence_split(),
            inside: whole / tp,
            whole,
            scores: scores * share.element / tp,
        }
    }

    fn ours(&self) -> bool {
        self.share.program == Program::BurnFrontier
    }

    /// Width of the feed-forward block's first product and of its activation, in hidden sizes.
    fn widths(&self) -> (f64, f64) {
        let wide = self.model.ffn as f64 / self.model.hidden as f64;
        match self.model.activation {
            Activation::Gelu => (wide, wide),
            Activation::Swiglu => (2.0 * wide, wide),
        }
    }

    /// Keys and values, in hidden sizes.
    fn key_value(&self) -> f64 {
        2.0 * self.model.kv_heads as f64 / self.model.heads as f64
    }

    /// A dropout mask of a tensor of `bytes`.
    fn mask(&self, bytes: f64) -> f64 {
        if self.model.dropout <= 0.0 {
            0.0
        } else if self.ours() {
            bytes
        } else {
            bytes / self.share.element
        }
    }

    /// What a layer keeps of a micro-batch when nothing is recomputed, its input included, scores apart.
    ///
    /// Source: arXiv 2205.05198, section 4.1, for Megatron: 34 s b h bytes with dropout.
    fn kept(&self) -> f64 {
        let (up, activated) = self.widths();
        // Inputs of both norms, and both norms' outputs, which column-parallel products keep.
        let outputs = if self.share.sequence_parallel && self.ours() {
            self.whole
        } else {
            self.between
        };
        if self.cpu_kernels() {
            return self.kept_on_a_cpu(outputs);
        }
        2.0 * self.between
            + 2.0 * outputs
            + 2.0 * self.mask(self.between)
            + (1.0 + self.key_value() + self.rotated() + 1.0 + up + activated) * self.inside
    }

    /// The same by the CPU's kernels. In half precision what is around a product is in fp32: the inputs of the norms, queries, keys,
    /// values, and what comes of them, which the projection keeps besides as it is.
    fn kept_on_a_cpu(&self, outputs: f64) -> f64 {
        let (up, _) = self.widths();
        let wide = 4.0 / self.share.element;
        let context = if wide > 1.0 { 1.0 + wide } else { 1.0 };
        2.0 * wide * self.between
            + 2.0 * outputs
            + ((1.0 + self.key_value()) * wide + context + up) * self.inside
    }

    fn cpu_kernels(&self) -> bool {
        self.ours() && self.share.cpu_kernels
    }

    /// Rotated queries and keys beside the plain ones, in hidden sizes.
    fn rotated(&self) -> f64 {
        match self.model.positions {
            Positions::Rotary => 1.0 + self.key_value() / 2.0,
            Positions::Learned => 0.0,
        }
    }

    /// What attention keeps of its scores: probabilities, and with dropout its mask and what it left.
    fn kept_scores(&self) -> f64 {
        if self.share.fused_attention {
            return 0.0;
        }
        let dropped = if self.model.dropout > 0.0 && !self.ours() {
            self.scores
        } else {
            0.0
        };
        self.scores + self.mask(self.scores) + dropped
    }

    /// What the backward pass of one layer needs besides what was kept.
    fn backward(&self) -> f64 {
        let (up, activated) = self.widths();
        let (recomputed, scores) = match self.share.recompute {
            Recompute::None => (0.0, 0.0),
            Recompute::Selective => (0.0, self.kept_scores()),
            Recompute::Full => (self.kept() - self.between + self.kept_scores(), 0.0),
        };
        let temporary = if self.share.fused_attention {
            0.0
        } else {
            2.0 * self.scores
        };
        if !self.ours() {
            // Gradients on both sides of the activation, or of the scores, beside that of the residual stream.
            let mlp = (up + activated) * self.inside;
            return recomputed + mlp.max(temporary + scores) + 2.0 * self.between;
        }
        if self.cpu_kernels() {
            // The gradient of the activation's argument; its value is had again, of GELU in the argument's place. Of SwiGLU there is the
            // gradient of the value too. What tensor-parallel ranks sum is there, and a message.
            let again = if up > activated { 2.0 * activated } else { 0.0 };
            let summed = if self.share.tp > 1 {
                2.0 * self.whole
            } else {
                0.0
            };
            return recomputed + (up + again) * self.inside + 2.0 * self.between + summed;
        }
        // Ours writes the gradient of the activation's argument over that of its value (SwiGLU's is larger) when the value has
        // been let go; attention has copies of queries, keys and values when the whole feed-forward block has been.
        let mlp = (up - activated) * self.inside + 2.0 * self.between;
        let freed = (up + activated - 2.5) * self.inside;
        let attention = temporary + scores - freed;
        recomputed + mlp.max(attention)
    }

    /// Keys, values and their gradients on their way between context-parallel ranks.
    fn exchanged(&self) -> f64 {
        let kv = self.key_value() * self.inside;
        match self.share.exchange {
            _ if self.share.context == 1 => 0.0,
            // The block that is worked on and the next one; their gradients are summed in fp32.
            Exchange::Ring => 2.0 * kv * (1.0 + 4.0 / self.share.element),
            // Queries, keys and values before and after.
            Exchange::Ulysses => self.inside + kv,
        }
    }

    /// What a layer's gradients of weights need: the inputs of its four products, and the gradients of their outputs.
    fn weight(&self) -> f64 {
        let (up, activated) = self.widths();
        let inputs = 2.0 * self.between + (1.0 + activated) * self.inside;
        let gradients = 2.0 * self.between + (1.0 + self.key_value() + up) * self.inside;
        inputs + gradients
    }

    /// Elements of the logits.
    fn logits(&self) -> f64 {
        let tp = self.share.tp;
        let columns = self.model.padded_vocabulary(tp) as f64 / tp as f64;
        self.share.tokens as f64 * columns
    }

    /// What the head needs from logits to their gradient, in fp32. Ours also has the gradient of the head's weight before it is added
    /// to the others', when one of the two is gone; in half precision the logits and their gradient are there besides.
    fn head(&self) -> f64 {
        let logits = 4.0 * self.logits();
        let columns = self.logits() / self.share.tokens as f64;
        let weight = match self.ours() {
            true => columns * self.model.hidden as f64 * self.share.element,
            false => 0.0,
        };
        let both = if self.share.element < 4.0 {
            3.0 * logits + weight
        } else if self.cpu_kernels() {
            // The gradient is written over the logits, and that of the weight where its sum lies.
            logits
        } else {
            logits + logits.max(weight)
        };
        both + self.between
    }
}
