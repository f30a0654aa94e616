//! What is to run: model, layout, schedule and switches; and whether it can.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::model::Planned;
use crate::error::{Error, Result};
use crate::mesh::Layout;
use crate::pipeline::micro_batches::count_micro_batches;
use crate::pipeline::schedule::{Kind, MAX_PASSES, Schedule};
use crate::precision::Precision;
use crate::recompute::Recompute;
use crate::zero::reducer::MAX_ZERO_STAGE;

/// Most tokens of a step: its counts stay exact, whatever they are multiplied with.
const MAX_TOKENS: u64 = 1 << 50;

/// Most elements of a micro-batch's largest activation, before it is split: more cannot be addressed.
const MAX_ELEMENTS: u128 = 1 << 60;

/// A training job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job<M> {
    /// The model.
    pub model: M,
    /// How the ranks share it.
    pub layout: Layout,
    /// Order of the pipeline's passes.
    pub schedule: Kind,
    /// Samples that go through the pipeline together.
    pub micro_batch: u64,
    /// Samples of a step.
    pub global_batch: u64,
    /// ZeRO stage.
    pub zero: u8,
    /// What is computed again in the backward pass.
    pub recompute: Recompute,
    /// Whether activations are split along the sequence between tensor-parallel regions.
    pub sequence_parallel: bool,
    /// Element type of parameters and activations.
    pub precision: Precision,
    /// Whether gradients are reduced beside the backward pass.
    pub overlap: bool,
    /// Whether attention is one kernel that never writes its scores (arXiv 2205.14135).
    pub fused_attention: bool,
    /// Whether the kernels are those of the CPU, which keep less for the backward pass: of the feed-forward block the argument of its
    /// nonlinearity alone, and queries and keys before their rotation.
    pub cpu_kernels: bool,
}

/// `tp 4 x pp 8 x dp 16, micro-batch 1, schedule 1f1b, ZeRO 1, recompute none`.
impl<M> fmt::Display for Job<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.layout)?;
        self.write_switches(f, &self.schedule)
    }
}

impl<M> Job<M> {
    /// All but the layout, with the name of the schedule.
    pub(super) fn write_switches(
        &self,
        f: &mut fmt::Formatter<'_>,
        schedule: &dyn fmt::Display,
    ) -> fmt::Result {
        write!(f, ", micro-batch {}, schedule {schedule}", self.micro_batch)?;
        write!(f, ", ZeRO {}, recompute {}", self.zero, self.recompute)?;
        if self.sequence_parallel {
            write!(f, ", sequence parallel")?;
        }
        Ok(())
    }
}

impl<M: Planned> Job<M> {
    /// `model` in `layout`: 1F1B, micro-batches of one sample, one for every stage, fp16, ZeRO 1, full recompute,
    /// overlapped reduction; scores are written to memory, and kernels are those of a GPU.
    pub fn new(model: M, layout: Layout) -> Self {
        Self {
            global_batch: (layout.dp * layout.pp) as u64,
            model,
            layout,
            schedule: Kind::OneForwardOneBackward,
            micro_batch: 1,
            zero: 1,
            recompute: Recompute::Full,
            sequence_parallel: false,
            precision: Precision::Fp16,
            overlap: true,
            fused_attention: false,
            cpu_kernels: false,
        }
    }

    /// Most micro-batches that a replica runs in a step; replicas differ by one at most.
    pub fn micro_batches(&self) -> usize {
        let share = self.global_batch.div_ceil(self.layout.dp.max(1) as u64);
        share.div_ceil(self.micro_batch.max(1)) as usize
    }

    /// Tokens of a micro-batch.
    pub fn micro_batch_tokens(&self) -> usize {
        self.micro_batch as usize * self.model.tokens()
    }

    /// Tokens of a step.
    pub fn tokens(&self) -> f64 {
        self.global_batch as f64 * self.model.tokens() as f64
    }

    /// Refuses what cannot run, before anything is allocated.
    ///
    /// # Errors
    /// The first thing that cannot work, with what would.
    pub fn validate(&self) -> Result<()> {
        let Self {
            model,
            layout,
            schedule,
            ..
        } = self;
        model.validate(layout, self.sequence_parallel)?;
        let chunks = schedule.chunks();
        let parts = layout.pp.checked_mul(chunks);
        if parts.is_none_or(|parts| parts > model.layers()) {
            return Err(Error::config(
                format!(
                    "{} layers cannot fill {} stages of {chunks} chunks",
                    model.layers(),
                    layout.pp
                ),
                format!(
                    "use pp {} or less, or the schedule 1f1b",
                    (model.layers() / chunks).max(1)
                ),
            ));
        }
        if self.zero > MAX_ZERO_STAGE {
            return Err(Error::config(
                format!("ZeRO {} is not there", self.zero),
                format!("use ZeRO 0 to {MAX_ZERO_STAGE}"),
            ));
        }
        self.validate_batch()
    }

    fn validate_batch(&self) -> Result<()> {
        let Self {
            model,
            layout,
            global_batch,
            micro_batch,
            ..
        } = self;
        if micro_batch > global_batch {
            return Err(Error::config(
                format!(
                    "a micro-batch of {micro_batch} samples is larger than the global batch of {global_batch}"
                ),
                format!("use a micro-batch of at most {global_batch}"),
            ));
        }
        let tokens = model.tokens() as u64;
        if global_batch
            .checked_mul(tokens)
            .is_none_or(|n| n > MAX_TOKENS)
        {
            return Err(Error::config(
                format!(
                    "{global_batch} samples of {tokens} tokens are more than 10^15 tokens a step"
                ),
                "use a smaller global batch or sequence",
            ));
        }
        let largest = model.largest_activation();
        if u128::from(*micro_batch).saturating_mul(largest) > MAX_ELEMENTS {
            return Err(Error::config(
                format!(
                    "a micro-batch of {micro_batch} samples of {tokens} tokens has activations of more than 10^18 elements"
                ),
                "use a smaller micro-batch, sequence or model",
            ));
        }
        // Replicas whose shares of the batch differ are the first and the last.
        for replica in [0, layout.dp - 1] {
            let count = count_micro_batches(*global_batch, *micro_batch, replica, layout.dp)?;
            let parts = (layout.pp * self.schedule.chunks()) as u64;
            if count
                .checked_mul(parts)
                .is_none_or(|n| n > MAX_PASSES as u64)
            {
                return Err(Error::config(
                    format!(
                        "a global batch of {global_batch} gives dp {} {count} micro-batches of {micro_batch} each, more than {parts} pipeline parts can run in a step",
                        layout.dp
                    ),
                    format!(
                        "use larger micro-batches, a smaller global batch or more replicas: at most {} micro-batches",
                        MAX_PASSES as u64 / parts
                    ),
                ));
            }
            Schedule::refuse(self.schedule, layout.pp, count as usize)?;
        }
        Ok(())
    }
}
