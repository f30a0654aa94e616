//! How long a step takes, and on what.
//!
//! The pipeline's order is executed with what its passes cost; nothing comes from a formula for the bubble.

use serde::{Deserialize, Serialize};

use super::job::Job;
use super::layer::Costs;
use super::machine::{Collective, Correction, Group, Machine};
use super::makespan::{PassCosts, makespan};
use super::model::Planned;
use super::parameters::{self, StageParameters};
use super::pass::Passes;
use super::update::{Beside, Tail, Update};
use super::what_if::WhatIf;
use super::zero_bubble;
use crate::error::Result;
use crate::observe::flops::Throughput;

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
    /// Keys and values between context-parallel ranks, as far as attention does not hide them; only of a [`WhatIf`].
    #[serde(default, skip_serializing_if = "is_zero")]
    pub context: f64,
    /// Parameters gathered for ZeRO 3, as far as no pass hides them; only of a [`WhatIf`].
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gather: f64,
}

// serde passes a reference.
#[expect(clippy::trivially_copy_pass_by_ref)]
fn is_zero(seconds: &f64) -> bool {
    *seconds == 0.0
}

impl StepTime {
    /// Names and seconds of all terms.
    pub const fn terms(&self) -> [(&'static str, f64); 13] {
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
            ("context-parallel communication", self.context),
            ("parameter gathering", self.gather),
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
            context: f(self.context, other.context),
            gather: f(self.gather, other.gather),
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
pub fn step<M: Planned>(job: &Job<M>, machine: &Machine) -> Result<StepTime> {
    job.validate()?;
    let plain = WhatIf::from(job.clone());
    step_of(&plain, machine, &parameters::stages(&plain)?)
}

/// The passes of every model part of `job` on `machine`.
///
/// # Errors
/// A job that cannot run.
pub fn passes<M: Planned>(job: &Job<M>, machine: &Machine) -> Result<StagePasses> {
    job.validate()?;
    let plain = WhatIf::from(job.clone());
    let stages = parameters::stages(&plain)?;
    Ok(Pipeline::new(&plain, machine, &stages).passes)
}

/// Seconds of one forward and backward pass of one micro-batch through one layer, without communication and without the
/// machine's correction.
///
/// # Errors
/// A job that cannot run.
pub fn layer_seconds<M: Planned>(job: &Job<M>, machine: &Machine) -> Result<f64> {
    job.validate()?;
    let mut plain = machine.clone();
    plain.correction = Correction::default();
    let Passes {
        forward,
        backward,
        recompute,
        ..
    } = Costs::new(&WhatIf::from(job.clone()), &plain).layer();
    let all = forward.plus(&backward).plus(&recompute);
    Ok(all.seconds() - all.tensor)
}

/// Speed under all its names.
///
/// # Errors
/// A speed above the machine's peak.
pub fn throughput<M: Planned>(job: &Job<M>, machine: &Machine, seconds: f64) -> Result<Throughput> {
    throughput_on(job, machine, seconds, job.layout.world())
}

pub(super) fn throughput_on<M: Planned>(
    job: &Job<M>,
    machine: &Machine,
    seconds: f64,
    ranks: usize,
) -> Result<Throughput> {
    Throughput::measure(
        job.model.flops(job.recompute, job.layout.tp),
        job.tokens() as u64,
        seconds,
        ranks,
        Some(machine.peak(job.precision)),
    )
}

pub(super) fn step_of<M: Planned>(
    what_if: &WhatIf<M>,
    machine: &Machine,
    stages: &[StageParameters],
) -> Result<StepTime> {
    let pipeline = Pipeline::new(what_if, machine, stages);
    let update = Update { what_if, machine };
    if machine.device.shared {
        return Ok(pipeline.on_one_device(&update, stages));
    }
    let micro_batches = what_if.job.micro_batches();
    let (span, slack) = pipeline.ends()?;
    let mut time = pipeline.busiest(micro_batches as f64);
    time.bubble = (span - time.seconds()).max(0.0);
    time.data += update.reduction(stages, &pipeline.tails(&slack));
    time.gather += update.first_gather(stages);
    time.optimizer = update.optimizer(stages);
    // Ranks that wait for each other finish with the slowest: the expected maximum of normal variables.
    let waits = (2.0 * (what_if.world() as f64).ln()).sqrt();
    time.jitter = machine.device.jitter * waits * span;
    Ok(time)
}

/// Seconds of a step that no order of its passes can undercut: those of the busiest stage.
pub(super) fn at_least<M: Planned>(
    what_if: &WhatIf<M>,
    machine: &Machine,
    stages: &[StageParameters],
) -> f64 {
    let micro_batches = what_if.job.micro_batches() as f64;
    let pipeline = Pipeline::new(what_if, machine, stages);
    pipeline.busiest(micro_batches).seconds()
}

/// Passes of all parts, and what they consist of.
struct Pipeline<'a, M> {
    what_if: &'a WhatIf<M>,
    parts: Vec<Passes>,
    /// What sharding adds to every part's passes.
    beside: Vec<Beside>,
    passes: StagePasses,
    /// What a stage waits for in every forward and every backward pass.
    forward_wait: Vec<f64>,
    backward_wait: Vec<f64>,
    stages: usize,
}

impl<'a, M: Planned> Pipeline<'a, M> {
    fn new(what_if: &'a WhatIf<M>, machine: &Machine, stages: &[StageParameters]) -> Self {
        let job = &what_if.job;
        let (pp, chunks) = (job.layout.pp, job.schedule.chunks());
        let costs = Costs::new(what_if, machine);
        let (layer, embedding, head) = (costs.layer(), costs.embedding(), costs.head());
        let (wait, send) = message(what_if, machine, costs.stream());
        let parts: Vec<Passes> = (0..pp * chunks)
            .map(|part| {
                let layers = stages[part % pp].layers[part / pp] as f64;
                let mut passes = layer.scaled(layers);
                if part == 0 {
                    passes = passes.plus(&embedding);
                }
                if part + 1 == pp * chunks {
                    passes = passes.plus(&head);
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
        let beside = beside(&Update { what_if, machine }, stages, &parts);
        let all = || parts.iter().zip(&beside);
        let passes = StagePasses {
            forward: all()
                .zip(&forward_wait)
                .map(|((p, beside), wait)| p.forward.seconds() + wait + beside.forward)
                .collect(),
            backward: all()
                .zip(&backward_wait)
                .map(|((p, beside), wait)| {
                    let pass = p.backward.seconds() + p.recompute.seconds() + wait;
                    pass + beside.backward + beside.reduce
                })
                .collect(),
            send,
        };
        Self {
            what_if,
            parts,
            beside,
            passes,
            forward_wait,
            backward_wait,
            stages: pp,
        }
    }

    /// Time from the first pass to the end of the last, and how long before that each stage ends.
    fn ends(&self) -> Result<(f64, Vec<f64>)> {
        let (stages, micro_batches) = (self.stages, self.what_if.job.micro_batches());
        let StagePasses {
            forward,
            backward,
            send,
        } = self.passes.clone();
        if self.what_if.zero_bubble {
            let weight: Vec<_> = (0..stages).map(|part| self.weight(part)).collect();
            let input = backward.iter().zip(&weight);
            let costs = zero_bubble::Costs {
                input: input.map(|(all, weight)| all - weight).collect(),
                forward,
                weight,
                send,
            };
            let ends = zero_bubble::execute(stages, micro_batches, &costs)?;
            return Ok((ends.makespan, ends.slack));
        }
        // Gradients still travel down to stage 0.
        let slack = (0..stages).map(|stage| backward[..stage].iter().sum());
        let slack = slack.collect();
        let costs = PassCosts {
            forward,
            backward,
            send,
        };
        let span = makespan(self.what_if.job.schedule, stages, micro_batches, &costs)?;
        Ok((span, slack))
    }

    /// Seconds of a part's gradients of weights, and of what they wait for on their way to their owners.
    fn weight(&self, part: usize) -> f64 {
        self.parts[part].weight + self.beside[part].reduce
    }

    /// The terms of one micro-batch on one stage.
    fn stage(&self, stage: usize) -> StepTime {
        let mut time = StepTime::default();
        for part in (stage..self.parts.len()).step_by(self.stages) {
            let Passes {
                forward,
                backward,
                recompute,
                ..
            } = &self.parts[part];
            let beside = &self.beside[part];
            let once = forward.plus(backward);
            time.gemm += once.gemm;
            time.attention += once.attention;
            time.elementwise += once.elementwise;
            time.launch += once.kernels + once.launch;
            time.tensor += once.tensor;
            time.context += once.context;
            time.gather += beside.forward + beside.backward;
            time.data += beside.reduce;
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
    fn on_one_device(&self, update: &Update<'_, M>, stages: &[StageParameters]) -> StepTime {
        let (job, layout) = (&self.what_if.job, self.what_if.job.layout);
        let (samples, ranks) = (job.micro_batches() as f64, self.what_if.world() as f64);
        let all = (layout.tp * self.what_if.replicas()) as f64;
        let mut sum = StepTime::default();
        for stage in 0..self.stages {
            let mut time = self.stage(stage).times(samples * all);
            // A collective occupies its whole group once.
            time.tensor /= layout.tp as f64;
            sum = sum.plus(&time);
        }
        // Messages travel beside other work only if there is other work; on one device somebody copies them.
        sum.pipeline += self.passes.send * 2.0 * samples * all * (self.parts.len() - 1) as f64;
        (sum.data, sum.gather) = update.all_groups(stages);
        sum.optimizer = update.optimizer(stages) * ranks;
        sum
    }

    /// How the passes of every stage end.
    fn tails(&self, slack: &[f64]) -> Vec<Tail> {
        let stages = slack.iter().enumerate().map(|(stage, &slack)| {
            let pass = match self.what_if.zero_bubble {
                true => self.weight(stage),
                false => self.passes.backward[stage],
            };
            let beside = &self.beside[stage];
            let busy = beside.reduce + beside.backward + beside.gather;
            Tail {
                gradients: (pass - busy).max(0.0),
                left: beside.window,
                slack,
            }
        });
        stages.collect()
    }
}

/// What sharding adds to the passes of every part: its share of what it adds to its stage's.
fn beside<M: Planned>(
    update: &Update<'_, M>,
    stages: &[StageParameters],
    parts: &[Passes],
) -> Vec<Beside> {
    let mut all = vec![Beside::NOTHING; parts.len()];
    if update.machine.device.shared || update.what_if.job.zero < 2 {
        return all;
    }
    for (stage, parameters) in stages.iter().enumerate() {
        let mine = || parts.iter().skip(stage).step_by(stages.len());
        let forward = mine().map(|part| part.forward.seconds()).sum();
        let backward = mine().map(|part| part.backward.seconds() + part.recompute.seconds());
        let added = update.beside(parameters, forward, backward.sum());
        let share = added.share(mine().count() as f64);
        for part in all.iter_mut().skip(stage).step_by(stages.len()) {
            *part = share;
        }
    }
    all
}

/// What a message of a `whole` activation between stages costs its sender, and how long it travels beside the sender's next pass.
fn message<M: Planned>(what_if: &WhatIf<M>, machine: &Machine, whole: f64) -> (f64, f64) {
    let job = &what_if.job;
    let (layout, links) = (job.layout, &machine.links);
    if layout.pp == 1 {
        return (0.0, 0.0);
    }
    let held = whole / what_if.share(machine).sequence_split();
    let split = machine.software.split_messages && !job.sequence_parallel && layout.tp > 1;
    let stride = layout.tp * what_if.replicas();
    let seconds = if split {
        let share = whole / layout.tp as f64;
        let ranks = Group {
            ranks: layout.tp.min(links.ranks_per_node),
            stride: 1,
        };
        links.message(share, stride, what_if.world())
            + links.collective(Collective::AllGather, whole, ranks)
    } else {
        links.message(held, stride, what_if.world())
    };
    match machine.software.blocking_messages {
        true => (seconds, 0.0),
        false => (0.0, seconds),
    }
}

impl<M: Planned> WhatIf<M> {
    /// The step time on `machine`.
    ///
    /// # Errors
    /// As [`WhatIf::validate`].
    pub fn step(&self, machine: &Machine) -> Result<StepTime> {
        self.validate()?;
        step_of(self, machine, &parameters::stages(self)?)
    }

    /// Speed under all its names.
    ///
    /// # Errors
    /// A speed above the machine's peak.
    pub fn throughput(&self, machine: &Machine, seconds: f64) -> Result<Throughput> {
        throughput_on(&self.job, machine, seconds, self.world())
    }
}
