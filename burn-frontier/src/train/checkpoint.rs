//! What a checkpoint holds of a training, and how it goes on from one.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::TrainState;
use crate::checkpoint::bytes::as_bytes;
use crate::checkpoint::{self, Checkpoint, Piece, TensorSource};
use crate::comm::{Buffer, Reduction};
use crate::error::{Error, Result};
use crate::optim::scaler::LossScaler;
use crate::parameter::State;
use crate::pipeline::stage::Stage;
use crate::placement::Placement;

/// How far a training has come: what a checkpoint says of it beside its tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps done, skipped ones included.
    pub steps: u64,
    /// Seed of the run.
    pub seed: u64,
    /// Updates that each optimiser has done.
    pub updates: Vec<u64>,
    /// The loss scale.
    pub scaler: LossScaler,
}

impl<S: Stage> TrainState<S> {
    /// How far it has come.
    pub fn progress(&self) -> Progress {
        let updates = self.optimizers.iter();
        Progress {
            steps: self.steps,
            seed: self.seed,
            updates: updates.map(|trained| trained.optimizer.steps).collect(),
            scaler: self.scaler,
        }
    }

    /// Saves everything as a checkpoint of the steps done in `folder`, of which the newest `keep` stay (0: all), and returns its
    /// path. Every rank calls it. [`Self::resume`] continues from it, in any layout, as if nothing had happened.
    ///
    /// # Communication
    /// That of [`checkpoint::save`] and [`Self::pieces`].
    ///
    /// # Errors
    /// Those of [`checkpoint::save`] and [`Self::pieces`].
    pub fn save(&mut self, folder: &Path, keep: usize) -> Result<PathBuf> {
        let progress = serde_json::to_value(self.progress());
        let progress = progress.map_err(|e| Error::Internal(e.to_string()))?;
        let (steps, world) = (self.steps, self.groups.world.clone());
        checkpoint::save(folder, steps, &progress, self.pieces(), &*world, keep)
    }

    /// Continues from a checkpoint that [`Self::save`] made, in any layout.
    ///
    /// # Errors
    /// Another seed, or those of [`Self::restore`].
    pub fn resume(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let progress: Progress = checkpoint.state()?;
        if progress.seed != self.seed {
            return Err(Error::config(
                format!(
                    "{} is of a run with seed {}, not {}",
                    checkpoint.path().display(),
                    progress.seed,
                    self.seed
                ),
                "continue with its seed, or start a new run in another folder",
            ));
        }
        self.restore(&progress, checkpoint)
    }

    /// What this rank writes of model and optimisers: every element of the world is written by exactly one rank. Every rank
    /// calls it and consumes it.
    ///
    /// # Communication
    /// With ZeRO 1 an all-gather of the optimisers' state over dp, a bucket at a time; an all-reduce over dp of a checksum of the
    /// modules' state, if they have any.
    ///
    /// # Errors
    /// As items: failed communication, a device that cannot be read, and a module's state that is not the same on all replicas.
    pub fn pieces(&mut self) -> impl Iterator<Item = Result<Piece>> {
        let state = self.state_pieces();
        let chunks = &mut self.pipeline.chunks;
        let mut pieces = Vec::new();
        for trained in &self.optimizers {
            pieces.push(trained.optimizer.pieces(chunks));
        }
        let state = match state {
            Ok(state) => state.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        };
        state.into_iter().chain(pieces.into_iter().flatten())
    }

    /// The modules' state: rank 0 of tp and of dp writes it.
    fn state_pieces(&self) -> Result<Vec<Piece>> {
        let mut states = Vec::new();
        for chunk in &self.pipeline.chunks {
            states.extend(chunk.state()?);
        }
        if states.is_empty() {
            return Ok(Vec::new());
        }
        self.check_states(&states)?;
        let at = self.groups.at;
        if at.tp != 0 || at.dp != 0 {
            return Ok(Vec::new());
        }
        let pieces = states.into_iter().map(|state| Piece {
            blocks: Placement::Replicated.blocks(&state.shape, 0, 1),
            local_shape: state.shape.clone(),
            name: state.name,
            shape: state.shape,
            data: state.data,
        });
        Ok(pieces.collect())
    }

    /// Fails unless the modules' state is the same on all replicas.
    fn check_states(&self, states: &[State]) -> Result<()> {
        let dp = &self.groups.dp;
        let sums: Vec<i64> = states
            .iter()
            .map(|s| i64::from(crc32fast::hash(as_bytes(&s.data))))
            .collect();
        let largest = dp.all_reduce(Buffer::I64(sums.clone()), Reduction::Max)?;
        let negative = sums.iter().map(|sum| -sum).collect();
        let smallest = dp.all_reduce(Buffer::I64(negative), Reduction::Max)?;
        let range = largest.into_i64()?.into_iter().zip(smallest.into_i64()?);
        let differs = range.zip(states).find(|((max, min), _)| *max != -min);
        differs.map_or(Ok(()), |(_, state)| {
            Err(Error::config(
                format!("{} is not the same on all replicas", state.name),
                "a layer that changes its state in training must do so from what all replicas have, as SyncBatchNorm does",
            ))
        })
    }

    /// Reads what [`Self::pieces`] gave, in any layout, and goes on from there.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape, or damaged; another number of optimisers.
    pub fn restore(&mut self, progress: &Progress, source: &dyn TensorSource) -> Result<()> {
        let (saved, have) = (progress.updates.len(), self.optimizers.len());
        if saved != have {
            return Err(Error::config(
                format!("a checkpoint of {saved} optimisers, and this run has {have}"),
                "continue with as many, in the same order",
            ));
        }
        for chunk in &mut self.pipeline.chunks {
            chunk.set_state(&mut |name, shape| {
                let blocks = Placement::Replicated.blocks(shape, 0, 1);
                source.read(name, shape, &blocks, shape)
            })?;
        }
        for (trained, &updates) in self.optimizers.iter_mut().zip(&progress.updates) {
            let chunks = &mut self.pipeline.chunks;
            trained.optimizer.restore(chunks, updates, source)?;
        }
        (self.steps, self.scaler) = (progress.steps, progress.scaler);
        Ok(())
    }
}
