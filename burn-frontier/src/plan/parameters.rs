//! The parameters of every stage, from the specifications that the model is made from.

use std::sync::Arc;

use super::what_if::WhatIf;
use crate::error::Result;
use crate::models::gpt::sharding::TOKEN_EMBEDDING;
use crate::pipeline::schedule::split_layers;
use crate::placement::Placement;
use crate::zero::ZeroConfig;
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
    /// Whether the embedding lies here.
    pub first: bool,
    /// Whether the head lies here.
    pub last: bool,
}

/// What decides a stage's parameters: whether it is the first, the last, and the layers of its chunks.
type Key = (bool, bool, Vec<usize>);

/// The parameters of all stages of `what_if`.
pub(super) fn stages(what_if: &WhatIf) -> Result<Vec<StageParameters>> {
    let job = &what_if.job;
    let (pp, chunks) = (job.layout.pp, job.schedule.chunks());
    let split = split_layers(job.model.layers, pp * chunks)?;
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
                let parts = (0..chunks).map(|c| split[c * pp + stage].clone());
                let parameters = stage_of(what_if, parts, &key);
                known.push((key, parameters.clone()));
                parameters
            }
        };
        stages.push(parameters);
    }
    Ok(stages)
}

fn stage_of(
    what_if: &WhatIf,
    parts: impl Iterator<Item = std::ops::Range<usize>>,
    (first, last, layers): &Key,
) -> StageParameters {
    let job = &what_if.job;
    let tp = job.layout.tp;
    let partial = job.sequence_parallel && tp > 1;
    let gradient = if partial {
        Placement::Partial
    } else {
        Placement::Replicated
    };
    let tied = (job.model.tied && job.layout.pp > 1).then_some(TOKEN_EMBEDDING);
    let mut slots: Vec<Slot> = Vec::new();
    for (chunk, part) in parts.enumerate() {
        for spec in job.model.part_specs(part, &gradient) {
            // A tied table that two parts of one rank share is one parameter.
            if tied.is_some() || slots.iter().all(|slot| slot.spec.name != spec.name) {
                let count = spec.placement.local_shape(&spec.shape, tp).iter().product();
                slots.push(Slot::new(Arc::new(spec), count, chunk, tied));
            }
        }
    }
    let limit = ZeroConfig::new(job.zero, job.overlap).bucket_elements;
    let buckets = partition::buckets(&slots, what_if.replicas(), limit);
    let sum = |wanted: &dyn Fn(&Slot) -> bool| -> usize {
        slots.iter().filter(|s| wanted(s)).map(|s| s.count).sum()
    };
    StageParameters {
        layers: layers.clone(),
        count: sum(&|_| true) as f64,
        bucketed: buckets.iter().map(|b| b.len).sum::<usize>() as f64,
        largest_bucket: buckets.iter().map(|b| b.len).max().unwrap_or(0) as f64,
        buckets: buckets.len(),
        ends: sum(&|slot| !slot.spec.name.starts_with("layers.")) as f64,
        tied: sum(&|slot| slot.class.tied) as f64,
        first: *first,
        last: *last,
    }
}
