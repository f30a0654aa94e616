//! Trains a small GPT in a layout and gives what every layout must agree on.
#![allow(dead_code)] // Every test program uses its own part of the harness.

pub mod gpu;
#[path = "../numbers/mod.rs"]
mod numbers;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use burn::tensor::{DType, Device};
use burn_frontier::Recompute;
use burn_frontier::checkpoint::{Checkpoint, Piece};
use burn_frontier::comm::groups::Groups;
use burn_frontier::comm::local::{self, LocalOptions};
use burn_frontier::comm::{Buffer, Communicator};
use burn_frontier::models::gpt::GptConfig;
use burn_frontier::models::gpt::batch::TokenBatch;
use burn_frontier::optim::{AdamWConfig, OptimizerConfig, ParameterGroup, Rule};
use burn_frontier::parameter::ParameterContext;
use burn_frontier::pipeline::micro_batches::micro_batches;
use burn_frontier::pipeline::schedule::{Kind, Schedule};
use burn_frontier::placement::for_each_run_of;
use burn_frontier::train::{StepOptions, TrainState};
use burn_frontier::{Layout, Result};
use numbers::words;

/// One training run.
#[derive(Debug, Clone)]
pub struct Run {
    pub config: GptConfig,
    pub layout: Layout,
    pub kind: Kind,
    /// In place of that of the kind.
    pub schedule: Option<Schedule>,
    pub zero: u8,
    pub overlap: bool,
    pub sequence_parallel: bool,
    pub recompute: Recompute,
    pub global_batch: u64,
    pub micro_batch: u64,
    pub steps: u64,
    pub dtype: DType,
    pub device: Device,
    pub seed: u64,
    /// How parameters are updated.
    pub rule: Rule,
    /// Parameters that are updated otherwise.
    pub groups: Vec<ParameterGroup>,
    /// Tokens a sample, at most the model's.
    pub length: usize,
    /// Whether a target counts, by number of the sample and place of the token.
    pub counts: fn(u64, usize) -> bool,
    /// Where to save after the last step.
    pub save: Option<PathBuf>,
    /// Where to continue from.
    pub resume: Option<PathBuf>,
}

/// What every layout must agree on.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub losses: Vec<f64>,
    pub norms: Vec<f64>,
    pub parameters: BTreeMap<String, Vec<f64>>,
}

impl Run {
    /// One rank, one micro-batch at a time.
    pub fn single(config: GptConfig) -> Self {
        Self {
            length: config.sequence,
            counts: |_, _| true,
            config,
            layout: Layout::single(),
            kind: Kind::OneForwardOneBackward,
            schedule: None,
            zero: 0,
            overlap: false,
            sequence_parallel: false,
            recompute: Recompute::None,
            global_batch: 8,
            micro_batch: 8,
            steps: 20,
            dtype: DType::F32,
            device: Device::flex(),
            seed: 42,
            rule: AdamWConfig::default().into(),
            groups: Vec::new(),
            save: None,
            resume: None,
        }
    }

    pub fn train(&self) -> Result<Outcome> {
        let ranks = local::run(self.layout.world(), &LocalOptions::default(), |world| {
            self.rank(world)
        })?;
        let (mut outcome, mut parameters) = (ranks[0].0.clone(), BTreeMap::new());
        for (_, pieces) in ranks {
            for piece in pieces
                .into_iter()
                .filter(|piece| !piece.name.contains("::"))
            {
                assemble(&mut parameters, piece);
            }
        }
        outcome.parameters = parameters;
        Ok(outcome)
    }

    fn rank(&self, world: Arc<dyn Communicator>) -> Result<(Outcome, Vec<Piece>)> {
        let groups = Groups::new(self.layout, world.clone())?;
        let context = ParameterContext {
            dtype: self.dtype,
            sequence_parallel: self.sequence_parallel,
            ..ParameterContext::new(self.seed, &groups, self.device.clone())
        };
        let mut pipeline = self.config.init(self.kind, &groups, &context)?;
        if let Some(schedule) = &self.schedule {
            pipeline = pipeline.with_schedule(schedule.clone())?;
        }
        let mut zero = OptimizerConfig::new(self.zero, self.overlap);
        zero.bucket_elements = 5000; // Several buckets, also for a small model.
        (zero.rule, zero.groups) = (self.rule.clone(), self.groups.clone());
        let mut state = TrainState::new(pipeline, &[zero], self.seed)?;
        if let Some(folder) = &self.resume {
            let checkpoint = Checkpoint::newest(folder)?.expect("a checkpoint to resume from");
            state.resume(&checkpoint)?;
        }
        let options = StepOptions {
            recompute: self.recompute,
            ..StepOptions::new(1e-3)
        };
        let cuts = micro_batches(
            self.global_batch,
            self.micro_batch,
            groups.at.dp,
            self.layout.dp,
        )?;
        let (mut losses, mut norms) = (Vec::new(), Vec::new());
        for step in state.steps() + 1..=self.steps {
            let first = (step - 1) * self.global_batch;
            let batches: Vec<TokenBatch> = cuts
                .iter()
                .map(|cut| self.micro_batch(first, cut.clone()))
                .collect::<Result<_>>()?;
            let report = state.step(&batches, &options)?;
            losses.push(report.loss);
            norms.push(report.norm);
        }
        if let Some(folder) = &self.save {
            state.save(folder, 2)?;
        }
        let pieces = state.pieces().collect::<Result<Vec<_>>>()?;
        Ok((
            Outcome {
                losses,
                norms,
                parameters: BTreeMap::new(),
            },
            pieces,
        ))
    }

