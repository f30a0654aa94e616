//! Data parallelism and ZeRO (arXiv 1910.02054): gradients summed over replicas in buckets, optimiser state kept whole
//! (stage 0) or split over the replicas (stage 1).

pub mod optimizer;
pub mod partition;
pub mod reducer;
pub mod state;

use std::sync::Arc;

use crate::comm::groups::Groups;
use crate::error::Result;
use crate::parameter::Module;
use optimizer::{AdamWConfig, ShardedAdamW};
use reducer::{GradientReducer, ReducerOptions};

/// How replicas share their work.
#[derive(Debug, Clone, Copy)]
pub struct ZeroConfig {
    /// The optimiser's constants.
    pub adamw: AdamWConfig,
    /// How gradients are reduced and the state is split.
    pub reducer: ReducerOptions,
    /// Most elements of a bucket.
    pub bucket_elements: usize,
}

impl ZeroConfig {
    /// AdamW with its usual constants, buckets of 25 million elements.
    pub fn new(zero_stage: u8, overlap: bool) -> Self {
        Self {
            adamw: AdamWConfig::default(),
            reducer: ReducerOptions {
                zero_stage,
                overlap,
            },
            bucket_elements: 25_000_000,
        }
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
    ) -> Result<(GradientReducer, ShardedAdamW)> {
        let slots = Arc::new(partition::slots(chunks, tied));
        partition::share_sums(chunks, &slots);
        let buckets = partition::buckets(&slots, groups.layout.dp, self.bucket_elements);
        let buckets = Arc::new(buckets);
        let reducer = GradientReducer::new(slots.clone(), buckets.clone(), groups, self.reducer)?;
        let stage = self.reducer.zero_stage;
        let optimizer =
            ShardedAdamW::new(self.adamw, chunks, slots, buckets, groups.clone(), stage)?;
        Ok((reducer, optimizer))
    }
}
