//! `--plan`: what a job needs and how fast it is, on a machine that need not be this one; and the same question about this
//! one before a run.

use anyhow::{Context, Result, bail};
use burn_frontier::Layout;
use burn_frontier::Precision;
use burn_frontier::device;
use burn_frontier::mesh::MAX_RANKS;
use burn_frontier::models::gpt::GptConfig;
use burn_frontier::plan::search::{self, Candidate};
use burn_frontier::plan::{Job, Machine, Report, time};
use burn_frontier::run_folder;
use burn_frontier::zero::reducer::MAX_ZERO_STAGE;

use crate::console;
use crate::memory::gib;
use crate::options::Options;
use crate::settings::attention_of;
use crate::{flags, shard};

/// Samples a rank and step when a batch is not given for a number of nodes.
const SAMPLES_PER_RANK: u64 = 4;

/// Prints the plan and writes plan.html and plan.json.
pub fn plan(options: &Options, model: GptConfig) -> Result<()> {
    let out = options.out();
    run_folder::check(&out).context("--out")?;
    let report = report(options, model)?;
    say!("{}", report.page().trim_end());
    // A plan may lie in the folder of a run, before the run, beside it and after it.
    run_folder::mark(&out).context("--out")?;
    report.write(&out)?;
    say!("\nmore      {0}/plan.html, {0}/plan.json", out.display());
    Ok(())
}

/// The plan.
pub fn report(options: &Options, model: GptConfig) -> Result<Report<GptConfig>> {
    let machine = Machine::load(options.machine.as_deref().unwrap_or("laptop"))?;
    let settings = options.settings()?;
    let mut like = settings.job(&model);
    if options.precision.is_none() && machine.device.half_tflops > machine.device.single_tflops {
        like.precision = Precision::Bf16;
    }
    let job = match options.nodes {
        Some(nodes) => on_nodes(options, like, &machine, nodes)?,
        None => like,
    };
    let machine = match options.shard_bench {
        true => with_measured_shard(options, &job, &machine)?,
        false => machine,
    };
    let report = match options.what_if {
        true => Report::with_what_if(&job, &machine)?,
        false => Report::new(&job, &machine)?,
    };
    Ok(report.with_words(flags::flags))
}

/// `machine` with the present device's time of a layer's slice.
fn with_measured_shard(
    options: &Options,
    job: &Job<GptConfig>,
    machine: &Machine,
) -> Result<Machine> {
    let device = device::choose(options.device.as_deref())?;
    let here = attention_of(job.clone(), &device);
    let need = shard::layer_bytes(&here, &Machine::load("laptop")?)?;
    if let Some(room) = device.room(0).filter(|room| need > room.bytes as f64) {
        bail!(
            "a layer's slice (tp {}, micro-batch {}) needs {:.1} GiB, and there are {room}; use a larger --tp, or plan without --shard-bench",
            job.layout.tp,
            job.micro_batch,
            gib(need),
        );
    }
    console::note(format_args!(
        "timing a layer's slice on {}: a warm-up and {} passes forward and back",
        device.name(),
        shard::TIMED
    ));
    let seconds = shard::time_layer(job, &device.of_rank(0))?;
    let modelled = time::layer_seconds(job, machine)?;
    say!(
        "shard     a layer's slice (tp {}, micro-batch {}) took {:.3} ms forward and back on this device; modelled {:.3} ms",
        job.layout.tp,
        job.micro_batch,
        1e3 * seconds,
        1e3 * modelled
    );
    Ok(shard::corrected(job, machine, seconds)?)
}

/// The fastest job on so many nodes that agrees with the flags that were given.
fn on_nodes(
    options: &Options,
    mut like: Job<GptConfig>,
    machine: &Machine,
    nodes: usize,
) -> Result<Job<GptConfig>> {
    let per_node = machine.links.ranks_per_node;
    let Some(ranks) = nodes.checked_mul(per_node).filter(|n| *n <= MAX_RANKS) else {
        bail!(
            "--nodes {nodes} of {per_node} ranks each are more than {MAX_RANKS} ranks; use at most {}",
            MAX_RANKS / per_node
        );
    };
    if options.global_batch.is_none() {
        like.global_batch = SAMPLES_PER_RANK * ranks as u64;
    }
    let found = search::search(&like, machine, ranks)?;
    let wanted = |candidate: &&Candidate<GptConfig>| agrees(options, &like, &candidate.job);
    if let Some(best) = found.ranked.iter().find(wanted) {
        return Ok(best.job.clone());
    }
    // Nothing that was asked for fits. Say by how much, for the layout that needs least.
    match smallest(options, &like, machine, ranks) {
        Some(job) => Ok(job),
        None => as_asked(options, like, ranks),
    }
}

/// The very layout of the flags, refused as the trainer refuses it; what is left open is 1, and dp what remains.
fn as_asked(options: &Options, like: Job<GptConfig>, ranks: usize) -> Result<Job<GptConfig>> {
    let [tp, pp] = [options.tp, options.pp].map(|n| n.unwrap_or(1));
    let dp = options.dp.unwrap_or((ranks / tp / pp).max(1));
    let job = Job {
        layout: Layout { tp, pp, dp }.validated()?,
        ..like
    };
    job.validate()?;
    if job.layout.world() != ranks {
        bail!(
            "{} are {} ranks, and the nodes have {ranks}; change --tp, --pp, --dp or --nodes",
            job.layout,
            job.layout.world()
        );
    }
    Ok(job)
}

/// Whether a job has what the flags ask for.
fn agrees(options: &Options, like: &Job<GptConfig>, job: &Job<GptConfig>) -> bool {
    let layout = job.layout;
    options.tp.is_none_or(|tp| tp == layout.tp)
        && options.pp.is_none_or(|pp| pp == layout.pp)
        && options.dp.is_none_or(|dp| dp == layout.dp)
        && options
            .micro_batch
            .is_none_or(|size| size == job.micro_batch)
        && options
            .schedule
            .is_none_or(|_| like.schedule == job.schedule)
        && options
            .zero
            .is_none_or(|zero| zero == job.zero || layout.dp == 1 && zero <= MAX_ZERO_STAGE)
        && options
            .recompute
            .as_ref()
            .is_none_or(|_| like.recompute == job.recompute)
        && (!options.sequence_parallel || job.sequence_parallel)
}

/// Of the layouts that agree with the flags, the one that needs least memory.
fn smallest(
    options: &Options,
    like: &Job<GptConfig>,
    machine: &Machine,
    ranks: usize,
) -> Option<Job<GptConfig>> {
    let mut roomy = machine.clone();
    roomy.device.memory_gib = 1e9;
    let found = search::search(like, &roomy, ranks).ok()?;
    let wanted = found
        .ranked
        .into_iter()
        .filter(|c| agrees(options, like, &c.job));
    wanted
        .min_by(|a, b| a.bytes.total_cmp(&b.bytes))
        .map(|candidate| candidate.job)
}
