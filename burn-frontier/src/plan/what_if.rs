//! A job with what this runtime does not have yet: context parallelism, ZeRO stages 2 and 3, the schedule ZB-H1.
//!
//! Memory and time are computed of a [`WhatIf`]; a [`Job`] is one that lacks nothing. The trainer takes jobs only, and its
//! validation knows nothing of this file: what the runtime cannot execute is refused there as before.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::job::Job;
use super::machine::{Group, Machine};
use super::model::{Exchange, Planned, Share};
use crate::error::{Error, Result};
use crate::mesh::MAX_RANKS;
use crate::pipeline::schedule::Kind;
use crate::zero::reducer::MAX_ZERO_STAGE;

/// The highest ZeRO stage there is (arXiv 1910.02054).
pub const HIGHEST_ZERO: u8 = 3;

/// Something that this runtime does not have yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lack {
    /// Ranks that share every sequence.
    ContextParallel,
    /// Gradients split over the replicas.
    Zero2,
    /// Parameters split over the replicas.
    Zero3,
    /// Weight gradients apart from input gradients.
    ZeroBubble,
}

impl Lack {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::ContextParallel,
        Self::Zero2,
        Self::Zero3,
        Self::ZeroBubble,
    ];
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::ContextParallel => "context parallelism",
            Self::Zero2 => "ZeRO 2",
            Self::Zero3 => "ZeRO 3",
            Self::ZeroBubble => "schedule ZB-H1",
        })
    }
}

/// A job, and what it would use besides what the runtime has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WhatIf<M> {
    /// The job; its ZeRO stage may be 2 or 3.
    pub job: Job<M>,
    /// Ranks that share every sequence: neighbours but for tensor parallelism. 1 is none.
    pub context: usize,
    /// How they see each other's keys and values.
    pub exchange: Exchange,
    /// Whether the schedule is ZB-H1 (arXiv 2401.10241) where the job says 1F1B.
    pub zero_bubble: bool,
}

impl<M> From<Job<M>> for WhatIf<M> {
    fn from(job: Job<M>) -> Self {
        Self {
            job,
            context: 1,
            exchange: Exchange::Ring,
            zero_bubble: false,
        }
    }
}

/// `tp 4 x pp 8 x dp 16 x cp 2 (ring), micro-batch 1, schedule ZB-H1, ZeRO 2, recompute none`.
impl<M> fmt::Display for WhatIf<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let job = &self.job;
        write!(f, "{}", job.layout)?;
        if self.context > 1 {
            let name = match self.exchange {
                Exchange::Ring => "ring",
                Exchange::Ulysses => "Ulysses",
            };
            write!(f, " x cp {} ({name})", self.context)?;
        }
        match self.zero_bubble {
            true => job.write_switches(f, &"ZB-H1"),
            false => job.write_switches(f, &job.schedule),
        }
    }
}

impl<M: Planned> WhatIf<M> {
    /// What of it the runtime lacks.
    pub fn lacks(&self) -> impl Iterator<Item = Lack> {
        let used = [
            self.context > 1,
            self.job.zero == 2,
            self.job.zero == 3,
            self.zero_bubble,
        ];
        let all = Lack::ALL.into_iter().zip(used);
        all.filter_map(|(lack, used)| used.then_some(lack))
    }

    /// Ranks.
    pub fn world(&self) -> usize {
        self.job.layout.world() * self.context
    }

    /// Ranks that hold the same parameters; gradients are summed over them.
    pub(super) fn replicas(&self) -> usize {
        self.job.layout.dp * self.context
    }

    /// The ranks that hold the same parameters.
    pub(super) fn replica_group(&self) -> Group {
        Group {
            ranks: self.replicas(),
            stride: self.job.layout.tp,
        }
    }

    /// Tokens of a micro-batch on one rank, sequence parallelism apart.
    pub(super) fn tokens(&self) -> usize {
        self.job.micro_batch_tokens() / self.context
    }

    /// What a model's sizes depend on.
    pub(super) fn share(&self, machine: &Machine) -> Share {
        let job = &self.job;
        Share {
            tokens: self.tokens(),
            tp: job.layout.tp,
            sequence_parallel: job.sequence_parallel,
            context: self.context,
            exchange: self.exchange,
            element: job.precision.bytes(),
            recompute: job.recompute,
            fused_attention: job.fused_attention,
            cpu_kernels: job.cpu_kernels,
            program: machine.software.program,
        }
    }

    /// Refuses what could not run if the runtime had what it lacks: what the trainer refuses, with the trainer's words, and
    /// what does not divide.
    ///
    /// # Errors
    /// The first thing that cannot work, with what would.
    pub fn validate(&self) -> Result<()> {
        let Self { job, context, .. } = self;
        job.layout.validated()?;
        self.validate_context()?;
        let (model, tp) = (&job.model, job.layout.tp);
        let there = Job {
            zero: job.zero.min(MAX_ZERO_STAGE),
            model: model.on_context_rank(*context, tp, self.exchange)?,
            ..job.clone()
        };
        there.validate()?;
        if job.zero > HIGHEST_ZERO {
            return Err(Error::config(
                format!("there is no ZeRO stage {}", job.zero),
                format!("use 0 to {HIGHEST_ZERO}"),
            ));
        }
        if job.zero == 3 && job.layout.pp > 1 {
            return Err(Error::config(
                format!(
                    "ZeRO 3 over {} pipeline stages gathers every parameter for every micro-batch",
                    job.layout.pp
                ),
                "use ZeRO 2 with a pipeline, or one stage",
            ));
        }
        let one = job.schedule == Kind::OneForwardOneBackward;
        if self.zero_bubble && !(one && job.layout.pp > 1) {
            return Err(Error::config(
                format!(
                    "ZB-H1 is an order of 1f1b over several stages, not of {} over {}",
                    job.schedule, job.layout.pp
                ),
                "use the schedule 1f1b and at least 2 stages",
            ));
        }
        Ok(())
    }

    fn validate_context(&self) -> Result<()> {
        let context = self.context;
        if context == 0 {
            return Err(Error::config(
                "0 context-parallel ranks hold no tokens",
                "use 1 for no context parallelism",
            ));
        }
        let ranks = self.job.layout.world().saturating_mul(context);
        if ranks > MAX_RANKS {
            return Err(Error::config(
                format!(
                    "{context} context-parallel ranks make {ranks} ranks, more than {MAX_RANKS}"
                ),
                "use smaller numbers",
            ));
        }
        Ok(())
    }
}
