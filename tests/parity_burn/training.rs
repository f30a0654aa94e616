//! A training of any model in any layout, and what it must agree on.

use std::ops::Range;
use std::path::PathBuf;

use burn::tensor::Device;
use burn_frontier::checkpoint::Checkpoint;
use burn_frontier::comm::groups::Groups;
use burn_frontier::comm::local::{self, LocalOptions};
use burn_frontier::optim::OptimizerConfig;
use burn_frontier::parameter::BurnModule;
use burn_frontier::pipeline::micro_batches::micro_batches;
use burn_frontier::pipeline::model::Model;
use burn_frontier::pipeline::run::Pipeline;
use burn_frontier::pipeline::schedule::Kind;
use burn_frontier::train::{StepOptions, TrainState};
use burn_frontier::{Layout, Recompute, Result};

const SEED: u64 = 11;
/// Two micro-batches, of which the second does not divide by four ranks.
const GLOBAL_BATCH: u64 = 21;
/// Samples that all replicas have at the same time: a batch norm sees them together.
const TOGETHER: u64 = 12;

/// Makes a batch, of the step and the sample that the global batch begins with, from places in it.
type MakeBatch<B> = Box<dyn Fn(u64, u64, Range<u64>) -> B + Sync>;

/// A model, its data and its optimisers.
pub struct Recipe<M: Model> {
    pub model: fn(&Groups) -> Result<M>,
    pub batch: MakeBatch<M::Batch>,
    /// For a ZeRO stage. They take turns, a step each.
    pub optimizers: fn(u8) -> Vec<OptimizerConfig>,
    pub rate: f64,
}

/// How a part of a training is done.
#[derive(Debug, Clone, Default)]
struct Run {
    layout: Layout,
    /// With stage 1 the backward pass computes everything again.
    zero: u8,
    until: u64,
    save: Option<PathBuf>,
    resume: Option<PathBuf>,
}

impl<M: Model> Recipe<M> {
    /// This rank's part of a training that has not begun.
    pub fn begin(&self, groups: &Groups, zero: u8) -> Result<TrainState<BurnModule<M>>> {
        let stage = vec![BurnModule::new((self.model)(groups)?, SEED)?];
        let kind = Kind::OneForwardOneBackward;
        let pipeline = Pipeline::new(stage, kind, groups.clone(), Device::flex())?;
        TrainState::new(pipeline, &(self.optimizers)(zero), SEED)
    }

    /// This replica's micro-batches of a step.
    pub fn batches(&self, groups: &Groups, step: u64) -> Result<Vec<M::Batch>> {
        let (replica, replicas) = (groups.at.dp, groups.layout.dp);
        let cuts = micro_batches(GLOBAL_BATCH, TOGETHER / replicas as u64, replica, replicas)?;
        let first = (step - 1) * GLOBAL_BATCH;
        let batch = |cut| (self.batch)(step, first, cut);
        Ok(cuts.into_iter().map(batch).collect())
    }

    /// What a step is done with.
    pub fn options(&self, zero: u8, step: u64) -> StepOptions {
        let optimizers = (self.optimizers)(zero).len() as u64;
        StepOptions {
            optimizer: ((step - 1) % optimizers) as usize,
            recompute: match zero {
                0 => Recompute::None,
                _ => Recompute::Full,
            },
            ..StepOptions::new(self.rate)
        }
    }

    /// The losses of the steps that the run does, and that of an evaluation at its end.
    fn train(&self, run: &Run) -> Result<Vec<f64>> {
        let ranks = local::run(run.layout.world(), &LocalOptions::default(), |world| {
            let groups = Groups::new(run.layout, world)?;
            let mut state = self.begin(&groups, run.zero)?;
            if let Some(folder) = &run.resume {
                let checkpoint = Checkpoint::newest(folder)?.expect("a checkpoint");
                state.resume(&checkpoint)?;
            }
            let mut losses = Vec::new();
            for step in state.steps() + 1..=run.until {
                let batches = self.batches(&groups, step)?;
                let options = self.options(run.zero, step);
                losses.push(state.step(&batches, &options)?.loss);
            }
            losses.push(state.evaluate(&self.batches(&groups, run.until + 1)?)?);
            if let Some(folder) = &run.save {
                state.save(folder, 1)?;
            }
            Ok(losses)
        })?;
        assert!(ranks.iter().all(|losses| *losses == ranks[0]), "{ranks:?}");
        Ok(ranks.into_iter().next().unwrap_or_default())
    }

    /// Every layout has one rank's losses, the same bits when run again, and continues what the one before has saved. Gives the
    /// losses.
    pub fn has_one_ranks_losses(&self, runs: &[(Layout, u8)], steps: u64) -> Vec<f64> {
        let run = |layout, zero, until| Run {
            layout,
            zero,
            until,
            ..Run::default()
        };
        let one = self.train(&run(Layout::single(), 0, steps)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut before: Option<PathBuf> = None;
        for (i, &(layout, zero)) in runs.iter().enumerate() {
            let what = format!("{layout}, ZeRO {zero}");
            let here = folder.path().join(i.to_string());
            let half = run(layout, zero, steps / 2);
            let first = Run {
                save: Some(here.clone()),
                ..half.clone()
            };
            let mut losses = self.train(&first).unwrap();
            assert_eq!(losses, self.train(&half).unwrap(), "{what}, run again");
            let rest = Run {
                resume: Some(before.unwrap_or_else(|| here.clone())),
                ..run(layout, zero, steps)
            };
            losses.pop();
            losses.extend(self.train(&rest).unwrap());
            assert_agree(&losses, &one, &what);
            before = Some(here);
        }
        one
    }
}

fn assert_agree(losses: &[f64], one: &[f64], what: &str) {
    assert_eq!(losses.len(), one.len(), "{what}");
    for (i, (a, b)) in losses.iter().zip(one).enumerate() {
        let step = i + 1;
        assert!(
            (a - b).abs() <= 1e-5 * b.abs(),
            "{what}: loss of step {step}: {a} instead of {b}"
        );
    }
}
