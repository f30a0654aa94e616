//! The parameters of every stage, from the specifications that the model is made from.

use std::sync::Arc;

use super::model::Planned;
use super::what_if::WhatIf;
use crate::error::Result;
use crate::optim::OptimizerConfig;
use crate::parameter::ParameterSpec;
use crate::pipeline::schedule::split_layers;
use crate::placement::Placement;
use crate::zero::partition::{self, Slot};

/// What one stage holds on every rank.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StageParameters {
    /// Layers of each chunk.
    pub layers: Vec<usize>,
    /// Elements, vocabulary padding included.
    pub count: f64,
    /// Elements in buckets, which are padded to whole pieces.
    pub bucketed: f64,
    /// Elements of the largest bucket.
    pub largest_bucket: f64,
    /// Buckets.
    pub buckets: usize,
    /// Elements outside of layers: tables, positions, the final norm.
    pub ends: f64,
    /// Elements that another stage holds as well.
    pub tied: f64,
    /// Whether the head lies here.
    pub last: bool,
}

/// What decides a stage's parameters: whether it is the first, the last, and the layers of its chunks.
type Key = (bool, bool, Vec<usize>);

/// The parameters of all stages of `what_if`.
pub(super) fn stages<M: Planned>(what_if: &WhatIf<M>) -> Result<Vec<StageParameters>> {
    let job = &what_if.job;
    let (pp, chunks) = (job.layout.pp, job.schedule.chunks());
    let split = split_layers(job.model.layers(), pp * chunks)?;
    let counts: Vec<usize> = split.iter().map(ExactSizeIterator::len).collect();
    let mut known: Vec<(Key, StageParameters)> = Vec::new();
    let mut stages = Vec::with_capacity(pp);
    for stage in 0..pp {
        let layers: Vec<usize> = (0..chunks).map(|c| counts[c * pp + stage]).collect();
        let key = (stage == 0, stage + 1 == pp, layers);
        // Stages between the ends are alike.
        let same = known.iter().find(|(other, _)| *other == key);
        let parameters = match same {
            Some((_, parameters)) => parameters.clone(),
            None => {
                let parameters = stage_of(what_if, &key);
                known.push((key, parameters.clone()));
                parameters
            }
        };
        stages.push(parameters);
    }
    Ok(stages)
}

fn stage_of<M: Planned>(what_if: &WhatIf<M>, (first, last, layers): &Key) -> StageParameters {
    let job = &what_if.job;
    let tp = job.layout.tp;
    let gradient = if job.sequence_parallel && tp > 1 {
        Placement::Partial
    } else {
        Placement::Replicated
    };
    let tied = job.model.tied();
    let across = tied.filter(|_| job.layout.pp > 1);
    let slots_of = |specs: Vec<ParameterSpec>, chunk| -> Vec<Slot> {
        let slot = |spec: ParameterSpec| {
            let count = spec.placement.local_shape(&spec.shape, tp).iter().product();
            Slot::new(Arc::new(spec), count, chunk, across)
        };
        specs.into_iter().map(slot).collect()
    };
    let (mut slots, mut ends) = (Vec::new(), Vec::new());
    for (chunk, &count) in layers.iter().enumerate() {
        if *first && chunk == 0 {
            ends.extend(slots_of(job.model.first_specs(&gradient), chunk));
            slots.extend(ends.iter().cloned());
        }
        let layer = slots_of(job.model.layer_specs(&gradient), chunk);
        slots.extend(std::iter::repeat_n(layer, count).flatten());
        if *last && chunk + 1 == layers.len() {
            let mut behind = slots_of(job.model.last_specs(&gradient), chunk);
            // A tied table that two parts of one rank share is one parameter.
            behind.retain(|slot| across.is_some() || tied != Some(slot.spec.name.as_str()));
            slots.extend(behind.iter().cloned());
            ends.extend(behind);
        }
    }
    let limit = OptimizerConfig::new(job.zero, job.overlap).bucket_elements;
    let buckets = partition::buckets(&slots, what_if.replicas(), limit);
    let sum = |slots: &[Slot], wanted: &dyn Fn(&Slot) -> bool| -> usize {
        slots.iter().filter(|s| wanted(s)).map(|s| s.count).sum()
    };
    StageParameters {
        layers: layers.clone(),
        count: sum(&slots, &|_| true) as f64,
        bucketed: buckets.iter().map(|b| b.len).sum::<usize>() as f64,
        largest_bucket: buckets.iter().map(|b| b.len).max().unwrap_or(0) as f64,
        buckets: buckets.len(),
        ends: sum(&ends, &|_| true) as f64,
        tied: sum(&slots, &|slot| slot.class.tied) as f64,
        last: *last,
    }
}
