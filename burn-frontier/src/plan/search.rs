//! All layouts of a model on so many ranks: which fit, and how fast they are.

use serde::{Deserialize, Serialize};

use super::job::Job;
use super::machine::Machine;
use super::memory::{self, StageMemory};
use super::model::Planned;
use super::parameters;
use super::time::{self, StepTime};
use super::what_if::WhatIf;
use crate::error::{Error, Result};
use crate::mesh::{Layout, MAX_RANKS};
use crate::pipeline::schedule::Kind;
use crate::recompute::Recompute;
use crate::zero::reducer::MAX_ZERO_STAGE;

/// Micro-batches that are tried.
pub(super) const MICRO_BATCHES: [u64; 5] = [1, 2, 4, 8, 16];
/// Most pipeline stages that are tried.
const STAGES: usize = 256;
/// Nodes that a tensor-parallel group may span.
const TENSOR_NODES: usize = 2;
/// Chunks a stage that interleaved schedules are tried with.
pub(super) const CHUNKS: [usize; 3] = [2, 3, 4];

/// A layout that fits, and what the planner says of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate<M> {
    /// The job.
    pub job: Job<M>,
    /// Bytes of the stage that needs most.
    pub bytes: f64,
    /// The step.
    pub time: StepTime,
    /// Tokens per second of one rank.
    pub tokens_per_second_per_rank: f64,
}

/// What a search gave.
#[derive(Debug, Clone)]
pub struct Found<M> {
    /// What fits, fastest first.
    pub ranked: Vec<Candidate<M>>,
    /// Layouts that were looked at.
    pub tried: usize,
}

impl<M> Found<M> {
    /// The candidates that no other beats in both memory and speed, fastest first.
    pub fn pareto(&self) -> Vec<&Candidate<M>> {
        let mut least = f64::INFINITY;
        self.ranked
            .iter()
            .filter(|candidate| {
                let better = candidate.bytes < least;
                least = least.min(candidate.bytes);
                better
            })
            .collect()
    }
}

/// Bytes of the stage of `job` that needs most.
///
/// # Errors
/// A job that cannot run.
pub fn peak_bytes<M: Planned>(job: &Job<M>, machine: &Machine) -> Result<f64> {
    Ok(most(&memory::stages(job, machine)?))
}

pub(super) fn most(stages: &[StageMemory]) -> f64 {
    stages.iter().map(StageMemory::bytes).fold(0.0, f64::max)
}

/// What the planner says of one job, whether it fits or not.
///
/// # Errors
/// A job that cannot run.
pub fn judge<M: Planned>(job: &Job<M>, machine: &Machine) -> Result<Candidate<M>> {
    job.validate()?;
    let plain = WhatIf::from(job.clone());
    let stages = parameters::stages(&plain)?;
    let bytes = most(&memory::stages_of(&plain, machine, &stages));
    let time = time::step_of(&plain, machine, &stages)?;
    Ok(candidate(plain.job, bytes, time))
}

fn candidate<M: Planned>(job: Job<M>, bytes: f64, time: StepTime) -> Candidate<M> {
    let ranks = job.layout.world() as f64;
    Candidate {
        tokens_per_second_per_rank: job.tokens() / time.seconds() / ranks,
        job,
        bytes,
        time,
    }
}

/// Tries every layout of `like`'s model and global batch on `ranks` ranks: tp, pp, dp, micro-batch, schedule, ZeRO stage,
/// recompute and sequence parallelism. Precision, overlap and the kind of attention stay as they are.
///
/// # Errors
/// No rank, more than [`MAX_RANKS`], or a model that no layout can run.
pub fn search<M: Planned>(like: &Job<M>, machine: &Machine, ranks: usize) -> Result<Found<M>> {
    let mut found = Found {
        ranked: Vec::new(),
        tried: 0,
    };
    let mut refusal = None;
    if ranks > MAX_RANKS {
        return Err(Error::config(
            format!("{ranks} ranks are more than {MAX_RANKS}"),
            "use smaller numbers",
        ));
    }
    for layout in layouts(like, machine, ranks) {
        let first = Job {
            layout,
            micro_batch: 1,
            zero: 0,
            sequence_parallel: false,
            schedule: Kind::OneForwardOneBackward,
            ..like.clone()
        };
        match first.validate() {
            Ok(()) => every(&first, machine, &mut found)?,
            Err(error) => _ = refusal.get_or_insert(error),
        }
    }
    if found.tried == 0 {
        return Err(refusal.unwrap_or_else(|| {
            Error::config(
                format!("{ranks} ranks have no layout"),
                "give at least one rank",
            )
        }));
    }
    found
        .ranked
        .sort_by(|a, b| a.time.seconds().total_cmp(&b.time.seconds()));
    Ok(found)
}

