//! A stage's parameters and optimiser state as logical tensors, for checkpoints that any layout can read.

use burn::tensor::Tensor;

use super::optimizer::{Moments, Optimizer, full_precision};
use crate::checkpoint::{Piece, TensorSource};
use crate::comm::tensor::{from_buffer, to_buffer};
use crate::comm::{Buffer, Group};
use crate::error::{Error, Result};
use crate::parameter::{Module, load_parameters};
use crate::placement::Placement;
use crate::zero::partition::Slot;

/// Suffixes of a parameter's optimiser tensors.
const FIRST: &str = "::exp_avg";
const SECOND: &str = "::exp_avg_sq";
const MASTER: &str = "::master";

impl Optimizer {
    /// What this rank writes of the model and the optimiser: every element of the world is written by exactly one rank,
    /// the replicas taking turns by parameter.
    ///
    /// # Communication
    /// With ZeRO 1 an all-gather of the optimiser state over dp, a bucket at a time. Every rank calls it and consumes it.
    pub fn pieces<'a, M: Module>(
        &'a self,
        chunks: &mut [M],
    ) -> impl Iterator<Item = Result<Piece>> + use<'a, M> {
        let values = self.values(chunks);
        (0..self.buckets.len()).flat_map(move |i| {
            let values = values.as_ref().map_err(Error::clone);
            match values.and_then(|values| self.bucket_pieces(i, values)) {
                Ok(pieces) => pieces.into_iter().map(Ok).collect::<Vec<_>>(),
                Err(error) => vec![Err(error)],
            }
        })
    }

    fn bucket_pieces(&self, i: usize, values: &[Tensor<1>]) -> Result<Vec<Piece>> {
        let state = &self.states[i];
        let mut kinds = vec![
            (FIRST, self.gather(state.first.clone())),
            (SECOND, self.gather(state.second.clone())),
        ];
        if let Some(master) = &state.master {
            kinds.push((MASTER, self.gather(master.clone())));
        }
        self.groups.world.failure().map_or(Ok(()), Err)?;
        let mut pieces = Vec::new();
        for &(slot, offset) in &self.buckets[i].slots {
            if !self.writes(slot) {
                continue;
            }
            let known = &self.slots[slot];
            pieces.push(self.piece(known, "", values[slot].clone())?);
            for (suffix, whole) in &kinds {
                let run = whole.clone().narrow(0, offset, known.count);
                pieces.push(self.piece(known, suffix, run)?);
            }
        }
        Ok(pieces)
    }

    /// Whether this rank is the one that writes its part of a slot.
    fn writes(&self, slot: usize) -> bool {
        let (at, class) = (self.groups.at, self.slots[slot].class);
        slot % self.groups.layout.dp == at.dp
            && (!class.replicated || at.tp == 0)
            && (!class.tied || self.groups.is_first_stage())
    }

    fn piece(&self, slot: &Slot, suffix: &str, data: Tensor<1>) -> Result<Piece> {
        let (spec, tp) = (&slot.spec, &self.groups.tp);
        let placement: &Placement = &spec.placement;
        Ok(Piece {
            name: format!("{}{suffix}", spec.name),
            shape: spec.shape.clone(),
            blocks: placement.blocks(&spec.shape, tp.rank(), tp.size()),
            local_shape: placement.local_shape(&spec.shape, tp.size()),
            data: to_buffer(data)?,
        })
    }

    /// Reads parameters and optimiser state that [`Self::pieces`] wrote, in any layout.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape, or damaged.
    pub fn restore<M: Module>(
        &mut self,
        chunks: &mut [M],
        steps: u64,
        source: &dyn TensorSource,
    ) -> Result<()> {
        load_parameters(chunks, source, &self.groups.tp)?;
        self.steps = steps;
        let values = self.values(chunks)?;
        for (i, bucket) in self.buckets.clone().iter().enumerate() {
            let read = |suffix: &str| -> Result<Tensor<1>> {
                let mut runs = values.clone();
                for &(slot, _) in &bucket.slots {
                    let data = read_local(source, &self.slots[slot], suffix, &self.groups.tp)?;
                    let shape = [self.slots[slot].count].into();
                    runs[slot] = from_buffer(data, shape, &values[slot].device())?;
                }
                Ok(self.own(bucket, self.flatten(bucket, &runs)))
            };
            let moments = Moments {
                first: full_precision(read(FIRST)?),
                second: full_precision(read(SECOND)?),
                master: match &self.states[i].master {
                    Some(_) => Some(read(MASTER)?),
                    None => None,
                },
            };
            self.states[i] = moments;
        }
        Ok(())
    }
}

fn read_local(source: &dyn TensorSource, slot: &Slot, suffix: &str, tp: &Group) -> Result<Buffer> {
    let spec = &slot.spec;
    source.read(
        &format!("{}{suffix}", spec.name),
        &spec.shape,
        &spec.placement.blocks(&spec.shape, tp.rank(), tp.size()),
        &spec.placement.local_shape(&spec.shape, tp.size()),
    )
}
