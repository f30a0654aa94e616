//! Real steps of a small GPT on ranks that are threads of this process.

use std::sync::Arc;
use std::time::Instant;

use burn::tensor::{DType, Device};
use burn_frontier::Precision;
use burn_frontier::Recompute;
use burn_frontier::comm::Communicator;
use burn_frontier::comm::groups::Groups;
use burn_frontier::comm::local::{self, LocalOptions};
use burn_frontier::models::gpt::GptConfig;
use burn_frontier::models::gpt::batch::TokenBatch;
use burn_frontier::optim::OptimizerConfig;
use burn_frontier::parameter::ParameterContext;
use burn_frontier::pipeline::micro_batches::micro_batches;
use burn_frontier::plan::Job;
use burn_frontier::plan::fit::Run;
use burn_frontier::train::{StepOptions, TrainState};
use burn_frontier::{Layout, Result};

/// Steps that are timed; the median counts.
const TIMED: usize = 5;

/// A job of a small model in fp32.
pub fn job(
    [layers, hidden, sequence]: [usize; 3],
    [tp, pp, dp]: [usize; 3],
    [global_batch, micro_batch]: [u64; 2],
) -> Result<Job<GptConfig>> {
    let model = GptConfig::new(layers, hidden, hidden / 32, 512, sequence);
    Ok(Job {
        global_batch,
        micro_batch,
        recompute: Recompute::None,
        precision: Precision::Fp32,
        ..Job::new(model, Layout { tp, pp, dp }.validated()?)
    })
}

/// Runs a few steps of `job` and takes the median.
pub fn run(job: Job<GptConfig>) -> Result<Run<GptConfig>> {
    let options = LocalOptions::default();
    let times = local::run(job.layout.world(), &options, |world| rank(&job, world))?;
    let mut slowest = [0.0f64; TIMED];
    for times in times {
        for (slowest, time) in slowest.iter_mut().zip(times) {
            *slowest = slowest.max(time);
        }
    }
    slowest.sort_by(f64::total_cmp);
    Ok(Run {
        seconds: slowest[TIMED / 2],
        job,
    })
}

fn rank(job: &Job<GptConfig>, world: Arc<dyn Communicator>) -> Result<Vec<f64>> {
    let groups = Groups::new(job.layout, world.clone())?;
    let context = ParameterContext {
        sequence_parallel: job.sequence_parallel,
        dtype: DType::F32,
        ..ParameterContext::new(1, &groups, Device::flex())
    };
    let pipeline = job.model.init(job.schedule, &groups, &context)?;
    let zero = OptimizerConfig::new(job.zero, job.overlap);
    let mut state = TrainState::new(pipeline, &[zero], 1)?;
    let options = StepOptions {
        recompute: job.recompute,
        ..StepOptions::new(1e-3)
    };
    let cuts = micro_batches(
        job.global_batch,
        job.micro_batch,
        groups.at.dp,
        job.layout.dp,
    )?;
    let length = job.model.sequence as u64 + 1;
    let token = |at: u64| (at * 7919 % job.model.vocabulary as u64) as u32;
    let sample = |i: u64| (i * length..(i + 1) * length).map(token).collect();
    let batches: Vec<TokenBatch> = cuts
        .into_iter()
        .map(|cut| {
            let samples: Vec<Vec<u32>> = cut.clone().map(sample).collect();
            TokenBatch::new(&samples, cut.collect())
        })
        .collect::<Result<_>>()?;
    let mut times = Vec::new();
    for step in 0..=TIMED as u64 {
        world.barrier()?;
        let start = Instant::now();
        state.step(&batches, &options)?;
        world.barrier()?;
        // The first step warms up.
        if step > 0 {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    Ok(times)
}
