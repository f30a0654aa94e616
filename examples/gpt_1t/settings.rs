//! A run with every default filled in, and whether it can run.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use burn_frontier::device::Choice;
use burn_frontier::models::gpt::GptConfig;
use burn_frontier::ops::{attention, kernels};
use burn_frontier::optim::schedule::{Decay, LearningRate};
use burn_frontier::pipeline::schedule::Kind;
use burn_frontier::plan::Job;
use burn_frontier::{Layout, Precision, Recompute};

use crate::memory::refuse_what_does_not_fit;
use crate::options::Options;

/// Most tokens of a run: so far the numbers of its metrics are exact.
const MOST_TOKENS: u64 = 1 << 53;

/// A run, with nothing left open.
#[derive(Debug, Clone)]
pub struct Settings {
    pub layout: Layout,
    pub kind: Kind,
    pub zero: u8,
    pub sequence_parallel: bool,
    pub overlap: bool,
    pub recompute: Recompute,
    pub micro_batch: u64,
    pub global_batch: u64,
    pub steps: u64,
    pub rate: LearningRate,
    pub weight_decay: f64,
    pub clip: Option<f64>,
    pub precision: Precision,
    pub seed: u64,
    pub out: PathBuf,
    pub save_every: u64,
    pub keep: usize,
    pub validate_every: u64,
    pub timeout: Duration,
    pub peak: Option<f64>,
}

impl Options {
    /// Fills in the defaults.
    pub fn settings(&self) -> Result<Settings> {
        let steps = self.steps.unwrap_or(2400);
        let decay_steps = self.decay_steps.unwrap_or(steps);
        let global_batch = self.global_batch.unwrap_or(8);
        let peak = self.learning_rate.unwrap_or(3e-3);
        Ok(Settings {
            layout: Layout {
                tp: self.tp.unwrap_or(2),
                pp: self.pp.unwrap_or(2),
                dp: self.dp.unwrap_or(1),
            }
            .validated()?,
            kind: self.schedule.unwrap_or_default(),
            zero: self.zero.unwrap_or(1),
            sequence_parallel: self.sequence_parallel,
            overlap: !self.no_overlap,
            recompute: self.recompute.unwrap_or_default(),
            micro_batch: self.micro_batch.unwrap_or(4.min(global_batch)),
            global_batch,
            steps,
            rate: LearningRate {
                peak,
                minimum: peak / 10.0,
                warmup: (decay_steps / 10).min(2000),
                total: decay_steps,
                decay: self.decay.unwrap_or(Decay::Cosine),
            },
            weight_decay: self.weight_decay.unwrap_or(0.1),
            clip: self
                .clip
                .map_or(Some(1.0), |clip| (clip > 0.0).then_some(clip)),
            precision: self.precision.unwrap_or_default(),
            seed: self.seed.unwrap_or(1),
            out: self.out(),
            save_every: self.save_every.unwrap_or(200),
            keep: self.keep.unwrap_or(2),
            validate_every: self.validate_every.unwrap_or(100),
            timeout: match self.timeout.unwrap_or(600) {
                0 => Duration::MAX,
                seconds => Duration::from_secs(seconds),
            },
            peak: self.peak.map(|tflops| tflops * 1e12),
        })
    }
}

impl Settings {
    /// Where the run's checkpoints lie.
    pub fn checkpoints(&self) -> PathBuf {
        self.out.join("checkpoints")
    }

    /// What the planner needs to know; scores are written to memory.
    pub fn job(&self, model: &GptConfig) -> Job<GptConfig> {
        Job {
            model: model.clone(),
            layout: self.layout,
            schedule: self.kind,
            micro_batch: self.micro_batch,
            global_batch: self.global_batch,
            zero: self.zero,
            recompute: self.recompute,
            sequence_parallel: self.sequence_parallel,
            precision: self.precision,
            overlap: self.overlap,
            fused_attention: false,
            cpu_kernels: false,
        }
    }

    /// [`Self::job`] with the attention that `device` takes.
    pub fn job_on(&self, model: &GptConfig, device: &Choice) -> Job<GptConfig> {
        attention_of(self.job(model), device)
    }

    /// Refuses what cannot run, before anything is allocated. Gives the memory that it needs, for the user.
    pub fn validate(&self, model: &GptConfig, device: &Choice) -> Result<String> {
        self.job(model).validate()?;
        self.validate_steps(model)?;
        refuse_what_does_not_fit(&self.job_on(model, device), device)
    }

    /// Refuses steps whose tokens cannot be counted.
    fn validate_steps(&self, model: &GptConfig) -> Result<()> {
        let samples = self.steps.checked_mul(self.global_batch);
        let tokens = samples.and_then(|n| n.checked_mul(model.sequence as u64));
        if tokens.is_none_or(|n| n > MOST_TOKENS) {
            bail!(
                "{} steps of {} samples have more than 2^53 tokens; use a smaller --steps",
                self.steps,
                self.global_batch
            );
        }
        Ok(())
    }
}

/// `job` with the attention that `device` takes, which decides whether its scores are in memory.
pub fn attention_of(mut job: Job<GptConfig>, device: &Choice) -> Job<GptConfig> {
    let (model, tp) = (&job.model, job.layout.tp);
    let queries = [
        job.micro_batch as usize,
        model.heads / tp,
        model.sequence,
        model.head_dim(),
    ];
    let dtype = job.precision.dtype();
    let kv_heads = model.kv_heads / tp;
    let device = device.of_rank(0);
    job.fused_attention = attention::writes_no_scores(&device, dtype, queries, kv_heads);
    job.cpu_kernels = kernels::of_the_cpu(&device, dtype);
    job
}
