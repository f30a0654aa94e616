//! The schedule ZB-H1 (arXiv 2401.10241): 1F1B whose backward passes are split, so that a stage's gradients for the stage
//! before do not wait for those of its weights. No runner executes it yet; here it is data, executed with costs.

use super::makespan::{Clocks, PassCosts, settled_or_all};
use crate::error::Result;
use crate::pipeline::execute;
use crate::pipeline::schedule::{Kind, Schedule};

/// One piece of work of a stage, on a micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Forward pass.
    Forward(usize),
    /// Gradient of the input, which the stage before waits for.
    Input(usize),
    /// Gradients of the weights, which nobody waits for.
    Weight(usize),
}

/// What one micro-batch costs every stage, in one unit of time of the caller's choice.
#[derive(Debug, Clone, PartialEq)]
pub struct Costs {
    /// Forward pass.
    pub forward: Vec<f64>,
    /// Gradient of the input.
    pub input: Vec<f64>,
    /// Gradients of the weights.
    pub weight: Vec<f64>,
    /// Transit of one message, during which its sender goes on.
    pub send: f64,
}

/// What `stage` does, in order.
///
/// Forward passes and input gradients come as in 1F1B. Weight gradients wait for as many micro-batches as there are stages
/// before this one: then every stage holds `stages` micro-batches at most, as the first stage of 1F1B does, and the later
/// stages have work left while the last gradients travel to the first.
///
/// Source: arXiv 2401.10241, section 2.1 (ZB-H1).
pub fn order(stages: usize, stage: usize, micro_batches: usize) -> Vec<Work> {
    let warm_up = (stages - stage - 1).min(micro_batches);
    let mut order: Vec<_> = (0..warm_up).map(Work::Forward).collect();
    for k in 0..micro_batches {
        order.extend((k + warm_up < micro_batches).then_some(Work::Forward(k + warm_up)));
        order.push(Work::Input(k));
        order.extend(k.checked_sub(stage).map(Work::Weight));
    }
    order.extend((micro_batches.saturating_sub(stage)..micro_batches).map(Work::Weight));
    order
}

/// When a pipeline ends.
#[derive(Debug, Clone, PartialEq)]
pub struct Ends {
    /// Time from the first pass to the end of the last.
    pub makespan: f64,
    /// How long before that each stage's last pass ends.
    pub slack: Vec<f64>,
}

/// Executes the orders of all stages.
///
/// # Errors
/// No stages or micro-batches, or more than can be counted.
pub fn execute(stages: usize, micro_batches: usize, costs: &Costs) -> Result<Ends> {
    Schedule::refuse(Kind::OneForwardOneBackward, stages, micro_batches)?;
    let all = [&costs.forward, &costs.input, &costs.weight];
    if all.iter().any(|costs| costs.len() != stages) {
        return Err(crate::Error::Internal(format!(
            "costs of {:?} stages for {stages}",
            all.map(Vec::len)
        )));
    }
    let busy = |stage: usize| costs.forward[stage] + costs.input[stage] + costs.weight[stage];
    let slowest = (0..stages).map(busy).fold(0.0, f64::max);
    let mut slack = Vec::new();
    let makespan = settled_or_all(stages, micro_batches, slowest, |count| {
        let ends = ends(stages, count, costs)?;
        let last = ends.iter().copied().fold(0.0, f64::max);
        // Of the longest run: a settled pipeline always ends alike.
        slack = ends.iter().map(|end| last - end).collect();
        Ok(last)
    })?;
    Ok(Ends { makespan, slack })
}

/// When each stage ends.
fn ends(stages: usize, micro_batches: usize, costs: &Costs) -> Result<Vec<f64>> {
    let orders: Vec<_> = (0..stages)
        .map(|stage| order(stages, stage, micro_batches))
        .collect();
    let passes = PassCosts {
        forward: costs.forward.clone(),
        backward: costs.input.clone(),
        send: costs.send,
    };
    let mut clocks = Clocks::new(stages, micro_batches, &passes);
    let work = |stage: usize, at: usize| orders[stage].get(at).copied();
    execute::execute(0..stages, work, |stage, work| {
        Ok(match work {
            Work::Forward(micro_batch) => clocks.forward(stage, micro_batch),
            Work::Input(micro_batch) => clocks.backward(stage, micro_batch),
            // After its input gradient, which the order says.
            Work::Weight(_) => {
                clocks.stages[stage] += costs.weight[stage];
                true
            }
        })
    })?;
    Ok(clocks.stages)
}
