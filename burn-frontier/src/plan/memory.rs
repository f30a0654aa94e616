//! How many bytes every stage needs, by kind.

use serde::{Deserialize, Serialize};

use super::job::Job;
use super::machine::{Machine, Program};
use super::model::{Activations, Planned};
use super::parameters::{self, StageParameters};
use super::what_if::WhatIf;
use crate::error::Result;

/// Bytes of one rank of a stage when it needs most.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct StageMemory {
    /// Parameters.
    pub weights: f64,
    /// Sums of gradients.
    pub gradients: f64,
    /// Moments, and master weights of half-precision parameters.
    pub optimizer: f64,
    /// What forward passes keep for their backward passes.
    pub activations: f64,
    /// What a backward pass needs besides, and the messages between stages.
    pub working: f64,
    /// Flat gradients and parameters on their way over the replicas.
    pub communication: f64,
    /// What the allocator wastes.
    pub allocator: f64,
}

impl StageMemory {
    /// Names and bytes of all kinds.
    pub const fn kinds(&self) -> [(&'static str, f64); 7] {
        [
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("optimizer", self.optimizer),
            ("activations", self.activations),
            ("working set", self.working),
            ("communication", self.communication),
            ("allocator", self.allocator),
        ]
    }

    /// All bytes.
    pub fn bytes(&self) -> f64 {
        self.kinds().iter().map(|(_, bytes)| bytes).sum()
    }
}

/// The memory of every stage of `job` on `machine`.
///
/// # Errors
/// A job that cannot run.
pub fn stages<M: Planned>(job: &Job<M>, machine: &Machine) -> Result<Vec<StageMemory>> {
    job.validate()?;
    let plain = WhatIf::from(job.clone());
    Ok(stages_of(&plain, machine, &parameters::stages(&plain)?))
}

pub(super) fn stages_of<M: Planned>(
    what_if: &WhatIf<M>,
    machine: &Machine,
    stages: &[StageParameters],
) -> Vec<StageMemory> {
    let pieces = Pieces::new(what_if, machine);
    stages
        .iter()
        .enumerate()
        .map(|(stage, parameters)| pieces.stage(stage, parameters))
        .collect()
}

/// Sizes that the stages share.
struct Pieces<'a, M> {
    what_if: &'a WhatIf<M>,
    job: &'a Job<M>,
    machine: &'a Machine,
    /// Bytes of an element.
    element: f64,
    activations: Activations,
}

impl<'a, M: Planned> Pieces<'a, M> {
    fn new(what_if: &'a WhatIf<M>, machine: &'a Machine) -> Self {
        let job = &what_if.job;
        Self {
            what_if,
            job,
            machine,
            element: job.precision.bytes(),
            activations: job.model.activations(&what_if.share(machine)),
        }
    }

    fn ours(&self) -> bool {
        self.machine.software.program == Program::BurnFrontier
    }

    /// The stage when it needs most: in its passes, or while gradients are reduced and parameters updated.
    fn stage(&self, stage: usize, parameters: &StageParameters) -> StageMemory {
        let state = self.state(parameters);
        let (passes, update) = (
            self.passes(stage, parameters, state),
            self.update(parameters, state),
        );
        let mut memory = if update.bytes() > passes.bytes() {
            update
        } else {
            passes
        };
        memory.allocator = memory.bytes() * self.machine.device.allocator_overhead;
        memory
    }

    /// Replicas over which something is split from ZeRO stage `from` on.
    fn split(&self, from: u8) -> f64 {
        if self.job.zero >= from {
            self.what_if.replicas() as f64
        } else {
            1.0
        }
    }

