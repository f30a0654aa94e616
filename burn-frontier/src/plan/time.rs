//! How long a step takes, and on what.
//!
//! The pipeline's order is executed with what its passes cost; nothing comes from a formula for the bubble.

use serde::{Deserialize, Serialize};

use super::job::Job;
use super::layer::{Costs, Pass, Passes, padded_vocabulary};
use super::machine::{Collective, Correction, Group, Machine, Program};
use super::makespan::{PassCosts, makespan};
use super::parameters::{self, StageParameters};
use crate::error::Result;
use crate::observe::flops::{ModelShape, Throughput};

/// Seconds of a step on its busiest stage, by term; their sum is the step.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct StepTime {
    /// Matrix products with weights, logits included, forward and backward.
    pub gemm: f64,
    /// Attention's products and softmax.
    pub attention: f64,
    /// Norms, activations, residuals, embedding and loss, which are bound by memory.
    pub elementwise: f64,
    /// Starts of kernels, on the device and where it waits for the host.
    pub launch: f64,
    /// What is computed a second time, its communication included.
    pub recompute: f64,
    /// Tensor-parallel communication, none of which is hidden.
    pub tensor: f64,
    /// Messages between stages that a stage waits for.
    pub pipeline: f64,
    /// Gradients on their way over the replicas, as far as no backward pass hides them.
    pub data: f64,
    /// Waiting for other stages.
    pub bubble: f64,
    /// The optimizer's step, and with ZeRO the parameters on their way back.
    pub optimizer: f64,
    /// Waiting for the slowest rank.
    pub jitter: f64,
}

impl StepTime {
    /// Names and seconds of all terms.
    pub const fn terms(&self) -> [(&'static str, f64); 11] {
        [
            ("matrix products", self.gemm),
            ("attention", self.attention),
            ("elementwise", self.elementwise),
            ("kernel starts", self.launch),
            ("recompute", self.recompute),
            ("tensor-parallel communication", self.tensor),
            ("messages between stages", self.pipeline),
            ("gradient reduction", self.data),
            ("bubble", self.bubble),
            ("optimizer", self.optimizer),
            ("jitter", self.jitter),
        ]
    }

    /// The step, in seconds.
    pub fn seconds(&self) -> f64 {
        self.terms().iter().map(|(_, seconds)| seconds).sum()
    }

    fn map(&self, other: &Self, f: impl Fn(f64, f64) -> f64) -> Self {
        Self {
            gemm: f(self.gemm, other.gemm),
            attention: f(self.attention, other.attention),
            elementwise: f(self.elementwise, other.elementwise),
            launch: f(self.launch, other.launch),
            recompute: f(self.recompute, other.recompute),
            tensor: f(self.tensor, other.tensor),
            pipeline: f(self.pipeline, other.pipeline),
            data: f(self.data, other.data),
            bubble: f(self.bubble, other.bubble),
            optimizer: f(self.optimizer, other.optimizer),
            jitter: f(self.jitter, other.jitter),
        }
    }

    fn times(&self, by: f64) -> Self {
        self.map(self, |x, _| x * by)
    }

    fn plus(&self, other: &Self) -> Self {
        self.map(other, |a, b| a + b)
    }
}

/// What each stage does, for drawing.
#[derive(Debug, Clone, PartialEq)]
pub struct StagePasses {
    /// Seconds of a forward pass, per model part.
    pub forward: Vec<f64>,
    /// Seconds of a backward pass, per model part.
    pub backward: Vec<f64>,
    /// Seconds that a message is under way while its sender goes on.
    pub send: f64,
}

/// The step time of `job` on `machine`.
///
/// # Errors
/// A job that cannot run.
pub fn step(job: &Job, machine: &Machine) -> Result<StepTime> {
    job.validate()?;
    step_of(job, machine, &parameters::stages(job)?)
}

/// The passes of every model part of `job` on `machine`.
///
/// # Errors
/// A job that cannot run.
pub fn passes(job: &Job, machine: &Machine) -> Result<StagePasses> {
    job.validate()?;
    Ok(Pipeline::new(job, machine, &parameters::stages(job)?).passes)
}

/// Seconds of one forward and backward pass of one micro-batch through one layer, without communication and without the
/// machine's correction.
///
/// # Errors
/// A job that cannot run.
pub fn layer_seconds(job: &Job, machine: &Machine) -> Result<f64> {
    job.validate()?;
    let mut plain = machine.clone();
    plain.correction = Correction::default();
    let Passes {
        forward,
        backward,
        recompute,
    } = Costs::new(job, &plain).layer();
    let all = forward.plus(&backward).plus(&recompute);
    Ok(all.seconds() - all.tensor)
}

/// Speed under all its names.
///
/// # Errors
/// A speed above the machine's peak.
pub fn throughput(job: &Job, machine: &Machine, seconds: f64) -> Result<Throughput> {
    let shape = ModelShape {
        vocabulary: padded_vocabulary(job),
        ..job.model.shape()
    };
    Throughput::measure(
        &shape,
        job.recompute,
        job.tokens() as u64,
        seconds,
        job.layout.world(),
        Some(machine.peak(job.precision)),
    )
}

pub(super) fn step_of(
    job: &Job,
    machine: &Machine,
    stages: &[StageParameters],
) -> Result<StepTime> {
    let pipeline = Pipeline::new(job, machine, stages);
    let update = Update { job, machine };
    if machine.device.shared {
        return Ok(pipeline.on_one_device(job, &update, stages));
    }
    let micro_batches = job.micro_batches();
    let span = makespan(
        job.schedule,
        job.layout.pp,
        micro_batches,
        &pipeline.costs(),
    )?;
    let mut time = pipeline.busiest(micro_batches as f64);
    time.bubble = (span - time.seconds()).max(0.0);
    time.data = update.reduction(stages, &pipeline);
    time.optimizer = update.optimizer(stages);
    // Ranks that wait for each other finish with the slowest: the expected maximum of normal variables.
    let waits = (2.0 * (job.layout.world() as f64).ln()).sqrt();
    time.jitter = machine.device.jitter * waits * span;
    Ok(time)
}

/// Passes of all parts, and what they consist of.
struct Pipeline {
    parts: Vec<Passes>,
    passes: StagePasses,
    /// What a stage waits for in every forward and every backward pass.
    forward_wait: Vec<f64>,
    backward_wait: Vec<f64>,
    stages: usize,
}

impl Pipeline {
    fn new(job: &Job, machine: &Machine, stages: &[StageParameters]) -> Self {
        let (pp, chunks) = (job.layout.pp, job.schedule.chunks());
        let costs = Costs::new(job, machine);
        let (layer, embedding, head) = (costs.layer(), costs.embedding(), costs.head());
        let (wait, send) = message(job, machine);
        let parts: Vec<Passes> = (0..pp * chunks)
            .map(|part| {
                let layers = stages[part % pp].layers[part / pp] as f64;
                let mut passes = each(&layer, |pass| pass.scaled(layers));
                if part == 0 {
                    passes = both(&passes, &embedding);
                }
                if part + 1 == pp * chunks {
                    passes = both(&passes, &head);
                }
                passes
            })
            .collect();
        let last = parts.len() - 1;
        let software = if pp > 1 && machine.software.blocking_messages {
            1e-6 * machine.software.message_us
        } else {
            0.0
        };
        let forward_wait: Vec<_> = (0..=last)
            .map(|part| software + if part < last { wait } else { 0.0 })
            .collect();
        let backward_wait: Vec<_> = (0..=last)
            .map(|part| software + if part > 0 { wait } else { 0.0 })
            .collect();
        let forward = parts.iter().zip(&forward_wait);
        let backward = parts.iter().zip(&backward_wait);
        let passes = StagePasses {
            forward: forward
                .map(|(p, wait)| p.forward.seconds() + wait)
                .collect(),
            backward: backward
                .map(|(p, wait)| p.backward.seconds() + p.recompute.seconds() + wait)
                .collect(),
            send,
        };
        Self {
            parts,
            passes,
            forward_wait,
            backward_wait,
            stages: pp,
        }
    }

