//! The optimiser of a rank: its state lies on the replicas as the ZeRO stage says.

use std::collections::HashMap;
use std::sync::Arc;

use burn::tensor::{DType, Tensor};

use super::rule::Rule;
use crate::comm::groups::Groups;
use crate::comm::{Buffer, Reduction};
use crate::error::{Error, Result};
use crate::ops::adamw::{AdamWState, AdamWStep, adamw};
use crate::ops::exchange::{Exchange, apply};
use crate::ops::sum_squares::sum_of_squares;
use crate::parameter::{Module, Parameter, Visitor};
use crate::zero::partition::{Bucket, Slot};

/// Optimiser of one stage. Stage 0 keeps a bucket's whole state on every replica, stage 1 this replica's piece.
#[derive(Debug)]
pub struct Optimizer {
    /// Steps done.
    pub steps: u64,
    pub(super) rule: Rule,
    pub(super) slots: Arc<Vec<Slot>>,
    pub(super) buckets: Arc<Vec<Bucket>>,
    pub(super) states: Vec<Moments>,
    pub(super) groups: Groups,
    pub(super) sharded: bool,
    by_name: HashMap<String, usize>,
}

/// What a bucket's optimiser remembers. `master` only if the parameters are in half precision.
#[derive(Debug, Clone)]
pub(super) struct Moments {
    pub first: Tensor<1>,
    pub second: Tensor<1>,
    pub master: Option<Tensor<1>>,
}

impl Optimizer {
    /// Makes the optimiser of a stage's parameters: moments zero, master weights from the parameters.
    ///
    /// # Errors
    /// Parameters that are not those of `slots`.
    pub fn new<M: Module>(
        rule: Rule,
        chunks: &mut [M],
        slots: Arc<Vec<Slot>>,
        buckets: Arc<Vec<Bucket>>,
        groups: Groups,
        zero_stage: u8,
    ) -> Result<Self> {
        let by_name = slots
            .iter()
            .enumerate()
            .map(|(i, s)| (s.spec.name.clone(), i))
            .collect();
        let mut optimizer = Self {
            steps: 0,
            rule,
            slots,
            buckets,
            states: Vec::new(),
            sharded: zero_stage > 0 && groups.layout.dp > 1,
            groups,
            by_name,
        };
        let values = optimizer.values(chunks)?;
        for bucket in optimizer.buckets.clone().iter() {
            let whole = optimizer.flatten(bucket, &values);
            let half = matches!(whole.dtype(), DType::F16 | DType::BF16);
            let piece = optimizer.own(bucket, full_precision(whole));
            let zeros = piece.zeros_like();
            optimizer.states.push(Moments {
                first: zeros.clone(),
                second: zeros,
                master: half.then_some(piece),
            });
        }
        Ok(optimizer)
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
        let mut sum = 0.0;
        for (bucket, gradient) in self.buckets.iter().zip(reduced) {
            let class = bucket.class;
            if (class.replicated && at.tp != 0) || (class.tied && !self.groups.is_first_stage()) {
                continue;
            }
            let piece = bucket.piece(dp, replicas);
            let mine = if self.sharded || replicas == 1 {
                gradient.clone()
            } else {
                gradient.clone().narrow(0, piece.start, piece.len())
            };
            sum += sum_of_squares(mine)?;
        }
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
    /// Other gradients or parameters than the optimiser was made for, or failed communication.
    pub fn step<M: Module>(
        &mut self,
        chunks: &mut [M],
        reduced: Vec<Tensor<1>>,
        learning_rate: f64,
        gradient_scale: f64,
    ) -> Result<()> {
        self.check(&reduced)?;
        let mut values = self.values(chunks)?;
        let Rule::AdamW(config) = self.rule;
        self.steps += 1;
        for (i, gradient) in reduced.into_iter().enumerate() {
            let bucket = self.buckets[i].clone();
            let step = AdamWStep {
                learning_rate,
                weight_decay: if bucket.class.decay {
                    config.weight_decay
                } else {
                    0.0
                },
                beta1: config.beta1,
                beta2: config.beta2,
                epsilon: config.epsilon,
                step: self.steps,
                gradient_scale,
            };
            let dtype = values[bucket.slots[0].0].dtype();
            let state = &self.states[i];
            let parameters = match &state.master {
                Some(master) => master.clone(),
                None => self.own(&bucket, self.flatten(&bucket, &values)),
            };
            let (first, second) = (state.first.clone(), state.second.clone());
            // The state's own handles are given up, so that the update can work in place.
            let device = first.device();
            let empty = Tensor::<1>::zeros([1], (&device, first.dtype()));
            self.states[i] = Moments {
                first: empty.clone(),
                second: empty,
                master: None,
            };
            let master = matches!(dtype, DType::F16 | DType::BF16);
            let (new, weights) = adamw(
                AdamWState {
                    parameters,
                    first,
                    second,
                },
                gradient,
                &step,
                dtype,
            )?;
            self.states[i] = Moments {
                first: new.first,
                second: new.second,
                master: master.then_some(new.parameters),
            };
            let whole = self.gather(weights);
            for &(slot, offset) in &bucket.slots {
                values[slot] = whole.clone().narrow(0, offset, self.slots[slot].count);
            }
        }
        self.set_values(chunks, values);
        self.groups.world.failure().map_or(Ok(()), Err)
    }

    /// Fails unless there is a gradient for every bucket, of the length that this replica updates.
    fn check(&self, reduced: &[Tensor<1>]) -> Result<()> {
        let lengths = self.states.iter().map(|state| state.first.dims()[0]);
        if lengths.eq(reduced.iter().map(|gradient| gradient.dims()[0])) {
            return Ok(());
        }
        Err(Error::Internal(
            "the gradients are not those of the optimiser's buckets".into(),
        ))
    }

    /// This replica's part of a whole bucket: all of it at stage 0.
    pub(super) fn own(&self, bucket: &Bucket, whole: Tensor<1>) -> Tensor<1> {
        if !self.sharded {
            return whole;
        }
        let piece = bucket.piece(self.groups.at.dp, self.groups.layout.dp);
        whole.narrow(0, piece.start, piece.len())
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
                    None => self.unknown = Some(p.spec.name.clone()),
                }
            }
        }
        let mut collect = Collect {
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

    /// A bucket as one run, padded with zeros.
    pub(super) fn flatten(&self, bucket: &Bucket, values: &[Tensor<1>]) -> Tensor<1> {
        let slots = bucket.slots.iter();
        let mut runs: Vec<Tensor<1>> = slots.map(|&(slot, _)| values[slot].clone()).collect();
        let used: usize = runs.iter().map(|run| run.dims()[0]).sum();
        if let (Some(first), true) = (runs.first(), used < bucket.len) {
            runs.push(Tensor::zeros(
                [bucket.len - used],
                (&first.device(), first.dtype()),
            ));
        }
        match runs.len() {
            1 => runs.remove(0),
            _ => Tensor::cat(runs, 0),
        }
    }
}

pub(super) fn full_precision(x: Tensor<1>) -> Tensor<1> {
    match x.dtype() {
        DType::F64 | DType::F32 => x,
        _ => x.cast(DType::F32),
    }
}
