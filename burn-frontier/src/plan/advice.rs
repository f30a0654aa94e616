//! What would make a job faster, and how it scales.

use serde::{Deserialize, Serialize};

use super::job::Job;
use super::machine::Machine;
use super::model::Planned;
use super::search::{Candidate, judge};
use crate::error::Result;
use crate::mesh::Layout;
use crate::pipeline::schedule::Kind;
use crate::recompute::Recompute;

/// A change, and what it brings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gain {
    /// The change, in words.
    pub change: String,
    /// Speed after it over speed before, less one.
    pub gain: f64,
    /// Whether the job still fits.
    pub fits: bool,
}

/// A property of a machine that could be better.
struct Property {
    name: &'static str,
    better: fn(&mut Machine),
}

const PROPERTIES: [Property; 7] = [
    Property {
        name: "matrix products 25 % faster (as far as the peak allows)",
        better: |m| m.device.gemm_ceiling = (m.device.gemm_ceiling * 1.25).min(1.0),
    },
    Property {
        name: "memory bandwidth twice as high",
        better: |m| m.device.memory_gbs *= 2.0,
    },
    Property {
        name: "links in the node twice as fast",
        better: |m| {
            m.links.node.gbs *= 2.0;
            m.links.card.gbs *= 2.0;
        },
    },
    Property {
        name: "network twice as fast",
        better: |m| m.links.network.nic_gbs *= 2.0,
    },
    Property {
        name: "half the latency of every link",
        better: |m| {
            m.links.card.us /= 2.0;
            m.links.node.us /= 2.0;
            m.links.network.us /= 2.0;
        },
    },
    Property {
        name: "kernels that start twice as fast",
        better: |m| {
            m.device.kernel_us /= 2.0;
            m.device.launch_us /= 2.0;
        },
    },
    Property {
        name: "half the jitter",
        better: |m| m.device.jitter /= 2.0,
    },
];

fn gain<M>(before: &Candidate<M>, after: &Candidate<M>) -> f64 {
    after.tokens_per_second_per_rank / before.tokens_per_second_per_rank - 1.0
}

/// What a better machine would bring to `job`, largest gain first.
///
/// # Errors
/// A job that cannot run.
pub fn better_machine<M: Planned>(job: &Job<M>, machine: &Machine) -> Result<Vec<Gain>> {
    let now = judge(job, machine)?;
    let mut gains = Vec::new();
    for property in &PROPERTIES {
        let mut better = machine.clone();
        (property.better)(&mut better);
        gains.push(Gain {
            change: property.name.into(),
            gain: gain(&now, &judge(job, &better)?),
            fits: true,
        });
    }
    gains.sort_by(|a, b| b.gain.total_cmp(&a.gain));
    Ok(gains)
}

/// What changing one switch of `job` brings, largest gain first; what cannot run is left out.
///
/// # Errors
/// A job that cannot run.
pub fn other_switches<M: Planned>(job: &Job<M>, machine: &Machine) -> Result<Vec<Gain>> {
    let now = judge(job, machine)?;
    let mut gains = Vec::new();
    for (change, other) in changes(job) {
        let Ok(after) = judge(&other, machine) else {
            continue;
        };
        gains.push(Gain {
            change,
            gain: gain(&now, &after),
            fits: after.bytes <= machine.usable_bytes(),
        });
    }
    gains.sort_by(|a, b| b.gain.total_cmp(&a.gain));
    Ok(gains)
}

fn changes<M: Planned>(job: &Job<M>) -> Vec<(String, Job<M>)> {
    let mut all = Vec::new();
    let mut add = |change: &str, set: &dyn Fn(&mut Job<M>)| {
        let mut other = job.clone();
        set(&mut other);
        if other != *job {
            all.push((change.to_string(), other));
        }
    };
    add("recompute none", &|job| job.recompute = Recompute::None);
    add("recompute selective", &|job| {
        job.recompute = Recompute::Selective
    });
    add("recompute full", &|job| job.recompute = Recompute::Full);
    add("sequence parallelism", &|job| {
        job.sequence_parallel = job.layout.tp > 1
    });
    add("attention in one fused kernel", &|job| {
        job.fused_attention = true
    });
    add("gradients reduced beside the backward pass", &|job| {
        job.overlap = true
    });
    add("schedule interleaved", &|job| {
        job.schedule = Kind::Interleaved { chunks: 2 }
    });
    add("half the micro-batch", &|job| {
        job.micro_batch = (job.micro_batch / 2).max(1)
    });
    add("twice the micro-batch", &|job| job.micro_batch *= 2);
    add("twice the global batch", &|job| job.global_batch *= 2);
    all
}

/// One point of a scaling curve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScalingPoint {
    /// Nodes.
    pub nodes: usize,
    /// Samples of a step.
    pub global_batch: u64,
    /// Seconds of a step.
    pub seconds: f64,
    /// Tokens per second of one rank.
    pub tokens_per_second_per_rank: f64,
    /// The same relative to the smallest number of nodes.
    pub efficiency: f64,
}

/// `job` with more and more replicas: with a batch that grows with them (weak scaling) or that stays (strong). Numbers of
/// nodes that its tp and pp do not fill are left out.
///
/// # Errors
/// A job that cannot run.
pub fn scaling<M: Planned>(
    job: &Job<M>,
    machine: &Machine,
    nodes: &[usize],
    weak: bool,
) -> Result<Vec<ScalingPoint>> {
    let mut points: Vec<ScalingPoint> = Vec::new();
    let replica = job.layout.tp * job.layout.pp;
    let share = job.global_batch as f64 / job.layout.dp as f64;
    for &nodes in nodes {
        let ranks = nodes.saturating_mul(machine.links.ranks_per_node);
        let dp = ranks / replica;
        if dp == 0 || !ranks.is_multiple_of(replica) {
            continue;
        }
        let global_batch = if weak {
            (share * dp as f64) as u64
        } else {
            job.global_batch
        };
        let Ok(layout) = Layout {
            tp: job.layout.tp,
            pp: job.layout.pp,
            dp,
        }
        .validated() else {
            continue;
        };
        let there = Job {
            layout,
            global_batch,
            ..job.clone()
        };
        let Ok(judged) = judge(&there, machine) else {
            continue;
        };
        let speed = judged.tokens_per_second_per_rank;
        let first = points
            .first()
            .map_or(speed, |p| p.tokens_per_second_per_rank);
        points.push(ScalingPoint {
            nodes,
            global_batch,
            seconds: judged.time.seconds(),
            tokens_per_second_per_rank: speed,
            efficiency: speed / first,
        });
    }
    Ok(points)
}
