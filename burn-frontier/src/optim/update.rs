//! The update of one bucket: of a flat piece, or of the whole parameters that lie in a piece.

use std::ops::Range;

use burn::tensor::Tensor;

use super::adamw::{AdamWConfig, Moments};
use super::group::Update;
use super::logical;
use super::rule::{BurnRule, Rule, RuleState};
use crate::comm::groups::Groups;
use crate::error::{Error, Result};
use crate::ops::adamw::{AdamWRun, AdamWStep};
use crate::precision::{full_precision, is_half};
use crate::zero::partition::{Bucket, Slot, join};

/// What is remembered of this replica's piece of a bucket.
#[derive(Debug)]
pub(super) enum Memory {
    /// Of AdamW.
    AdamW(Box<Moments>),
    /// Of an element-wise rule, on the flat piece.
    Flat(Box<Kept>),
    /// Of every other rule: for each parameter of the piece, by slot.
    Whole(Vec<(usize, Kept)>),
}

/// What is kept of one tensor for a rule of Burn's.
#[derive(Debug)]
pub(super) struct Kept {
    /// What the rule remembers; none before the first step, or if it remembers nothing.
    pub state: Option<RuleState>,
    /// The weights in full precision, if the parameters are in half precision.
    pub master: Option<Tensor<1>>,
}

/// A bucket, and what this replica has of it.
pub(super) struct Part<'a> {
    pub bucket: &'a Bucket,
    pub slots: &'a [Slot],
    pub update: &'a Update,
    pub groups: &'a Groups,
    /// The piece that this replica updates.
    pub piece: Range<usize>,
}

/// The numbers of one step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbers {
    /// Learning rate.
    pub rate: f64,
    /// Factor on the gradients.
    pub gradient_scale: f64,
    /// Number of this step, from 1.
    pub step: u64,
}

