//! How many bytes every stage needs, by kind.

use serde::{Deserialize, Serialize};

use super::job::Job;
use super::layer::padded_vocabulary;
use super::machine::{Machine, Program};
use super::parameters::{self, StageParameters};
use super::what_if::{Exchange, WhatIf};
use crate::error::Result;
use crate::models::gpt::{Activation, Positions};
use crate::recompute::Recompute;

/// Bytes of one rank of a stage when it needs most.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct StageMemory {
    /// Parameters.
    pub weights: f64,
    /// Sums of gradients.
    pub gradients: f64,
    /// Moments, and master weights of half-precision parameters.
    pub optimizer: f64,
    /// What forward passes keep for their backward passes.
    pub activations: f64,
    /// What a backward pass needs besides, and the messages between stages.
    pub working: f64,
    /// Flat gradients and parameters on their way over the replicas.
    pub communication: f64,
    /// What the allocator wastes.
    pub allocator: f64,
}

impl StageMemory {
    /// Names and bytes of all kinds.
    pub const fn kinds(&self) -> [(&'static str, f64); 7] {
        [
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("optimizer", self.optimizer),
            ("activations", self.activations),
            ("working set", self.working),
            ("communication", self.communication),
            ("allocator", self.allocator),
        ]
    }

    /// All bytes.
    pub fn bytes(&self) -> f64 {
        self.kinds().iter().map(|(_, bytes)| bytes).sum()
    }
}

/// The memory of every stage of `job` on `machine`.
///
/// # Errors
/// A job that cannot run.
pub fn stages(job: &Job, machine: &Machine) -> Result<Vec<StageMemory>> {
    job.validate()?;
    let plain = WhatIf::from(job.clone());
    Ok(stages_of(&plain, machine, &parameters::stages(&plain)?))
}

pub(super) fn stages_of(
    what_if: &WhatIf,
    machine: &Machine,
    stages: &[StageParameters],
) -> Vec<StageMemory> {
    let pieces = Pieces::new(what_if, machine);
    stages
        .iter()
        .enumerate()
        .map(|(stage, parameters)| pieces.stage(stage, parameters))
        .collect()
}

/// Sizes that the stages share.
struct Pieces<'a> {
    what_if: &'a WhatIf,
    job: &'a Job,
    machine: &'a Machine,
    /// Bytes of an element.
    element: f64,
    /// Bytes of the activations of a micro-batch between tensor-parallel regions, on one rank.
    between: f64,
    /// The same inside of them, for one hidden size: split over tp.
    inside: f64,
    /// The same of a tensor that every rank holds whole.
    whole: f64,
    /// Bytes of all scores.
    scores: f64,
}

impl<'a> Pieces<'a> {
    fn new(what_if: &'a WhatIf, machine: &'a Machine) -> Self {
        let job = &what_if.job;
        let model = &job.model;
        let (tokens, tp) = (what_if.tokens() as f64, job.layout.tp as f64);
        let element = job.precision.bytes();
        let whole = tokens * model.hidden as f64 * element;
        Self {
            what_if,
            job,
            machine,
            element,
            between: whole / job.sequence_split(),
            inside: whole / tp,
            whole,
            scores: tokens * (model.sequence * model.heads) as f64 * element / tp,
        }
    }

    fn ours(&self) -> bool {
        self.machine.software.program == Program::BurnFrontier
    }

    /// Width of the feed-forward block's first product and of its activation, in hidden sizes.
    fn widths(&self) -> (f64, f64) {
        let model = &self.job.model;
        let wide = model.ffn as f64 / model.hidden as f64;
        match model.activation {
            Activation::Gelu => (wide, wide),
            Activation::Swiglu => (2.0 * wide, wide),
        }
    }

    /// Keys and values, in hidden sizes.
    fn key_value(&self) -> f64 {
        2.0 * self.job.model.kv_heads as f64 / self.job.model.heads as f64
    }

    /// Bytes of a dropout mask of a tensor of `bytes`.
    fn mask(&self, bytes: f64) -> f64 {
        if self.job.model.dropout <= 0.0 {
            0.0
        } else if self.ours() {
            bytes
        } else {
            bytes / self.element
        }
    }