    fn micro_batch(&self, first: u64, cut: Range<u64>) -> Result<TokenBatch> {
        let samples: Vec<_> = cut.clone().map(|i| self.sample(first + i)).collect();
        let mut batch = TokenBatch::new(&samples, cut.clone().collect())?;
        let samples = cut.zip(batch.targets.chunks_mut(self.length));
        for (i, targets) in samples {
            for (place, target) in targets.iter_mut().enumerate() {
                if !(self.counts)(first + i, place) {
                    *target = -1;
                }
            }
        }
        Ok(batch)
    }

    /// A sample that can be learned: a noisy walk over the vocabulary.
    fn sample(&self, index: u64) -> Vec<u32> {
        let seed = (index as u32)
            .wrapping_mul(2_654_435_761)
            .wrapping_add(12345);
        let vocabulary = self.config.vocabulary as u32;
        let walk = words(seed).scan(0, |token, word| {
            *token = (*token + 1 + (word >> 30)) % vocabulary;
            Some(*token)
        });
        walk.take(self.length + 1).collect()
    }
}

/// Puts the elements of a piece where they belong in the logical tensor; what no piece gives is NaN.
pub fn assemble(parameters: &mut BTreeMap<String, Vec<f64>>, piece: Piece) {
    let data: Vec<f64> = match piece.data {
        Buffer::F32(v) => v.into_iter().map(f64::from).collect(),
        Buffer::F64(v) => v,
        Buffer::BF16(v) => v.into_iter().map(f64::from).collect(),
        Buffer::F16(v) => v.into_iter().map(f64::from).collect(),
        Buffer::I64(v) => v.into_iter().map(|x| x as f64).collect(),
        Buffer::U8(v) => v.into_iter().map(f64::from).collect(),
    };
    let count = piece.shape.iter().product();
    let whole = parameters
        .entry(piece.name)
        .or_insert_with(|| vec![f64::NAN; count]);
    for block in &piece.blocks {
        for_each_run_of(
            block,
            &piece.shape,
            &piece.local_shape,
            &mut |global, local, len| {
                whole[global..global + len].copy_from_slice(&data[local..local + len]);
            },
        );
    }
}

/// Checks that a layout gives one rank's answer: losses and norms within 1e-5 relative, parameters within 1e-4.
pub fn assert_agrees(outcome: &Outcome, one: &Outcome, what: &str) {
    assert_eq!(outcome.losses.len(), one.losses.len(), "{what}");
    for (step, (a, b)) in outcome.losses.iter().zip(&one.losses).enumerate() {
        assert!(
            (a - b).abs() <= 1e-5 * b.abs(),
            "{what}: loss of step {step}: {a} instead of {b}"
        );
    }
    for (step, (a, b)) in outcome.norms.iter().zip(&one.norms).enumerate() {
        assert!(
            (a - b).abs() <= 1e-5 * b.abs(),
            "{what}: gradient norm of step {step}: {a} instead of {b}"
        );
    }
    assert_eq!(
        outcome.parameters.keys().collect::<Vec<_>>(),
        one.parameters.keys().collect::<Vec<_>>()
    );
    for (name, expected) in &one.parameters {
        let n = expected.len();
        let keep = |i: &usize| !(name.ends_with("qkv.bias") && (n / 3..2 * n / 3).contains(i));
        let worst = (0..n)
            .filter(keep) // The key bias has an exact gradient of zero; Adam amplifies its rounding.
            .map(|i| (outcome.parameters[name][i] - expected[i]).abs())
            .fold(0.0, |worst: f64, d| {
                if d.is_nan() {
                    f64::INFINITY
                } else {
                    worst.max(d)
                }
            });
        assert!(worst <= 1e-4, "{what}: {name} differs by {worst}");
    }
}