    fn costs(&self) -> PassCosts {
        PassCosts {
            forward: self.passes.forward.clone(),
            backward: self.passes.backward.clone(),
            send: self.passes.send,
        }
    }

    /// The terms of one micro-batch on one stage.
    fn stage(&self, stage: usize) -> StepTime {
        let mut time = StepTime::default();
        for part in (stage..self.parts.len()).step_by(self.stages) {
            let Passes {
                forward,
                backward,
                recompute,
            } = &self.parts[part];
            let once = forward.plus(backward);
            time.gemm += once.gemm;
            time.attention += once.attention;
            time.elementwise += once.elementwise;
            time.launch += once.kernels + once.launch;
            time.tensor += once.tensor;
            time.recompute += recompute.seconds();
            time.pipeline += self.forward_wait[part] + self.backward_wait[part];
        }
        time
    }

    /// The terms of the stage that has most to do.
    fn busiest(&self, micro_batches: f64) -> StepTime {
        let stages = (0..self.stages).map(|stage| self.stage(stage));
        let busiest = stages.max_by(|a, b| a.seconds().total_cmp(&b.seconds()));
        busiest.unwrap_or_default().times(micro_batches)
    }

    /// The step when all ranks compute on one device: there is always something to do, and all of it adds up.
    fn on_one_device(
        &self,
        job: &Job,
        update: &Update<'_>,
        stages: &[StageParameters],
    ) -> StepTime {
        let layout = job.layout;
        let (samples, ranks) = (job.micro_batches() as f64, layout.world() as f64);
        let all = (layout.tp * layout.dp) as f64;
        let mut sum = StepTime::default();
        for stage in 0..self.stages {
            let mut time = self.stage(stage).times(samples * all);
            // A collective occupies its whole group once.
            time.tensor /= layout.tp as f64;
            sum = sum.plus(&time);
        }
        // Messages travel beside other work only if there is other work; on one device somebody copies them.
        sum.pipeline += self.passes.send * 2.0 * samples * all * (self.parts.len() - 1) as f64;
        sum.data = update.all_reductions(stages);
        sum.optimizer = update.optimizer(stages) * ranks;
        sum
    }