    /// What stays from step to step, and the gradients.
    fn state(&self, parameters: &StageParameters) -> StageMemory {
        let master = if self.job.precision.is_half() {
            4.0
        } else {
            0.0
        };
        let state = self.job.model.moment_bytes() + master;
        let gradient = self.machine.software.gradient_bytes;
        StageMemory {
            weights: parameters.count * self.element / self.split(3)
                + self.job.model.frozen_bytes(),
            gradients: parameters.count * gradient / self.split(2),
            optimizer: parameters.bucketed * state / self.split(1),
            ..StageMemory::default()
        }
    }

    fn passes(
        &self,
        stage: usize,
        parameters: &StageParameters,
        state: StageMemory,
    ) -> StageMemory {
        let job = self.job;
        let alive = job
            .schedule
            .activations_alive(job.layout.pp, stage, job.micro_batches());
        let alive = alive as f64;
        let chunks = parameters.layers.len() as f64;
        let layers = parameters.layers.iter().sum::<usize>() as f64;
        // Ours sends the tensors themselves: an input that is kept, a gradient that the passes count.
        let messages = if job.layout.pp > 1 && !self.ours() {
            2.0 * self.activations.handed_on
        } else {
            0.0
        };
        let Activations { layer, weight, .. } = self.activations;
        let mut kept = layers / chunks * layer * alive;
        let mut working = self.activations.backward + self.activations.exchanged;
        if self.what_if.zero_bubble {
            // Each input gradient leaves what gradients of weights need, for as many micro-batches as they wait.
            let late = stage.min(job.micro_batches()) as f64;
            kept += layers * (weight * late + (weight - layer).max(0.0));
        }
        if parameters.last {
            // Those of micro-batches whose backward pass is not the next.
            kept += self.activations.loss * (alive / chunks - 1.0).max(0.0);
            working = working.max(self.activations.head);
        }
        StageMemory {
            activations: kept,
            working: working + messages,
            communication: self.sharded(parameters, &state),
            ..state
        }
    }

    /// With ZeRO 2, gradients that have not left for their owners: a bucket, and the next beside it if that overlaps. With
    /// ZeRO 3 also the parameters of two layers. Never more than what stays where it is otherwise.
    fn sharded(&self, parameters: &StageParameters, state: &StageMemory) -> f64 {
        let mut bytes = 0.0;
        if self.job.zero > 1 {
            let one = self.machine.software.gradient_bytes;
            let buckets = if self.job.overlap { 2.0 } else { 1.0 };
            let whole = parameters.count * one - state.gradients;
            bytes += (buckets * parameters.largest_bucket * one).min(whole);
        }
        if self.job.zero > 2 {
            let layers = parameters.layers.iter().sum::<usize>() as f64;
            let largest = parameters
                .ends
                .max((parameters.count - parameters.ends) / layers);
            let whole = parameters.count * self.element - state.weights;
            bytes += (2.0 * largest * self.element).min(whole);
        }
        bytes
    }

    fn update(&self, parameters: &StageParameters, state: StageMemory) -> StageMemory {
        let (gradients, bucket) = (state.gradients, parameters.largest_bucket);
        let mut update = state;
        if !self.ours() {
            // Gradients in fp32 for the update of the parameters that a rank owns.
            update.communication = 4.0 * parameters.bucketed / self.split(1);
            return update;
        }
        // One replica updates what it has where it lies.
        if self.what_if.replicas() == 1 {
            return update;
        }
        // A bucket's gradients side by side before they are reduced; then its parameters, before and after their update.
        let reduce = gradients + 4.0 * bucket;
        let split = self.split(1) > 1.0;
        let left = self.split(1) / self.split(2);
        let step = gradients / left + if split { 8.0 } else { 4.0 } * bucket;
        update.communication = reduce.max(step) - gradients;
        update
    }
}

impl<M: Planned> WhatIf<M> {
    /// The memory of every stage on `machine`.
    ///
    /// # Errors
    /// As [`WhatIf::validate`].
    pub fn memory(&self, machine: &Machine) -> Result<Vec<StageMemory>> {
        self.validate()?;
        Ok(stages_of(self, machine, &parameters::stages(self)?))
    }
}
