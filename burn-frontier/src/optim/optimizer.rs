//! The optimiser of a rank: its state lies on the replicas as the ZeRO stage says.

use std::collections::HashMap;
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor};

use super::adamw::Moments;
use super::group::Update;
use super::logical;
use super::update::{Memory, Numbers, Part, nothing_like};
use crate::comm::groups::Groups;
use crate::comm::{Buffer, Reduction};
use crate::error::{Error, Result};
use crate::ops::adamw::{AdamWRun, adamw_of_all};
use crate::ops::exchange::{Exchange, apply};
use crate::ops::sum_squares::sum_of_squares;
use crate::parameter::{Module, Parameter, ParameterSpec, Selection, Visitor};
use crate::zero::partition::{Bucket, Slot};

/// Elements from which copies are updated before more are made.
const MOST_COPIED: usize = 1 << 20;

/// Optimiser of one stage's parameters, or of a selection of them. Stage 0 keeps a bucket's whole state on every replica, stage
/// 1 this replica's piece.
#[derive(Debug)]
pub struct Optimizer {
    /// Steps done.
    pub steps: u64,
    pub(super) updates: Vec<Update>,
    pub(super) selection: Selection,
    pub(super) slots: Arc<Vec<Slot>>,
    pub(super) buckets: Arc<Vec<Bucket>>,
    /// Of each bucket; none after a step that failed half-way.
    pub(super) memory: Vec<Option<Memory>>,
    pub(super) groups: Groups,
    pub(super) sharded: bool,
    /// Where the buckets' gradients are, and their type.
    kinds: Vec<(Device, DType)>,
    by_name: HashMap<String, usize>,
}

impl Optimizer {
    /// Makes the optimiser of a stage's parameters: moments zero, master weights from the parameters.
    pub(super) fn new<M: Module>(
        updates: Vec<Update>,
        selection: Selection,
        chunks: &mut [M],
        (slots, buckets): (Arc<Vec<Slot>>, Arc<Vec<Bucket>>),
        groups: Groups,
        sharded: bool,
    ) -> Result<Self> {
        let named = slots.iter().enumerate();
        let mut optimizer = Self {
            steps: 0,
            updates,
            selection,
            by_name: named.map(|(i, s)| (s.spec.name.clone(), i)).collect(),
            slots,
            buckets,
            memory: Vec::new(),
            sharded,
            groups,
            kinds: Vec::new(),
        };
        let values = optimizer.values(chunks)?;
        for bucket in optimizer.buckets.iter() {
            let value = &values[bucket.slots[0].0];
            let dtype = match value.dtype() {
                DType::F64 => DType::F64,
                _ => DType::F32,
            };
            optimizer.kinds.push((value.device(), dtype));
            optimizer
                .memory
                .push(Some(optimizer.part(bucket).begin(&values)));
        }
        optimizer.groups.world.failure().map_or(Ok(optimizer), Err)
    }

    /// Where the buckets' gradients are, and their type.
    pub(super) fn gradient_kinds(&self) -> Vec<(Device, DType)> {
        self.kinds.clone()
    }