    /// How long before the end of the pipeline a stage's last backward pass ends: gradients still travel down to stage 0.
    fn slack(&self, stage: usize) -> f64 {
        self.passes.backward[..stage].iter().sum()
    }
}

fn each(passes: &Passes, f: impl Fn(&Pass) -> Pass) -> Passes {
    Passes {
        forward: f(&passes.forward),
        backward: f(&passes.backward),
        recompute: f(&passes.recompute),
    }
}

fn both(a: &Passes, b: &Passes) -> Passes {
    Passes {
        forward: a.forward.plus(&b.forward),
        backward: a.backward.plus(&b.backward),
        recompute: a.recompute.plus(&b.recompute),
    }
}

/// What a message between stages costs its sender, and how long it travels beside the sender's next pass.
fn message(job: &Job, machine: &Machine) -> (f64, f64) {
    let (layout, links) = (job.layout, &machine.links);
    if layout.pp == 1 {
        return (0.0, 0.0);
    }
    let element = job.precision.bytes();
    let whole = job.micro_batch_tokens() as f64 * job.model.hidden as f64 * element;
    let held = whole / job.sequence_split();
    let split = machine.software.split_messages && !job.sequence_parallel && layout.tp > 1;
    let stride = layout.tp * layout.dp;
    let seconds = if split {
        let share = whole / layout.tp as f64;
        let ranks = Group {
            ranks: layout.tp.min(links.ranks_per_node),
            stride: 1,
        };
        links.message(share, stride, layout.world())
            + links.collective(Collective::AllGather, whole, ranks)
    } else {
        links.message(held, stride, layout.world())
    };
    match machine.software.blocking_messages {
        true => (seconds, 0.0),
        false => (0.0, seconds),
    }
}

/// What happens once a step, after the pipeline.
struct Update<'a> {
    job: &'a Job,
    machine: &'a Machine,
}

impl Update<'_> {
    fn replicas(&self) -> Group {
        Group {
            ranks: self.job.layout.dp,
            stride: self.job.layout.tp,
        }
    }

    /// What of the reductions comes after the pipeline's last pass.
    fn reduction(&self, stages: &[StageParameters], pipeline: &Pipeline) -> f64 {
        let (layout, links) = (self.job.layout, &self.machine.links);
        let bytes = self.machine.software.gradient_bytes;
        let what = self.reduction_kind();
        let mut exposed: f64 = 0.0;
        for (stage, parameters) in stages.iter().enumerate() {
            let buckets = self.buckets(parameters);
            let one = parameters.bucketed * bytes / buckets;
            let all = buckets * links.collective(what, one, self.replicas());
            let mut late = all;
            if self.job.overlap {
                // The last bucket is ready when the last backward pass ends.
                let hidden = pipeline.passes.backward[stage] * (buckets - 1.0) / buckets;
                late = (all - hidden).max(all / buckets);
            }
            exposed = exposed.max(late - pipeline.slack(stage));
        }
        let ends = Group {
            ranks: 2,
            stride: layout.tp * layout.dp * (layout.pp - 1).max(1),
        };
        let tied = stages.first().map_or(0.0, |first| first.tied) * bytes;
        let world = Group {
            ranks: layout.world(),
            stride: 1,
        };
        exposed
            + links.collective(Collective::AllReduce, tied, ends)
            + links.collective(Collective::AllReduce, 8.0, world)
    }

    /// Seconds of the reductions of all groups, one after another.
    fn all_reductions(&self, stages: &[StageParameters]) -> f64 {
        let links = &self.machine.links;
        let groups = self.job.layout.tp as f64;
        let each = stages.iter().map(|parameters| {
            let buckets = self.buckets(parameters);
            let bytes = parameters.bucketed * self.machine.software.gradient_bytes / buckets;
            buckets * links.collective(self.reduction_kind(), bytes, self.replicas())
        });
        groups * each.sum::<f64>()
    }

    fn reduction_kind(&self) -> Collective {
        if self.job.zero == 0 {
            Collective::AllReduce
        } else {
            Collective::ReduceScatter
        }
    }

    fn buckets(&self, parameters: &StageParameters) -> f64 {
        // Megatron reduces what it holds in one go unless it overlaps.
        match self.machine.software.program {
            Program::Megatron if !self.job.overlap => 1.0,
            Program::Megatron | Program::BurnFrontier => parameters.buckets.max(1) as f64,
        }
    }

    fn optimizer(&self, stages: &[StageParameters]) -> f64 {
        let element = self.job.precision.bytes();
        let split = if self.job.zero > 0 {
            self.job.layout.dp as f64
        } else {
            1.0
        };
        let most = stages.iter().map(|s| s.bucketed).fold(0.0, f64::max);
        let update = most / split * self.machine.software.optimizer_bytes
            / (self.machine.device.memory_gbs * 1e9);
        let gather = if self.job.zero > 0 {
            let links = &self.machine.links;
            links.collective(Collective::AllGather, most * element, self.replicas())
        } else {
            0.0
        };
        update + gather
    }
}