    /// What a layer keeps of a micro-batch when nothing is recomputed, its input included, scores apart.
    ///
    /// Source: arXiv 2205.05198, section 4.1, for Megatron: 34 s b h bytes with dropout.
    fn kept(&self) -> f64 {
        let (up, activated) = self.widths();
        // Inputs of both norms, and both norms' outputs, which column-parallel products keep.
        let outputs = if self.job.sequence_parallel && self.ours() {
            self.whole
        } else {
            self.between
        };
        2.0 * self.between
            + 2.0 * outputs
            + 2.0 * self.mask(self.between)
            + (1.0 + self.key_value() + self.rotated() + 1.0 + up + activated) * self.inside
    }

    /// Rotated queries and keys beside the plain ones, in hidden sizes.
    fn rotated(&self) -> f64 {
        match self.job.model.positions {
            Positions::Rotary => 1.0 + self.key_value() / 2.0,
            Positions::Learned => 0.0,
        }
    }

    /// What attention keeps of its scores: probabilities, and with dropout its mask and what it left.
    fn kept_scores(&self) -> f64 {
        if self.job.fused_attention {
            return 0.0;
        }
        let dropped = if self.job.model.dropout > 0.0 && !self.ours() {
            self.scores
        } else {
            0.0
        };
        self.scores + self.mask(self.scores) + dropped
    }

    /// What one layer keeps of one micro-batch until its backward pass.
    fn layer(&self) -> f64 {
        match self.job.recompute {
            Recompute::None => self.kept() + self.kept_scores(),
            Recompute::Selective => self.kept(),
            Recompute::Full => self.between,
        }
    }

    /// What the backward pass of one layer needs besides what was kept.
    fn backward(&self) -> f64 {
        let (up, activated) = self.widths();
        let (recomputed, scores) = match self.job.recompute {
            Recompute::None => (0.0, 0.0),
            Recompute::Selective => (0.0, self.kept_scores()),
            Recompute::Full => (self.kept() - self.between + self.kept_scores(), 0.0),
        };
        let temporary = if self.job.fused_attention {
            0.0
        } else {
            2.0 * self.scores
        };
        if !self.ours() {
            // Gradients on both sides of the activation, or of the scores, beside that of the residual stream.
            let mlp = (up + activated) * self.inside;
            return recomputed + mlp.max(temporary + scores) + 2.0 * self.between;
        }
        // Ours writes the gradient of the activation's argument over that of its value (SwiGLU's is larger) when the value has
        // been let go; attention has copies of queries, keys and values when the whole feed-forward block has been.
        let mlp = (up - activated) * self.inside + 2.0 * self.between;
        let freed = (up + activated - 2.5) * self.inside;
        let attention = temporary + scores - freed;
        recomputed + mlp.max(attention)
    }

    /// Logits of a micro-batch on one rank.
    fn logits(&self) -> f64 {
        let columns = padded_vocabulary(self.job) as f64 / self.job.layout.tp as f64;
        self.what_if.tokens() as f64 * columns
    }

    /// What the head needs from logits to their gradient, in fp32; in half precision the logits and their gradient besides.
    /// Ours also has the gradient of the head's weight before it is added to the others'.
    fn head(&self) -> f64 {
        let half = if self.job.precision.is_half() {
            4.0
        } else {
            0.0
        };
        let columns = self.logits() / self.what_if.tokens() as f64;
        let weight = match self.ours() {
            true => columns * self.job.model.hidden as f64 * self.element,
            false => 0.0,
        };
        self.logits() * (8.0 + half) + self.between + weight
    }

    /// The stage when it needs most: in its passes, or while gradients are reduced and parameters updated.
    fn stage(&self, stage: usize, parameters: &StageParameters) -> StageMemory {
        let state = self.state(parameters);
        let (passes, update) = (
            self.passes(stage, parameters, state),
            self.update(parameters, state),
        );
        let mut memory = if update.bytes() > passes.bytes() {
            update
        } else {
            passes
        };
        memory.allocator = memory.bytes() * self.machine.device.allocator_overhead;
        memory
    }