    /// Global names of this stage's parameters that it updates.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let trained = self.slots.iter().filter(|slot| !slot.frozen);
        trained.map(|slot| slot.spec.name.as_str())
    }

    /// Euclidean norm of all gradients, each element counted once whatever its placement.
    ///
    /// # Communication
    /// All-reduce of one f64 over the world.
    ///
    /// # Errors
    /// Other than one gradient a bucket, a device that cannot be read, or failed communication.
    pub fn gradient_norm(&self, reduced: &[Tensor<1>]) -> Result<f64> {
        self.check(reduced)?;
        let at = self.groups.at;
        let (dp, replicas) = (at.dp, self.groups.layout.dp);
        let mut counted = Vec::new();
        for (bucket, gradient) in self.buckets.iter().zip(reduced) {
            let class = bucket.class;
            if (class.replicated && at.tp != 0) || (class.tied && !self.groups.is_first_stage()) {
                continue;
            }
            let piece = bucket.piece(dp, replicas);
            counted.push(if self.sharded || replicas == 1 {
                gradient.clone()
            } else {
                gradient.clone().narrow(0, piece.start, piece.len())
            });
        }
        let sum = sum_of_squares(&counted)?;
        let total = self
            .groups
            .world
            .all_reduce(Buffer::F64(vec![sum]), Reduction::Sum)?;
        Ok(total.into_f64()?.iter().sum::<f64>().sqrt())
    }

    /// One step: updates the parameters of `chunks` by the reduced gradients times `gradient_scale`.
    ///
    /// # Communication
    /// With ZeRO 1 an all-gather of every bucket's parameters over dp.
    ///
    /// # Errors
    /// Other gradients or parameters than the optimiser was made for, or failed communication; parameters are lost where the
    /// update itself fails.
    pub fn step<M: Module>(
        &mut self,
        chunks: &mut [M],
        reduced: Vec<Tensor<1>>,
        learning_rate: f64,
        gradient_scale: f64,
    ) -> Result<()> {
        self.check(&reduced)?;
        let mut values = self.values(chunks)?;
        self.release(chunks);
        self.steps += 1;
        let numbers = Numbers {
            rate: learning_rate,
            gradient_scale,
            step: self.steps,
        };
        let updated = self.update(&mut values, reduced, numbers);
        self.set_values(chunks, values);
        updated?;
        self.groups.world.failure().map_or(Ok(()), Err)
    }

    /// Updates the values. Nobody else holds them, nor what is remembered, so that it can work in place.
    fn update(
        &mut self,
        values: &mut [Tensor<1>],
        reduced: Vec<Tensor<1>>,
        numbers: Numbers,
    ) -> Result<()> {
        let buckets = self.buckets.clone();
        let (mut runs, mut copied) = (Vec::new(), 0);
        for (i, gradient) in reduced.into_iter().enumerate() {
            let memory = self.memory[i].take().ok_or_else(failed_before)?;
            let part = self.part(&buckets[i]);
            if !part.is_one_parameter() {
                copied += part.piece.len();
            }
            match part.adamw(memory, values, gradient, numbers) {
                Ok(run) => runs.push((i, run)),
                Err(other) => {
                    let (memory, gradient) = *other;
                    let (memory, piece) = part.step(memory, values, gradient, numbers)?;
                    self.memory[i] = Some(memory);
                    self.put(&buckets[i], piece, values);
                }
            }
            if copied >= MOST_COPIED {
                copied = 0;
                self.update_by_adamw(std::mem::take(&mut runs), values)?;
            }
        }
        self.update_by_adamw(runs, values)
    }

    /// Updates the values of buckets whose rule is AdamW.
    fn update_by_adamw(
        &mut self,
        runs: Vec<(usize, AdamWRun)>,
        values: &mut [Tensor<1>],
    ) -> Result<()> {
        let buckets = self.buckets.clone();
        let (numbers, runs): (Vec<usize>, Vec<AdamWRun>) = runs.into_iter().unzip();
        for (i, (state, weights)) in numbers.into_iter().zip(adamw_of_all(runs)?) {
            let moments = Moments::after(state, &weights);
            self.memory[i] = Some(Memory::AdamW(Box::new(moments)));
            self.put(&buckets[i], weights, values);
        }
        Ok(())
    }

    /// Puts a bucket's new parameters into the values, from this replica's piece.
    fn put(&self, bucket: &Bucket, piece: Tensor<1>, values: &mut [Tensor<1>]) {
        let whole = self.gather(piece);
        for &(slot, offset) in &bucket.slots {
            values[slot] = whole.clone().narrow(0, offset, self.slots[slot].count);
        }
    }

    /// The gradients of some of this stage's parameters, each with what is true of the parameter and whole in its logical shape,
    /// flat: `[elements]`. They are as the reducer gave them: times the loss scale, and not clipped. Every rank calls it with the
    /// same selection.
    ///
    /// # Communication
    /// With ZeRO 1 an all-gather over dp of every bucket that has one of them; over tp one of each that is split.
    ///
    /// # Errors
    /// Other than one gradient a bucket, or failed communication.
    pub fn gradients(
        &self,
        reduced: &[Tensor<1>],
        selection: &Selection,
    ) -> Result<Vec<(Arc<ParameterSpec>, Tensor<1>)>> {
        self.check(reduced)?;
        let mut gradients = Vec::new();
        for (bucket, gradient) in self.buckets.iter().zip(reduced) {
            let wanted =
                |(slot, _): &&(usize, usize)| selection.contains(&self.slots[*slot].spec.name);
            let wanted: Vec<_> = bucket.slots.iter().filter(wanted).collect();
            if wanted.is_empty() {
                continue;
            }
            let whole = self.gather(gradient.clone());
            for &(slot, offset) in wanted {
                let Slot { spec, count, .. } = &self.slots[slot];
                let part = whole.clone().narrow(0, offset, *count);
                let gradient = logical::gather(part, spec, &self.groups.tp);
                gradients.push((spec.clone(), gradient));
            }
        }
        self.groups.world.failure().map_or(Ok(gradients), Err)
    }

    /// Fails unless there is a gradient for every bucket, of the length that this replica updates.
    fn check(&self, reduced: &[Tensor<1>]) -> Result<()> {
        if self.memory.iter().any(Option::is_none) {
            return Err(failed_before());
        }
        let lengths = self
            .buckets
            .iter()
            .map(|bucket| self.piece_of(bucket).len());
        if lengths.eq(reduced.iter().map(|gradient| gradient.dims()[0])) {
            return Ok(());
        }
        Err(Error::Internal(
            "the gradients are not those of the optimiser's buckets".into(),
        ))
    }

    /// What this replica has of a bucket: all of it at stage 0.
    pub(super) fn part<'a>(&'a self, bucket: &'a Bucket) -> Part<'a> {
        Part {
            bucket,
            slots: &self.slots,
            update: &self.updates[bucket.class.group],
            groups: &self.groups,
            piece: self.piece_of(bucket),
        }
    }

    fn piece_of(&self, bucket: &Bucket) -> std::ops::Range<usize> {
        if !self.sharded {
            return 0..bucket.len;
        }
        bucket.piece(self.groups.at.dp, self.groups.layout.dp)
    }

    /// The whole bucket from every replica's part.
    pub(super) fn gather(&self, part: Tensor<1>) -> Tensor<1> {
        if self.sharded {
            apply(part, &self.groups.dp, Exchange::AllGather(0))
        } else {
            part
        }
    }

    /// Values of all slots, flat.
    ///
    /// # Errors
    /// Other parameters than those of the slots.
    pub(super) fn values<M: Module>(&self, chunks: &mut [M]) -> Result<Vec<Tensor<1>>> {
        struct Collect<'a> {
            selection: &'a Selection,
            by_name: &'a HashMap<String, usize>,
            values: Vec<Option<Tensor<1>>>,
            unknown: Option<String>,
        }
        impl Visitor for Collect<'_> {
            fn visit<const D: usize>(&mut self, p: &mut Parameter<D>) {
                match self.by_name.get(&p.spec.name) {
                    Some(&slot) => {
                        self.values[slot] = Some(p.value.clone().reshape([p.count()]));
                    }
                    None if self.selection.contains(&p.spec.name) => {
                        self.unknown = Some(p.spec.name.clone());
                    }
                    None => {} // Another optimiser's.
                }
            }
        }
        let mut collect = Collect {
            selection: &self.selection,
            by_name: &self.by_name,
            values: vec![None; self.slots.len()],
            unknown: None,
        };
        chunks
            .iter_mut()
            .for_each(|chunk| chunk.visit(&mut collect));
        if let Some(name) = collect.unknown {
            return Err(Error::Internal(format!(
                "{name} is not among the optimiser's parameters"
            )));
        }
        let values = collect.values.into_iter().zip(self.slots.iter());
        let known = values.map(|(value, slot)| {
            value.ok_or_else(|| Error::Internal(format!("{} is not in the model", slot.spec.name)))
        });
        known.collect()
    }

    /// Lets go of the parameters' values.
    fn release<M: Module>(&self, chunks: &mut [M]) {
        struct Release<'a>(&'a HashMap<String, usize>);
        impl Visitor for Release<'_> {
            fn visit<const D: usize>(&mut self, p: &mut Parameter<D>) {
                if self.0.contains_key(&p.spec.name) {
                    p.value = nothing_like(&p.value);
                }
            }
        }
        let mut release = Release(&self.by_name);
        chunks
            .iter_mut()
            .for_each(|chunk| chunk.visit(&mut release));
    }

    fn set_values<M: Module>(&self, chunks: &mut [M], values: Vec<Tensor<1>>) {
        struct Set<'a>(&'a HashMap<String, usize>, Vec<Tensor<1>>);
        impl Visitor for Set<'_> {
            fn visit<const D: usize>(&mut self, p: &mut Parameter<D>) {
                if let Some(&slot) = self.0.get(&p.spec.name) {
                    p.value = self.1[slot].clone().reshape(p.value.shape());
                }
            }
        }
        let mut set = Set(&self.by_name, values);
        chunks.iter_mut().for_each(|chunk| chunk.visit(&mut set));
    }
}

pub(super) fn failed_before() -> Error {
    Error::config(
        "a step of the optimiser failed half-way, and its state is gone",
        "restore a checkpoint",
    )
}