impl Part<'_> {
    /// The piece's elements out of the values of all slots.
    pub fn flat(&self, values: &[Tensor<1>]) -> Tensor<1> {
        let like = &values[self.bucket.slots[0].0];
        let runs = self.bucket.slots.iter();
        let runs = runs.map(|&(slot, offset)| (offset, values[slot].clone()));
        let whole = join(runs, self.bucket.len, (&like.device(), like.dtype()));
        if self.piece.len() == self.bucket.len {
            return whole;
        }
        whole.narrow(0, self.piece.start, self.piece.len())
    }

    /// As [`Self::flat`]; a parameter that is all of the piece is taken out of the values.
    fn take_flat(&self, values: &mut [Tensor<1>]) -> Tensor<1> {
        match self.bucket.slots[..] {
            [(slot, 0)] if self.is_one_parameter() => {
                let nothing = nothing_like(&values[slot]);
                std::mem::replace(&mut values[slot], nothing)
            }
            _ => self.flat(values),
        }
    }

    /// Whether the piece is one parameter, and so no copy.
    pub fn is_one_parameter(&self) -> bool {
        match self.bucket.slots[..] {
            [(slot, _)] => self.slots[slot].count == self.piece.len(),
            _ => false,
        }
    }

    /// The numbers of a step of this part.
    fn numbers(&self, numbers: Numbers) -> Numbers {
        Numbers {
            rate: numbers.rate * self.update.rate_factor,
            ..numbers
        }
    }

    /// The slots that lie in the piece, and where they begin in it.
    pub fn own_slots(&self) -> impl Iterator<Item = (usize, usize)> {
        let slots = self.bucket.slots.iter();
        let own = slots.filter(|(_, offset)| self.piece.contains(offset));
        own.map(|&(slot, offset)| (slot, offset - self.piece.start))
    }

    /// What is remembered before the first step.
    ///
    /// # Communication
    /// For whole parameters in half precision an all-gather over tp of those that are split.
    pub fn begin(&self, values: &[Tensor<1>]) -> Memory {
        match &self.update.rule {
            Rule::AdamW(_) => Memory::AdamW(Box::new(Moments::new(self.flat(values)))),
            Rule::Burn(rule) if rule.is_element_wise() => {
                let half = is_half(&values[self.bucket.slots[0].0]);
                Memory::Flat(Box::new(Kept::new(|| self.flat(values), half)))
            }
            Rule::Burn(_) => {
                let kept = self.own_slots().map(|(slot, _)| {
                    let whole = || self.whole(slot, values[slot].clone());
                    (slot, Kept::new(whole, is_half(&values[slot])))
                });
                Memory::Whole(kept.collect())
            }
        }
    }

    /// What a step of AdamW does, if that is the rule; else the memory and the gradient.
    pub fn adamw(
        &self,
        memory: Memory,
        values: &mut [Tensor<1>],
        gradient: Tensor<1>,
        numbers: Numbers,
    ) -> Result<AdamWRun, Box<(Memory, Tensor<1>)>> {
        match (memory, &self.update.rule) {
            (Memory::AdamW(moments), Rule::AdamW(config)) => {
                let step = adamw_step(config, self.bucket.class.decay, self.numbers(numbers));
                Ok(moments.run(self.take_flat(values), gradient, step))
            }
            (memory, _) => Err(Box::new((memory, gradient))),
        }
    }

    /// One step of another rule. Gives what is remembered, and the piece's new parameters, in the model's type.
    pub fn step(
        &self,
        memory: Memory,
        values: &[Tensor<1>],
        gradient: Tensor<1>,
        numbers: Numbers,
    ) -> Result<(Memory, Tensor<1>)> {
        let numbers = self.numbers(numbers);
        match (memory, &self.update.rule) {
            (Memory::Flat(kept), Rule::Burn(rule)) => {
                let shape = [gradient.dims()[0]];
                let flat = self.flat(values);
                let named = ("a run of parameters", &shape[..]);
                let (kept, weights) = kept.step(rule, named, flat, gradient, numbers)?;
                Ok((Memory::Flat(Box::new(kept)), weights))
            }
            (Memory::Whole(all), Rule::Burn(rule)) => {
                self.step_whole(rule, all, values, (gradient, numbers))
            }
            _ => Err(Error::Internal(
                "the optimiser's memory is another rule's".into(),
            )),
        }
    }

    fn step_whole(
        &self,
        rule: &BurnRule,
        all: Vec<(usize, Kept)>,
        values: &[Tensor<1>],
        (gradient, numbers): (Tensor<1>, Numbers),
    ) -> Result<(Memory, Tensor<1>)> {
        let like = &values[self.bucket.slots[0].0];
        let (mut memory, mut runs) = (Vec::new(), Vec::new());
        for ((slot, kept), (_, offset)) in all.into_iter().zip(self.own_slots()) {
            let Slot { spec, count, .. } = &self.slots[slot];
            let own = gradient.clone().narrow(0, offset, *count);
            let gradient = self.whole(slot, own);
            let value = match kept.master {
                // It is whole already.
                Some(_) => values[slot].clone(),
                None => self.whole(slot, values[slot].clone()),
            };
            let named = (spec.name.as_str(), &spec.shape[..]);
            let (kept, weights) = kept.step(rule, named, value, gradient, numbers)?;
            memory.push((slot, kept));
            runs.push((offset, logical::own(weights, spec, &self.groups.tp)));
        }
        let piece = join(runs, self.piece.len(), (&like.device(), like.dtype()));
        Ok((Memory::Whole(memory), piece))
    }

    /// The logical parameter of a slot from this rank's part of it.
    fn whole(&self, slot: usize, part: Tensor<1>) -> Tensor<1> {
        logical::gather(part, &self.slots[slot].spec, &self.groups.tp)
    }
}

impl Kept {
    /// Of a tensor that was never updated.
    fn new(weights: impl FnOnce() -> Tensor<1>, half: bool) -> Self {
        Self {
            state: None,
            master: half.then(|| full_precision(weights())),
        }
    }

    /// One step; gives the new weights in the type of `value`.
    fn step(
        self,
        rule: &BurnRule,
        named: (&str, &[usize]),
        value: Tensor<1>,
        gradient: Tensor<1>,
        numbers: Numbers,
    ) -> Result<(Self, Tensor<1>)> {
        let (dtype, half) = (value.dtype(), self.master.is_some());
        let gradient = match numbers.gradient_scale {
            1.0 => gradient,
            scale => gradient.mul_scalar(scale),
        };
        let value = self.master.unwrap_or(value);
        let (new, state) = rule.step(named, numbers.rate, value, gradient, self.state)?;
        let kept = Self {
            state,
            master: half.then(|| new.clone()),
        };
        Ok((kept, if half { new.cast(dtype) } else { new }))
    }
}

/// Zeros of the same shape that take no memory.
pub(super) fn nothing_like<const D: usize>(x: &Tensor<D>) -> Tensor<D> {
    Tensor::<D>::zeros([1; D], (&x.device(), x.dtype())).expand(x.shape())
}

fn adamw_step(config: &AdamWConfig, decay: bool, numbers: Numbers) -> AdamWStep {
    AdamWStep {
        learning_rate: numbers.rate,
        weight_decay: if decay { config.weight_decay } else { 0.0 },
        beta1: config.beta1,
        beta2: config.beta2,
        epsilon: config.epsilon,
        step: numbers.step,
        gradient_scale: numbers.gradient_scale,
    }
}
