//! What a rank's optimiser is made from.

use std::sync::Arc;

use super::adamw::AdamWConfig;
use super::optimizer::Optimizer;
use super::rule::Rule;
use crate::comm::groups::Groups;
use crate::error::Result;
use crate::parameter::Module;
use crate::zero::partition;
use crate::zero::reducer::{GradientReducer, ReducerOptions};

/// How a rank's parameters are updated.
#[derive(Debug, Clone)]
pub struct OptimizerConfig {
    /// The update of every parameter.
    pub rule: Rule,
    /// How gradients are reduced and the state is split.
    pub reducer: ReducerOptions,
    /// Most elements of a bucket.
    pub bucket_elements: usize,
}

impl OptimizerConfig {
    /// AdamW with its usual constants, buckets of 25 million elements.
    pub fn new(zero_stage: u8, overlap: bool) -> Self {
        Self {
            rule: Rule::AdamW(AdamWConfig::default()),
            reducer: ReducerOptions {
                zero_stage,
                overlap,
            },
            bucket_elements: 25_000_000,
        }
    }

    /// With another update.
    pub fn with_rule(mut self, rule: Rule) -> Self {
        self.rule = rule;
        self
    }

    /// Makes reducer and optimiser of a stage's chunks, whose backward passes may add to the reducer's sums from then on.
    /// `tied`: the parameter that first and last stage share, if any. Every rank calls it.
    ///
    /// # Errors
    /// A ZeRO stage that does not exist, or groups that cannot be formed.
    pub fn init<M: Module>(
        &self,
        chunks: &mut [M],
        tied: Option<&str>,
        groups: &Groups,
    ) -> Result<(GradientReducer, Optimizer)> {
        let slots = Arc::new(partition::slots(chunks, tied));
        partition::share_sums(chunks, &slots);
        let buckets = partition::buckets(&slots, groups.layout.dp, self.bucket_elements);
        let buckets = Arc::new(buckets);
        let reducer = GradientReducer::new(slots.clone(), buckets.clone(), groups, self.reducer)?;
        let stage = self.reducer.zero_stage;
        let optimizer = Optimizer::new(
            self.rule.clone(),
            chunks,
            slots,
            buckets,
            groups.clone(),
            stage,
        )?;
        Ok((reducer, optimizer))
    }
}
