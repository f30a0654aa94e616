//! The memory that the planner says a stage needs is what the runtime allocates, within five per cent.

#[path = "plan_memory/allocator.rs"]
mod allocator;

use std::sync::Arc;

use burn::tensor::Device;
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
use burn_frontier::pipeline::schedule::Kind;
use burn_frontier::plan::memory::{self, StageMemory};
use burn_frontier::plan::{Job, Machine, search};
use burn_frontier::train::{StepOptions, TrainState};
use burn_frontier::{Layout, Result};

#[global_allocator]
static ALLOCATOR: allocator::Counting = allocator::Counting;

/// Most bytes of every rank in the second step, when all that stays has been allocated, less what was there before.
fn measured(job: &Job<GptConfig>) -> Vec<f64> {
    let peaks = local::run(job.layout.world(), &LocalOptions::default(), |world| {
        allocator::own(world.rank());
        // What threads keep for their products is a core's, not the job's: it is there once a job has run.
        rank(job, &world, 1)?;
        rank(job, &world, 2)
    });
    peaks.unwrap()
}

/// The peak of the last of so many steps, less what was there before.
fn rank(job: &Job<GptConfig>, world: &Arc<dyn Communicator>, steps: usize) -> Result<f64> {
    let me = world.rank();
    let before = allocator::reset(me);
    let groups = Groups::new(job.layout, world.clone())?;
    let context = ParameterContext {
        sequence_parallel: job.sequence_parallel,
        dtype: job.precision.dtype(),
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
    let batches: Vec<TokenBatch> = cuts
        .iter()
        .map(|cut| {
            let samples: Vec<Vec<u32>> = cut
                .clone()
                .map(|i| (i * length..(i + 1) * length).map(token).collect())
                .collect();
            TokenBatch::new(&samples, cut.clone().collect())
        })
        .collect::<Result<_>>()?;
    let mut most = 0.0;
    for _ in 0..steps {
        allocator::reset(me);
        state.step(&batches, &options)?;
        most = (allocator::peak(me) - before) as f64;
    }
    Ok(most)
}

/// The planned peak of every stage, without what only an allocator with blocks wastes.
fn planned(job: &Job<GptConfig>) -> Vec<StageMemory> {
    let mut machine = Machine::load("laptop").unwrap();
    machine.device.allocator_overhead = 0.0;
    memory::stages(job, &machine).unwrap()
}

fn base() -> Job<GptConfig> {
    let model = GptConfig::new(4, 128, 4, 512, 256);
    Job {
        micro_batch: 4,
        global_batch: 8,
        zero: 1,
        recompute: Recompute::None,
        precision: Precision::Fp32,
        overlap: false,
        fused_attention: true,
        cpu_kernels: true,
        ..Job::new(model, Layout::single())
    }
}

/// What docs/planner.md says of these jobs.
const MOST: f64 = 0.032;

/// Compares the rank of every stage that needs most: ranks of one process may use a buffer that another has made.
fn agrees(name: &str, job: &Job<GptConfig>) {
    let measured = measured(job);
    for (stage, planned) in planned(job).into_iter().enumerate() {
        let ranks = measured.iter().enumerate();
        let here = ranks.filter(|(rank, _)| job.layout.coordinate(*rank).pp == stage);
        let most = here.map(|(_, bytes)| *bytes).fold(0.0, f64::max);
        let error = planned.bytes() / most - 1.0;
        let found = format!(
            "{name}, stage {stage}: measured {:.2} MB, planned {:.2} MB ({:+.1} %)",
            most / 1e6,
            planned.bytes() / 1e6,
            100.0 * error,
        );
        println!("{found}");
        assert!(error.abs() <= MOST, "{found}; {:?}", planned.kinds());
    }
}

fn layout(tp: usize, pp: usize, dp: usize) -> Layout {
    Layout { tp, pp, dp }
}

#[test]
fn the_plan_is_what_is_allocated() {
    let job = base();
    agrees("one rank", &job);
    agrees(
        "selective",
        &Job {
            recompute: Recompute::Selective,
            ..job.clone()
        },
    );
    agrees(
        "full",
        &Job {
            recompute: Recompute::Full,
            ..job.clone()
        },
    );
    let deep = Job {
        model: GptConfig::new(12, 128, 4, 512, 128),
        ..job.clone()
    };
    agrees(
        "deep, full",
        &Job {
            recompute: Recompute::Full,
            ..deep.clone()
        },
    );
    let wide = Job {
        model: GptConfig::new(2, 512, 8, 512, 32),
        ..job.clone()
    };
    agrees("wide", &wide);
    agrees(
        "tp 2",
        &Job {
            layout: layout(2, 1, 1),
            ..job.clone()
        },
    );
    agrees(
        "tp 2, sequence parallel",
        &Job {
            layout: layout(2, 1, 1),
            sequence_parallel: true,
            ..job.clone()
        },
    );
    agrees(
        "pp 2",
        &Job {
            layout: layout(1, 2, 1),
            ..job.clone()
        },
    );
    agrees(
        "pp 2, gpipe",
        &Job {
            layout: layout(1, 2, 1),
            schedule: Kind::GPipe,
            ..job.clone()
        },
    );
    agrees(
        "pp 2, interleaved",
        &Job {
            layout: layout(1, 2, 1),
            schedule: Kind::Interleaved { chunks: 2 },
            ..job.clone()
        },
    );
    agrees(
        "dp 2, wide",
        &Job {
            layout: layout(1, 1, 2),
            ..wide.clone()
        },
    );
    agrees(
        "dp 2, wide, zero 0",
        &Job {
            layout: layout(1, 1, 2),
            zero: 0,
            ..wide.clone()
        },
    );
    agrees(
        "modern",
        &Job {
            model: GptConfig::new(4, 128, 4, 512, 256)
                .modern()
                .with_kv_heads(2),
            ..job.clone()
        },
    );
    agrees(
        "bf16",
        &Job {
            precision: Precision::Bf16,
            ..job.clone()
        },
    );
    agrees(
        "vocabulary",
        &Job {
            model: GptConfig::new(2, 64, 4, 8192, 128),
            ..job.clone()
        },
    );
}

#[test]
fn an_absurd_job_is_refused_without_taking_memory() {
    const OWNER: usize = 15; // No rank of the other test.
    let good = base();
    let machine = Machine::load("frontier").unwrap();
    type Change = fn(&mut Job<GptConfig>, usize);
    let changes: [(&str, Change); 12] = [
        ("layers", |job, n| job.model.layers = n),
        ("hidden", |job, n| job.model.hidden = n),
        ("heads", |job, n| job.model.heads = n),
        ("kv_heads", |job, n| job.model.kv_heads = n),
        ("ffn", |job, n| job.model.ffn = n),
        ("vocabulary", |job, n| job.model.vocabulary = n),
        ("sequence", |job, n| job.model.sequence = n),
        ("tp", |job, n| job.layout.tp = n),
        ("dp", |job, n| job.layout.dp = n),
        ("chunks", |job, n| {
            job.schedule = Kind::Interleaved { chunks: n }
        }),
        ("micro_batch", |job, n| job.micro_batch = n as u64),
        ("global_batch", |job, n| job.global_batch = n as u64),
    ];
    allocator::own(OWNER);
    for (name, change) in changes {
        for size in [1 << 40, 1 << 62, usize::MAX - 1, usize::MAX] {
            let mut job = good.clone();
            change(&mut job, size);
            let before = allocator::reset(OWNER);
            job.validate().expect_err(name);
            memory::stages(&job, &machine).expect_err(name);
            let searched = search::search(&good, &machine, size);
            searched.expect_err("so many ranks");
            let taken = allocator::peak(OWNER) - before;
            assert!(taken < 1 << 16, "{name} {size}: {taken} bytes");
        }
    }
}
