//! What a rank's optimiser is made from.

use std::sync::Arc;

use super::adamw::AdamWConfig;
use super::group::{ParameterGroup, Updates};
use super::optimizer::Optimizer;
use super::rule::Rule;
use crate::comm::groups::Groups;
use crate::comm::{Buffer, Reduction};
use crate::error::Result;
use crate::ops::adamw::takes_short_runs;
use crate::parameter::{Module, Selection};
use crate::zero::partition::{self, Slot};
use crate::zero::reducer::{GradientReducer, ReducerOptions};

/// How a rank's parameters are updated.
#[derive(Debug, Clone)]
pub struct OptimizerConfig {
    /// The update of every parameter that is in no group.
    pub rule: Rule,
    /// Parameters that are updated otherwise. Every parameter is in one at most.
    pub groups: Vec<ParameterGroup>,
    /// The optimiser's parameters. Others are left alone: another optimiser may have them.
    pub selection: Selection,
    /// How gradients are reduced and the state is split.
    pub reducer: ReducerOptions,
    /// Most elements of a bucket. One rank on the CPU has none to exchange, and updates all but short
    /// parameters where they lie.
    pub bucket_elements: usize,
}

/// Elements up to which copying parameters costs less than having a tensor for each.
const SHORT: usize = 1 << 14;

impl OptimizerConfig {
    /// AdamW with its usual constants for every parameter, buckets of 25 million elements.
    pub fn new(zero_stage: u8, overlap: bool) -> Self {
        Self {
            rule: AdamWConfig::default().into(),
            groups: Vec::new(),
            selection: Selection::all(),
            reducer: ReducerOptions {
                zero_stage,
                overlap,
            },
            bucket_elements: 25_000_000,
        }
    }

    /// With another update: [`AdamWConfig`], a [`BurnRule`](super::BurnRule), or what Burn's configurations `build()`, which leaves
    /// out their clipping of gradients: [`StepOptions::clip`](crate::train::StepOptions::clip) is for that.
    ///
    /// ```
    /// use burn::optim::MuonConfig;
    /// use burn_frontier::optim::{AdamWConfig, OptimizerConfig, ParameterGroup};
    /// use burn_frontier::parameter::Selection;
    ///
    /// let vectors = Selection::matching(|name| name.ends_with("bias") || name.contains("norm"));
    /// let config = OptimizerConfig::new(1, true)
    ///     .with_rule(MuonConfig::new().build())
    ///     .with_group(ParameterGroup::new(vectors).with_rule(AdamWConfig::default()).with_rate_factor(0.1));
    /// # assert_eq!(config.groups.len(), 1);
    /// ```
    pub fn with_rule(mut self, rule: impl Into<Rule>) -> Self {
        self.rule = rule.into();
        self
    }

    /// With one parameter group more.
    pub fn with_group(mut self, group: ParameterGroup) -> Self {
        self.groups.push(group);
        self
    }

    /// For some of the model's parameters.
    pub fn with_selection(mut self, selection: Selection) -> Self {
        self.selection = selection;
        self
    }

    /// The parameters whose gradients it needs: those selected, without the frozen ones.
    pub fn trained(&self) -> Selection {
        let (selection, groups) = (self.selection.clone(), self.groups.clone());
        Selection::matching(move |name| {
            let frozen = |group: &ParameterGroup| group.frozen && group.selection.contains(name);
            selection.contains(name) && !groups.iter().any(frozen)
        })
    }

    /// Makes reducer and optimiser of a stage's chunks, whose backward passes may add to the reducer's sums from then on.
    /// `tied`: the parameter that first and last stage share, if any. Every rank calls it.
    ///
    /// # Communication
    /// All-reduce of an integer a parameter group, and of two more, over the world.
    ///
    /// # Errors
    /// A ZeRO stage that does not exist; a selection or a group that has no parameter in the whole model, or nothing that is
    /// trained; a parameter that is in two groups, has another optimiser, or is none that its rule can update; groups of ranks that cannot be formed.
    pub fn init<M: Module>(
        &self,
        chunks: &mut [M],
        tied: Option<&str>,
        groups: &Groups,
    ) -> Result<(GradientReducer, Optimizer)> {
        self.reducer.check()?;
        let updates = Updates::new(&self.rule, &self.groups)?;
        let mut slots = partition::slots(chunks, tied);
        let names: Vec<String> = slots.iter().map(|slot| slot.spec.name.clone()).collect();
        slots.retain(|slot| self.selection.contains(&slot.spec.name));
        let sharded = self.reducer.zero_stage > 0 && groups.layout.dp > 1;
        let counts = told(groups, assign(&updates, &mut slots, sharded))?;
        let sums = groups
            .world
            .all_reduce(Buffer::I64(counts), Reduction::Sum)?
            .into_i64()?;
        updates.check_counts(&sums, &names)?;
        told(groups, partition::share_sums(chunks, &slots))?;
        let slots = Arc::new(slots);
        // Where there is nobody to exchange with, joining would only copy.
        let device = partition::device(chunks);
        let limit = match groups.world.size() == 1 && device.is_some_and(takes_short_runs) {
            true => self.bucket_elements.min(SHORT),
            false => self.bucket_elements,
        };
        let buckets = partition::buckets(&slots, groups.layout.dp, limit);
        let buckets = Arc::new(buckets);
        let optimizer = Optimizer::new(
            updates.all,
            self.selection.clone(),
            chunks,
            (slots.clone(), buckets.clone()),
            groups.clone(),
            sharded,
        )?;
        let kinds = optimizer.gradient_kinds();
        let reducer =
            GradientReducer::new(slots, buckets, kinds, self.trained(), groups, self.reducer)?;
        Ok((reducer, optimizer))
    }
}

/// What one rank found, of which those that wait for it learn if it is an error.
fn told<T>(groups: &Groups, found: Result<T>) -> Result<T> {
    if let Err(error) = &found
        && groups.world.size() > 1
    {
        groups.world.fail(error.clone());
    }
    found
}

/// Says in every slot's class how it is updated. Gives how many parameters each update has, and how many are trained.
fn assign(updates: &Updates, slots: &mut [Slot], sharded: bool) -> Result<Vec<i64>> {
    let mut counts = vec![0; updates.all.len() + 1];
    for slot in slots {
        let (number, group) = updates.of(&slot.spec)?;
        counts[number] += 1;
        slot.class.group = number;
        slot.frozen = group.is_some_and(|group| group.frozen);
        if slot.frozen {
            continue;
        }
        counts[updates.all.len()] += 1;
        match &updates.all[number].rule {
            Rule::AdamW(_) => {
                let decay = group.and_then(|group| group.decay);
                slot.class.decay = decay.unwrap_or(slot.spec.decay);
            }
            Rule::Burn(rule) => {
                rule.check(&slot.spec)?;
                // It decides by itself what decays.
                slot.class.decay = false;
                slot.class.whole = sharded && !rule.is_element_wise();
            }
        }
    }
    Ok(counts)
}
