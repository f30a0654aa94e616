//! The parameters of every stage, from the specifications that the model is made from.

use std::ops::Range;
use std::sync::Arc;

use super::what_if::WhatIf;
use crate::error::Result;
use crate::models::gpt::GptConfig;
use crate::models::gpt::sharding::TOKEN_EMBEDDING;
use crate::optim::OptimizerConfig;
use crate::parameter::ParameterSpec;
use crate::pipeline::schedule::split_layers;
use crate::placement::Placement;
use crate::zero::partition::{self, Slot};

/// How the names of all parameters of layers begin.
const LAYERS: &str = "layers.";

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

/// The parameters of a part, each made by `slot`. Its layers are alike, and those between its ends are the first again.
fn slots_of(
    model: &GptConfig,
    part: Range<usize>,
    gradient: &Placement,
    slot: impl Fn(ParameterSpec) -> Slot,
) -> Vec<Slot> {
    let of_layer = |layer: usize| {
        let specs = model.part_specs(layer..layer + 1, gradient);
        specs.into_iter().map(&slot)
    };
    let mut all: Vec<_> = of_layer(part.start).collect();
    let inner = all.iter().filter(|slot| slot.spec.name.starts_with(LAYERS));
    let inner: Vec<_> = inner.cloned().collect();
    let between = part.len().saturating_sub(2);
    all.extend(std::iter::repeat_n(inner, between).flatten());
    if part.len() > 1 {
        all.extend(of_layer(part.end - 1));
    }
    all
}

fn stage_of(
    what_if: &WhatIf,
    parts: impl Iterator<Item = Range<usize>>,
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
    let mut has_table = false;
    for (chunk, part) in parts.enumerate() {
        let slot = |spec: ParameterSpec| {
            let count = spec.placement.local_shape(&spec.shape, tp).iter().product();
            Slot::new(Arc::new(spec), count, chunk, tied)
        };
        for slot in slots_of(&job.model, part, &gradient, slot) {
            // A tied table that two parts of one rank share is one parameter.
            let shared = tied.is_none() && slot.spec.name == TOKEN_EMBEDDING;
            if !(shared && has_table) {
                slots.push(slot);
            }
            has_table |= shared;
        }
    }
    let limit = OptimizerConfig::new(job.zero, job.overlap).bucket_elements;
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
        ends: sum(&|slot| !slot.spec.name.starts_with(LAYERS)) as f64,
        tied: sum(&|slot| slot.class.tied) as f64,
        first: *first,
        last: *last,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_listed_as_the_model_lists_them() {
        let gpt = GptConfig::new(7, 32, 4, 300, 16);
        let gradient = Placement::Replicated;
        for model in [gpt.clone(), gpt.modern()] {
            for part in [0..1, 0..2, 0..7, 2..5, 3..7, 6..7] {
                let shown = |spec: &ParameterSpec| {
                    let table = spec.name == TOKEN_EMBEDDING;
                    (
                        table,
                        spec.shape.clone(),
                        spec.placement.clone(),
                        spec.decay,
                    )
                };
                let slot = |spec| Slot::new(Arc::new(spec), 1, 0, None);
                let listed = slots_of(&model, part.clone(), &gradient, slot);
                let listed: Vec<_> = listed.iter().map(|slot| shown(&slot.spec)).collect();
                let all = model.part_specs(part.clone(), &gradient);
                assert_eq!(
                    listed,
                    all.iter().map(shown).collect::<Vec<_>>(),
                    "{part:?}"
                );
            }
        }
    }
}
