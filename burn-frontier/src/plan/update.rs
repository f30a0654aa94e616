//! What replicas exchange: gradients after the pipeline, and with ZeRO 2 and 3 gradients and parameters beside every
//! micro-batch; and the optimizer's step.

use super::machine::{Collective, Group, Machine, Program};
use super::model::Planned;
use super::parameters::StageParameters;
use super::what_if::WhatIf;

/// What happens once a step, after the pipeline.
pub(super) struct Update<'a, M> {
    pub what_if: &'a WhatIf<M>,
    pub machine: &'a Machine,
}

/// How a stage's passes end.
pub(super) struct Tail {
    /// Seconds of the last pass that gives gradients of weights in which the links are free.
    pub gradients: f64,
    /// Most seconds of reductions that are left when it begins.
    pub left: f64,
    /// How long before the end of the pipeline it ends.
    pub slack: f64,
}

/// What sharding adds to the passes of one micro-batch through one stage: what they do not hide.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Beside {
    /// Parameters gathered for the forward pass.
    pub forward: f64,
    /// Parameters gathered for the backward pass.
    pub backward: f64,
    /// Gradients that leave for their owners.
    pub reduce: f64,
    /// Seconds in which the stage's parameters are gathered once.
    pub gather: f64,
    /// Seconds of a micro-batch in which gradients can leave unnoticed.
    pub window: f64,
}

impl Beside {
    /// Every parameter stays where it is, and gradients leave once a step.
    pub const NOTHING: Self = Self {
        forward: 0.0,
        backward: 0.0,
        reduce: 0.0,
        gather: 0.0,
        window: f64::INFINITY,
    };

    /// The share of one of so many chunks of a stage.
    pub fn share(&self, chunks: f64) -> Self {
        Self {
            forward: self.forward / chunks,
            backward: self.backward / chunks,
            reduce: self.reduce / chunks,
            ..*self
        }
    }
}

impl<M: Planned> Update<'_, M> {
    /// What ZeRO 2 and 3 add to a stage's passes, which compute for `forward` and `backward` seconds.
    ///
    /// No rank keeps a sum of gradients but its own shard's, so every micro-batch's gradients are reduced, bucket by bucket,
    /// beside what comes next; reducing once a step, as stage 1 does, would need the whole sum. ZeRO 3 gathers every layer
    /// twice, a layer ahead; the gradients get what time is left of the links.
    pub fn beside(&self, parameters: &StageParameters, forward: f64, backward: f64) -> Beside {
        let job = &self.what_if.job;
        if job.zero < 2 {
            return Beside::NOTHING;
        }
        let (gather, reduce) = (self.gather(parameters), self.reduce(parameters));
        let free = |pass: f64| (pass - gather).max(0.0);
        let window = free(forward) + free(backward);
        let late = if job.overlap { reduce - window } else { reduce };
        Beside {
            forward: (gather - forward).max(0.0),
            backward: (gather - backward).max(0.0),
            reduce: late.max(0.0),
            gather,
            window,
        }
    }

    /// Seconds in which every layer of a stage is gathered by itself, and what is outside of layers.
    fn gather(&self, parameters: &StageParameters) -> f64 {
        if self.what_if.job.zero < 3 {
            return 0.0;
        }
        let layers = parameters.layers.iter().sum::<usize>() as f64;
        let layer = (parameters.count - parameters.ends) / layers;
        layers * self.gather_of(layer) + self.gather_of(parameters.ends)
    }

    fn gather_of(&self, elements: f64) -> f64 {
        let bytes = elements * self.what_if.job.precision.bytes();
        let links = &self.machine.links;
        links.collective(Collective::AllGather, bytes, self.what_if.replica_group())
    }

    /// The first parameters of a step, which nothing is computed beside.
    pub fn first_gather(&self, stages: &[StageParameters]) -> f64 {
        match self.what_if.job.zero {
            0..3 => 0.0,
            _ => stages
                .first()
                .map_or(0.0, |first| self.gather_of(first.ends)),
        }
    }

    /// Seconds in which all gradients of a stage are reduced.
    fn reduce(&self, parameters: &StageParameters) -> f64 {
        let buckets = self.buckets(parameters);
        let one = parameters.bucketed * self.machine.software.gradient_bytes / buckets;
        let group = self.what_if.replica_group();
        buckets
            * self
                .machine
                .links
                .collective(self.reduction_kind(), one, group)
    }

    /// What of the reductions comes after the pipeline's last pass.
    pub fn reduction(&self, stages: &[StageParameters], tails: &[Tail]) -> f64 {
        let (job, links) = (&self.what_if.job, &self.machine.links);
        let mut exposed: f64 = 0.0;
        for (parameters, tail) in stages.iter().zip(tails) {
            let buckets = self.buckets(parameters);
            let all = self.reduce(parameters);
            let late = if job.overlap {
                // The last bucket is ready when the last pass ends.
                let hidden = tail.gradients * (buckets - 1.0) / buckets;
                (all.min(tail.left) - hidden).max(all / buckets)
            } else if job.zero > 1 {
                // Every micro-batch has waited for its own.
                0.0
            } else {
                all
            };
            exposed = exposed.max(late - tail.slack);
        }
        let ends = Group {
            ranks: 2,
            stride: job.layout.tp * self.what_if.replicas() * (job.layout.pp - 1).max(1),
        };
        let bytes = self.machine.software.gradient_bytes;
        let tied = stages.first().map_or(0.0, |first| first.tied) * bytes;
        let world = Group {
            ranks: self.what_if.world(),
            stride: 1,
        };
        exposed
            + links.collective(Collective::AllReduce, tied, ends)
            + links.collective(Collective::AllReduce, 8.0, world)
    }

    /// Seconds of the reductions of all groups, one after another, and of gathering parameters.
    pub fn all_groups(&self, stages: &[StageParameters]) -> (f64, f64) {
        let job = &self.what_if.job;
        let groups = job.layout.tp as f64;
        let times = match job.zero {
            0 | 1 => 1.0,
            _ => job.micro_batches() as f64,
        };
        let each = stages.iter().map(|parameters| self.reduce(parameters));
        let gathers = stages
            .iter()
            .map(|parameters| 2.0 * self.gather(parameters));
        (
            groups * each.sum::<f64>() * times,
            groups * gathers.sum::<f64>() * times,
        )
    }

    fn reduction_kind(&self) -> Collective {
        if self.what_if.job.zero == 0 {
            Collective::AllReduce
        } else {
            Collective::ReduceScatter
        }
    }

    fn buckets(&self, parameters: &StageParameters) -> f64 {
        let job = &self.what_if.job;
        // Megatron reduces what it holds in one go unless it overlaps.
        match self.machine.software.program {
            Program::Megatron if !job.overlap && job.zero < 2 => 1.0,
            Program::Megatron | Program::BurnFrontier => parameters.buckets.max(1) as f64,
        }
    }

    /// The optimizer's step; with ZeRO 1 and 2 the parameters come back.
    pub fn optimizer(&self, stages: &[StageParameters]) -> f64 {
        let zero = self.what_if.job.zero;
        let split = if zero > 0 {
            self.what_if.replicas() as f64
        } else {
            1.0
        };
        let most = stages.iter().map(|s| s.bucketed).fold(0.0, f64::max);
        let update = most / split * self.machine.software.optimizer_bytes
            / (self.machine.device.memory_gbs * 1e9);
        let gather = match zero {
            1 | 2 => self.gather_of(most),
            _ => 0.0,
        };
        update + gather
    }
}