    /// Replicas over which something is split from ZeRO stage `from` on.
    fn split(&self, from: u8) -> f64 {
        if self.job.zero >= from {
            self.what_if.replicas() as f64
        } else {
            1.0
        }
    }

    /// What stays from step to step, and the gradients.
    fn state(&self, parameters: &StageParameters) -> StageMemory {
        let state = if self.job.precision.is_half() {
            12.0
        } else {
            8.0
        };
        let gradient = self.machine.software.gradient_bytes;
        StageMemory {
            weights: parameters.count * self.element / self.split(3),
            gradients: parameters.count * gradient / self.split(2),
            optimizer: parameters.bucketed * state / self.split(1),
            ..StageMemory::default()
        }
    }

    fn passes(
        &self,
        stage: usize,
        parameters: &StageParameters,
        state: StageMemory,
    ) -> StageMemory {
        let job = self.job;
        let alive = job
            .schedule
            .activations_alive(job.layout.pp, stage, job.micro_batches());
        let alive = alive as f64;
        let chunks = parameters.layers.len() as f64;
        let layers = parameters.layers.iter().sum::<usize>() as f64;
        // Ours sends the tensors themselves: an input that is kept, a gradient that the passes count.
        let messages = if job.layout.pp > 1 && !self.ours() {
            2.0 * self.between
        } else {
            0.0
        };
        let layer = self.layer();
        let mut kept = layers / chunks * layer * alive;
        let mut working = self.backward() + self.exchanged();
        if self.what_if.zero_bubble {
            // Each input gradient leaves what gradients of weights need, for as many micro-batches as they wait.
            let (weight, late) = (self.weight(), stage.min(job.micro_batches()) as f64);
            kept += layers * (weight * late + (weight - layer).max(0.0));
        }
        if parameters.last {
            // The logits of micro-batches whose backward pass is not the next.
            kept += 4.0 * self.logits() * (alive / chunks - 1.0).max(0.0);
            working = working.max(self.head());
        }
        StageMemory {
            activations: kept,
            working: working + messages,
            communication: self.sharded(parameters, &state),
            ..state
        }
    }

    /// Keys, values and their gradients on their way between context-parallel ranks.
    fn exchanged(&self) -> f64 {
        let kv = self.key_value() * self.inside;
        match self.what_if.exchange {
            _ if self.what_if.context == 1 => 0.0,
            // The block that is worked on and the next one; their gradients are summed in fp32.
            Exchange::Ring => 2.0 * kv * (1.0 + 4.0 / self.element),
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

    /// With ZeRO 2, gradients that have not left for their owners: a bucket, and the next beside it if that overlaps. With
    /// ZeRO 3 also the parameters of two layers. Never more than what stays where it is otherwise.
    fn sharded(&self, parameters: &StageParameters, state: &StageMemory) -> f64 {
        let mut bytes = 0.0;
        if self.job.zero > 1 {
            let one = self.machine.software.gradient_bytes;
            let buckets = if self.job.overlap { 2.0 } else { 1.0 };
            let whole = parameters.count * one - state.gradients;
            bytes += (buckets * parameters.largest_bucket * one).min(whole);
        }
        if self.job.zero > 2 {
            let layers = parameters.layers.iter().sum::<usize>() as f64;
            let largest = parameters
                .ends
                .max((parameters.count - parameters.ends) / layers);
            let whole = parameters.count * self.element - state.weights;
            bytes += (2.0 * largest * self.element).min(whole);
        }
        bytes
    }

    fn update(&self, parameters: &StageParameters, state: StageMemory) -> StageMemory {
        let (gradients, bucket) = (state.gradients, parameters.largest_bucket);
        let mut update = state;
        if !self.ours() {
            // Gradients in fp32 for the update of the parameters that a rank owns.
            update.communication = 4.0 * parameters.bucketed / self.split(1);
            return update;
        }
        // A bucket's gradients side by side before they are reduced; then its parameters, before and after their update.
        let reduce = gradients + 4.0 * bucket;
        let split = self.split(1) > 1.0;
        let left = self.split(1) / self.split(2);
        let step = gradients / left + if split { 8.0 } else { 4.0 } * bucket;
        update.communication = reduce.max(step) - gradients;
        update
    }
}
