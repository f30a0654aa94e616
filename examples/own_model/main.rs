//! A model of one's own, of Burn's layers, on many ranks: copy this file, and put your network and your data into it.
//!
//! `cargo run --example own_model -- --dp 4`

use std::io::Write;
use std::ops::Range;
use std::path::PathBuf;

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor, TensorData, activation::tanh};
use burn_frontier::device::Choice;
#[cfg(feature = "flex")]
use burn_frontier::device::memory::HostMemory;
use burn_frontier::plan::{Estimate, Job, Machine, Outline};
use burn_frontier::prelude::*;
use burn_frontier::run_folder::{self, RunFolder};
use clap::Parser;

/// Large tensors of a step lie where those of the last one lay.
#[cfg(feature = "flex")]
#[global_allocator]
static MEMORY: HostMemory = HostMemory::new();

/// Trains a small network on any number of replicas, draws its losses and saves. Run again, it goes on.
#[derive(Debug, Parser)]
struct Options {
    /// Replicas, each with its share of a step's samples
    #[arg(long, default_value_t = 1)]
    dp: usize,
    /// Steps to do now, one at least
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    steps: u64,
    /// Where to write; a run that lies there goes on
    #[arg(long, default_value = "runs/own_model")]
    out: PathBuf,
}

/// Samples of a step, which the replicas share.
const BATCH: u64 = 64;
/// Learning rate.
const RATE: f64 = 3e-3;
const SEED: u64 = 1;

// The README shows the lines from here
#[derive(Module, Debug)]
struct Net {
    input: Linear,
    output: Linear,
}

impl Model for Net {
    type Batch = Points;

    fn forward(&self, _: Vec<Activation>, points: &Points, _: &Pass) -> Result<Output> {
        let hidden = tanh(self.input.forward(points.x.clone()));
        let error = self.output.forward(hidden) - points.y.clone();
        Ok(Output::Losses(error.square().reshape([-1]))) // each sample's, not their mean
    }
}

fn train(options: &Options, groups: Groups, device: Device) -> Result<()> {
    let (rank, saved) = (groups.world.rank(), options.out.join("checkpoints"));
    let shares = micro_batches(BATCH, BATCH, groups.at.dp, options.dp)?;
    let net = BurnModule::new(Net::new(&device), SEED)?;
    let pipeline = Pipeline::new(vec![net], Kind::default(), groups, device.clone())?;
    let mut state = TrainState::new(pipeline, &[OptimizerConfig::new(1, true)], SEED)?; // ZeRO 1
    if let Some(checkpoint) = Checkpoint::newest(&saved)? {
        state.resume(&checkpoint)?; // of any number of replicas
    }
    let steps = state.steps()..state.steps() + options.steps;
    let mut log = RunLog::new(&options.out, steps.clone(), rank)?;
    for step in steps {
        let batch = |share: &Range<u64>| Points::new(step * BATCH, share.clone(), &device);
        let batches: Vec<_> = shares.iter().map(batch).collect();
        let report = state.step(&batches, &StepOptions::new(RATE))?;
        log.step(StepRecord {
            samples: report.step * BATCH,
            learning_rate: RATE,
            ..report.into()
        })?;
    }
    state.save(&saved, 2)?; // the newest two stay
    log.finish("Training loss") // as loss.svg
}
// to here

impl Net {
    fn new(device: &Device) -> Self {
        Self {
            input: LinearConfig::new(2, 64).init(device),
            output: LinearConfig::new(64, 1).init(device),
        }
    }
}

/// Your data: here points in a plane, and a height over each.
#[derive(Clone)]
struct Points {
    x: Tensor<2>,
    y: Tensor<2>,
    /// Where each stands in the step's batch.
    samples: Vec<u64>,
}

impl Batch for Points {
    fn count(&self) -> u64 {
        self.samples.len() as u64
    }

    fn samples(&self) -> &[u64] {
        &self.samples
    }
}

impl Points {
    /// Those at some places of the batch that begins with sample `first`. Each is a function of its number, so that every
    /// layout has the same.
    fn new(first: u64, places: Range<u64>, device: &Device) -> Self {
        let number = |i: u64, k: f64| ((first + i) as f64 * k).fract() as f32 * 2.0 - 1.0;
        let pair = |i| [number(i, 0.618_034), number(i, 0.414_214)];
        let x: Vec<f32> = places.clone().flat_map(pair).collect();
        let y: Vec<f32> = x.chunks(2).map(|x| (3.0 * x[0]).sin() * x[1]).collect();
        let tensor = |values, width| {
            let data = TensorData::new(values, [places.clone().count(), width]);
            Tensor::from_data(data, device)
        };
        Self {
            x: tensor(x, 2),
            y: tensor(y, 1),
            samples: places.collect(),
        }
    }
}

/// What the planner says of it, from the operations of a sample's forward pass and the bytes that it keeps.
fn estimate(layout: Layout, device: &Choice) -> Result<Estimate> {
    let mut net = BurnModule::new(Net::new(&device.of_rank(0)), SEED)?;
    let (products, numbers) = (2.0 * 64.0 + 64.0, 2.0 + 64.0 + 64.0 + 1.0);
    let outline = Outline::new(&mut net, 2.0 * products, 4.0 * numbers)?;
    let job = Job {
        global_batch: BATCH,
        micro_batch: BATCH / layout.dp as u64,
        ..outline.job(layout)
    };
    let mut machine = Machine::load("laptop")?;
    if let Some(room) = device.room(0) {
        machine = machine.with_memory(room.bytes as f64 / layout.dp as f64); // the replicas share it
    }
    Estimate::new(&job, &machine)
}

/// Prints a line. That nobody reads it, as behind `| head`, does not end the training.
macro_rules! say {
    ($($text:tt)*) => {
        _ = writeln!(std::io::stdout(), $($text)*)
    };
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let (dp, out) = (options.dp, &options.out);
    let layout = Layout {
        dp,
        ..Layout::single()
    }
    .validated()?;
    let device = burn_frontier::device::choose(None)?;
    say!(
        "2 x 64 x 1 neurons, {BATCH} samples a step, {layout}, {}",
        device.name()
    );
    say!("{}", estimate(layout, &device)?);
    run_folder::mark(out)?;
    let _held = RunFolder::resume(out)?; // by one program at a time
    local::run(layout.world(), &LocalOptions::default(), |world| {
        let device = device.of_rank(world.rank());
        train(&options, Groups::new(layout, world)?, device)
    })?;
    say!(
        "{}: loss.svg, metrics.jsonl, checkpoints; run again, and it goes on",
        out.display()
    );
    Ok(())
}
