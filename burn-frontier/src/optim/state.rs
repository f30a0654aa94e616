//! Parameters and an optimiser's state as logical tensors, for checkpoints that any layout can read.
//!
//! Beside a parameter `p` lie `p::exp_avg` and `p::exp_avg_sq` of AdamW; of a rule of Burn's, what the rule remembers under Burn's
//! own names (`p::momentum.moment_1`), its numbers as tensors of no dimension; and for a parameter in half precision
//! `p::master`.

use burn::tensor::{Tensor, TensorData};

use super::adamw::Moments;
use super::optimizer::{Optimizer, failed_before};
use super::rule::{Apart, BurnRule, Rule};
use super::stored::{self, MASTER, Stored};
use super::update::{Kept, Memory, Part};
use crate::checkpoint::{Piece, TensorSource};
use crate::comm::Buffer;
use crate::comm::tensor::{from_buffer, to_buffer};
use crate::error::{Error, Result};
use crate::parameter::{Module, load_selected};
use crate::placement::Placement;
use crate::precision::{full_precision, is_half};
use crate::zero::partition::Slot;

/// Suffixes of AdamW's tensors.
const FIRST: &str = "::exp_avg";
const SECOND: &str = "::exp_avg_sq";

impl Optimizer {
    /// What this rank writes of its parameters, the frozen ones included, and of their state: every element of the world is
    /// written by exactly one rank, the replicas taking turns by parameter.
    ///
    /// # Communication
    /// With ZeRO 1 an all-gather of the optimiser state over dp, a bucket at a time, where a rule is element-wise. Every rank
    /// calls it and consumes it.
    pub fn pieces<'a, M: Module>(
        &'a self,
        chunks: &mut [M],
    ) -> impl Iterator<Item = Result<Piece>> + use<'a, M> {
        let values = self.values(chunks);
        (0..=self.buckets.len()).flat_map(move |i| {
            let values = values.as_ref().map_err(Error::clone);
            let pieces = values.and_then(|values| match i < self.buckets.len() {
                true => self.bucket_pieces(i, values),
                false => self.frozen_pieces(values),
            });
            match pieces {
                Ok(pieces) => pieces.into_iter().map(Ok).collect::<Vec<_>>(),
                Err(error) => vec![Err(error)],
            }
        })
    }

    fn bucket_pieces(&self, i: usize, values: &[Tensor<1>]) -> Result<Vec<Piece>> {
        let bucket = &self.buckets[i];
        let part = self.part(bucket);
        let memory = self.memory[i].as_ref().ok_or_else(failed_before)?;
        match (memory, &part.update.rule) {
            (Memory::Flat(kept), Rule::Burn(rule)) => {
                let apart = kept.state.as_ref().map(|state| rule.take_apart(state));
                let Apart { numbers, tensors } = apart.unwrap_or_default();
                let device = values[bucket.slots[0].0].device();
                let mut flat = Vec::new();
                for (name, data) in tensors {
                    refuse_shape(rule, &name, &data, part.piece.len())?;
                    flat.push((format!("::{name}"), stored::to_flat(data, &device)));
                }
                flat.extend(kept.master.clone().map(|x| (MASTER.to_owned(), x)));
                let mut pieces = self.flat_pieces(&part, flat, values)?;
                for &(slot, _) in &bucket.slots {
                    let here = self.writes(slot) && self.groups.at.tp == 0;
                    for (name, &number) in numbers.iter().filter(|_| here) {
                        let name = format!("{}::{name}", self.slots[slot].spec.name);
                        pieces.push(stored::number_piece(name, number));
                    }
                }
                Ok(pieces)
            }
            (Memory::Whole(all), Rule::Burn(rule)) => self.whole_pieces(&part, rule, all, values),
            (Memory::AdamW(moments), _) => {
                let mut flat = vec![
                    (FIRST.to_owned(), moments.first.clone()),
                    (SECOND.to_owned(), moments.second.clone()),
                ];
                flat.extend(moments.master.clone().map(|x| (MASTER.to_owned(), x)));
                self.flat_pieces(&part, flat, values)
            }
            _ => Err(Error::Internal(
                "the optimiser's memory is another rule's".into(),
            )),
        }
    }

    /// The values of a bucket's parameters, and the tensors that belong to them, of which every replica has its piece.
    fn flat_pieces(
        &self,
        part: &Part<'_>,
        flat: Vec<(String, Tensor<1>)>,
        values: &[Tensor<1>],
    ) -> Result<Vec<Piece>> {
        let whole = flat.into_iter().map(|(suffix, x)| (suffix, self.gather(x)));
        let whole: Vec<_> = whole.collect();
        self.groups.world.failure().map_or(Ok(()), Err)?;
        let mut pieces = Vec::new();
        for &(slot, offset) in &part.bucket.slots {
            if !self.writes(slot) {
                continue;
            }
            let known = &self.slots[slot];
            pieces.push(self.piece(known, "", values[slot].clone())?);
            for (suffix, whole) in &whole {
                let run = whole.clone().narrow(0, offset, known.count);
                pieces.push(self.piece(known, suffix, run)?);
            }
        }
        Ok(pieces)
    }

    /// The values of a bucket's parameters, and what this replica remembers of those that it updates whole.
    fn whole_pieces(
        &self,
        part: &Part<'_>,
        rule: &BurnRule,
        all: &[(usize, Kept)],
        values: &[Tensor<1>],
    ) -> Result<Vec<Piece>> {
        let mut pieces = self.flat_pieces(part, Vec::new(), values)?;
        for (slot, kept) in all {
            let (spec, class) = (&self.slots[*slot].spec, self.slots[*slot].class);
            let turn = self.sharded || slot % self.groups.layout.dp == self.groups.at.dp;
            let tied_elsewhere = class.tied && !self.groups.is_first_stage();
            if !turn || self.groups.at.tp != 0 || tied_elsewhere {
                continue;
            }
            let device = values[*slot].device();
            let apart = kept.state.as_ref().map(|state| rule.take_apart(state));
            let Apart { numbers, tensors } = apart.unwrap_or_default();
            for (name, number) in numbers {
                let name = format!("{}::{name}", spec.name);
                pieces.push(stored::number_piece(name, number));
            }
            for (name, data) in tensors {
                let (name, shape) = (format!("{}::{name}", spec.name), data.shape().to_vec());
                let data = stored::to_elements(data, &device)?;
                pieces.push(stored::whole_piece(name, shape, data));
            }
            if let Some(master) = &kept.master {
                let name = format!("{}{MASTER}", spec.name);
                let data = to_buffer(master.clone())?;
                pieces.push(stored::whole_piece(name, spec.shape.clone(), data));
            }
        }
        Ok(pieces)
    }

    fn frozen_pieces(&self, values: &[Tensor<1>]) -> Result<Vec<Piece>> {
        let slots = self.slots.iter().enumerate();
        let frozen = slots.filter(|(i, slot)| slot.frozen && self.writes(*i));
        frozen
            .map(|(i, slot)| self.piece(slot, "", values[i].clone()))
            .collect()
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

    /// Reads its parameters and their state, which [`Self::pieces`] wrote in any layout.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape, or damaged; a state that is another rule's.
    pub fn restore<M: Module>(
        &mut self,
        chunks: &mut [M],
        steps: u64,
        source: &dyn TensorSource,
    ) -> Result<()> {
        load_selected(chunks, &self.selection, source, &self.groups.tp)?;
        self.steps = steps;
        let values = self.values(chunks)?;
        for (i, bucket) in self.buckets.clone().iter().enumerate() {
            let part = self.part(bucket);
            let memory = match &part.update.rule {
                Rule::AdamW(_) => {
                    Memory::AdamW(Box::new(self.read_moments(&part, &values, source)?))
                }
                Rule::Burn(rule) if rule.is_element_wise() => Memory::Flat(Box::new(
                    self.read_flat_state(&part, rule, &values, source)?,
                )),
                Rule::Burn(rule) => {
                    let own = part.own_slots();
                    let read = own.map(|(slot, _)| self.read_whole(rule, slot, &values, source));
                    Memory::Whole(read.collect::<Result<_>>()?)
                }
            };
            self.memory[i] = Some(memory);
        }
        Ok(())
    }

    fn read_moments(
        &self,
        part: &Part<'_>,
        values: &[Tensor<1>],
        source: &dyn TensorSource,
    ) -> Result<Moments> {
        Ok(Moments {
            first: full_precision(self.read_flat(part, FIRST, values, source)?),
            second: full_precision(self.read_flat(part, SECOND, values, source)?),
            master: self.read_master(part, values, source)?,
        })
    }

    fn read_master(
        &self,
        part: &Part<'_>,
        values: &[Tensor<1>],
        source: &dyn TensorSource,
    ) -> Result<Option<Tensor<1>>> {
        let half = is_half(&values[part.bucket.slots[0].0]);
        half.then(|| self.read_flat(part, MASTER, values, source))
            .transpose()
    }

    /// This replica's piece of a bucket's tensors with one suffix.
    fn read_flat(
        &self,
        part: &Part<'_>,
        suffix: &str,
        values: &[Tensor<1>],
        source: &dyn TensorSource,
    ) -> Result<Tensor<1>> {
        let mut runs = values.to_vec();
        for &(slot, _) in &part.bucket.slots {
            let data = self.read_local(source, &self.slots[slot], suffix)?;
            let shape = [self.slots[slot].count].into();
            runs[slot] = from_buffer(data, shape, &values[slot].device())?;
        }
        Ok(part.flat(&runs))
    }

    fn read_local(&self, source: &dyn TensorSource, slot: &Slot, suffix: &str) -> Result<Buffer> {
        let (spec, tp) = (&slot.spec, &self.groups.tp);
        source.read(
            &format!("{}{suffix}", spec.name),
            &spec.shape,
            &spec.placement.blocks(&spec.shape, tp.rank(), tp.size()),
            &spec.placement.local_shape(&spec.shape, tp.size()),
        )
    }

    /// What an element-wise rule remembers of a piece.
    fn read_flat_state(
        &self,
        part: &Part<'_>,
        rule: &BurnRule,
        values: &[Tensor<1>],
        source: &dyn TensorSource,
    ) -> Result<Kept> {
        let name = |slot: usize| self.slots[slot].spec.name.as_str();
        let first = part.bucket.slots[0].0;
        let same_names = |a: &Stored, b: &Stored| {
            let names = |s: &Stored| s.tensors.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>();
            a.numbers == b.numbers && names(a) == names(b)
        };
        let known = Stored::of(name(first), source)?;
        for &(slot, _) in &part.bucket.slots[1..] {
            if !same_names(&known, &Stored::of(name(slot), source)?) {
                return Err(Error::config(
                    format!(
                        "{} and {} have not been updated together so far, and are to be updated so from here on",
                        name(first),
                        name(slot)
                    ),
                    "put them into two parameter groups, as they were when they were saved",
                ));
            }
        }
        let device = values[first].device();
        let read = |own: &str, _: &[usize]| {
            let flat = self.read_flat(part, &format!("::{own}"), values, source)?;
            stored::from_flat(flat, &[part.piece.len()])
        };
        Ok(Kept {
            state: known.state(rule, (name(first), 1, &device), self.steps, read)?,
            master: self.read_master(part, values, source)?,
        })
    }

    /// What a rule remembers of a whole parameter.
    fn read_whole(
        &self,
        rule: &BurnRule,
        slot: usize,
        values: &[Tensor<1>],
        source: &dyn TensorSource,
    ) -> Result<(usize, Kept)> {
        let (spec, device) = (&self.slots[slot].spec, values[slot].device());
        let stored = Stored::of(&spec.name, source)?;
        let read = |own: &str, shape: &[usize]| {
            let name = format!("{}::{own}", spec.name);
            stored::from_flat(stored::read_whole(source, &name, shape, &device)?, shape)
        };
        let named = (spec.name.as_str(), spec.shape.len(), &device);
        let state = stored.state(rule, named, self.steps, read)?;
        let master = is_half(&values[slot]).then(|| {
            let name = format!("{}{MASTER}", spec.name);
            stored::read_whole(source, &name, &spec.shape, &device)
        });
        let master = master.transpose()?;
        Ok((slot, Kept { state, master }))
    }
}

/// Fails unless a tensor of an element-wise rule has an element for every one of the piece.
fn refuse_shape(rule: &BurnRule, name: &str, data: &TensorData, piece: usize) -> Result<()> {
    if data.shape().num_elements() == piece {
        return Ok(());
    }
    Err(Error::config(
        format!(
            "{} is said to be element-wise, and its {name} is {:?} for {piece} elements",
            rule.name(),
            data.shape()
        ),
        "leave out BurnRule::element_wise, so that it gets whole parameters",
    ))
}