/// Divisions of the ranks that could work.
pub(super) fn layouts<M: Planned>(like: &Job<M>, machine: &Machine, ranks: usize) -> Vec<Layout> {
    let divisors = |n: usize| (1..=n).filter(move |d| n.is_multiple_of(*d));
    let widest = machine.links.ranks_per_node * TENSOR_NODES;
    let mut all = Vec::new();
    for tp in divisors(ranks).take_while(|&tp| tp <= widest) {
        let deepest = like.model.layers().min(STAGES);
        for pp in divisors(ranks / tp).take_while(|&pp| pp <= deepest) {
            let dp = ranks / tp / pp;
            if dp as u64 <= like.global_batch {
                all.extend(Layout { tp, pp, dp }.validated().ok());
            }
        }
    }
    all
}

/// All switches of one layout.
fn every<M: Planned>(first: &Job<M>, machine: &Machine, found: &mut Found<M>) -> Result<()> {
    let interleaved = CHUNKS.map(|chunks| Kind::Interleaved { chunks });
    let mut kinds = vec![Kind::OneForwardOneBackward];
    if first.layout.pp > 1 {
        kinds.push(Kind::GPipe);
        kinds.extend(interleaved);
    }
    let splits: &[bool] = if first.layout.tp > 1 {
        &[false, true]
    } else {
        &[false]
    };
    for schedule in kinds {
        for &sequence_parallel in splits {
            let job = Job {
                schedule,
                sequence_parallel,
                ..first.clone()
            };
            of_schedule(&job, machine, found)?;
        }
    }
    Ok(())
}

fn of_schedule<M: Planned>(like: &Job<M>, machine: &Machine, found: &mut Found<M>) -> Result<()> {
    let mut stages = None;
    let share = like.global_batch.div_ceil(like.layout.dp as u64);
    for micro_batch in MICRO_BATCHES.into_iter().take_while(|&size| size <= share) {
        let sized = Job {
            micro_batch,
            ..like.clone()
        };
        if sized.validate().is_err() {
            continue;
        }
        let stages: &Vec<_> = match &stages {
            Some(stages) => stages,
            None => stages.insert(parameters::stages(&WhatIf::from(sized.clone()))?),
        };
        for recompute in Recompute::ALL {
            // With one replica there is nothing to split.
            let highest = if sized.layout.dp > 1 {
                MAX_ZERO_STAGE
            } else {
                0
            };
            for zero in 0..=highest {
                let plain = WhatIf::from(Job {
                    recompute,
                    zero,
                    ..sized.clone()
                });
                found.tried += 1;
                let bytes = most(&memory::stages_of(&plain, machine, stages));
                if bytes <= machine.usable_bytes() {
                    let time = time::step_of(&plain, machine, stages)?;
                    found.ranked.push(candidate(plain.job, bytes, time));
                }
            }
        }
    }
    Ok(())
}

/// The layout nearest to `job` that fits: with as few changes of switches as possible, then with other sizes.
///
/// # Errors
/// As [`search`].
pub fn nearest<M: Planned>(job: &Job<M>, machine: &Machine) -> Result<Option<Candidate<M>>> {
    let found = search(job, machine, job.layout.world())?;
    let distance = |candidate: &Candidate<M>| {
        let (a, b) = (job, &candidate.job);
        let doublings = |a: usize, b: usize| (a as f64 / b as f64).log2().abs();
        let changed = [
            a.recompute != b.recompute,
            a.zero != b.zero,
            a.sequence_parallel != b.sequence_parallel,
            a.schedule != b.schedule,
        ];
        changed.into_iter().filter(|&changed| changed).count() as f64
            + doublings(a.micro_batch as usize, b.micro_batch as usize)
            + 2.0 * doublings(a.layout.tp, b.layout.tp)
            + 2.0 * doublings(a.layout.pp, b.layout.pp)
    };
    // Of equally near ones the fastest, which comes first.
    Ok(found
        .ranked
        .into_iter()
        .min_by(|a, b| distance(a).total_cmp(&distance(b))))
}
