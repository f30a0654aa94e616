//! How a parameter is updated: our fused AdamW, or any of Burn's optimisers.

use std::any::TypeId;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use burn::optim::{
    AdaGrad, Adam, AdamW, Adan, DynOptimizer, DynState, Lion, Muon, Optimizer, RmsProp, Sgd,
    StateSink, StateSource,
};
use burn::tensor::{Device, Tensor, TensorData};

use super::adamw::AdamWConfig;
use crate::error::{Error, Result, panic_message};
use crate::parameter::ParameterSpec;

/// How a parameter is updated.
#[derive(Debug, Clone)]
pub enum Rule {
    /// AdamW, fused: one pass over memory, in place.
    AdamW(AdamWConfig),
    /// One of Burn's optimisers, or a user's own.
    Burn(BurnRule),
}

impl From<AdamWConfig> for Rule {
    fn from(config: AdamWConfig) -> Self {
        Self::AdamW(config)
    }
}

impl From<BurnRule> for Rule {
    fn from(rule: BurnRule) -> Self {
        Self::Burn(rule)
    }
}

impl<O: Optimizer> From<O> for Rule {
    fn from(rule: O) -> Self {
        Self::Burn(BurnRule::new(rule))
    }
}

/// A [`burn::optim::Optimizer`], which updates one tensor at a time.
///
/// Burn's Adam, AdamW, SGD, RMSprop, Adagrad, Lion and Adan are known to act on each element by itself, and take flat runs of
/// elements. Every other one, such as LAMB, Muon, Adafactor or a user's own, gets whole parameters in every layout: those that
/// tensor parallelism splits are gathered, updated on every rank of the group, and cut again; what the rule remembers of them is
/// whole on each of these ranks.
#[derive(Clone)]
pub struct BurnRule {
    name: &'static str,
    rule: Arc<dyn DynOptimizer>,
    element_wise: bool,
    ranks: RangeInclusive<usize>,
}

/// What a rule of Burn's remembers of one tensor.
pub(super) struct RuleState(DynState);

/// Highest rank of a tensor that Burn's optimisers take.
const MAX_RANK: usize = 8;

impl BurnRule {
    /// The rule `rule`; its learning rate is that of the step.
    pub fn new<O: Optimizer>(rule: O) -> Self {
        let element_wise = [
            TypeId::of::<Adam>(),
            TypeId::of::<AdamW>(),
            TypeId::of::<Sgd>(),
            TypeId::of::<RmsProp>(),
            TypeId::of::<AdaGrad>(),
            TypeId::of::<Lion>(),
            TypeId::of::<Adan>(),
        ];
        let only_matrices = TypeId::of::<O>() == TypeId::of::<Muon>();
        let path = std::any::type_name::<O>();
        Self {
            name: path.rsplit("::").next().unwrap_or(path),
            rule: Arc::new(rule),
            element_wise: element_wise.contains(&TypeId::of::<O>()),
            ranks: if only_matrices { 2..=2 } else { 0..=MAX_RANK },
        }
    }

    /// Says that the rule acts on each element by itself, and keeps nothing but numbers and tensors of the parameter's shape.
    /// It then gets flat runs of many parameters' elements, which is faster.
    pub fn element_wise(mut self) -> Self {
        self.element_wise = true;
        self
    }

    /// Says which ranks of tensors the rule takes, as `2..=2` for matrices.
    pub fn for_ranks(mut self, ranks: RangeInclusive<usize>) -> Self {
        self.ranks = ranks;
        self
    }

    /// The type's name, for instance `Lamb`.
    pub fn name(&self) -> &str {
        self.name
    }

    pub(super) fn is_element_wise(&self) -> bool {
        self.element_wise
    }

    /// Fails unless the rule can update a parameter.
    pub(super) fn check(&self, spec: &ParameterSpec) -> Result<()> {
        let rank = spec.shape.len();
        let takes = self.element_wise || rank <= MAX_RANK;
        if takes && self.ranks.contains(&rank) {
            return Ok(());
        }
        let (low, high) = (self.ranks.start(), self.ranks.end().min(&MAX_RANK));
        let ranks = match low == high {
            true => format!("rank {low}"),
            false => format!("ranks {low} to {high}"),
        };
        Err(Error::config(
            format!(
                "{} takes parameters of {ranks}, and {} is of rank {rank}, {:?}",
                self.name, spec.name, spec.shape
            ),
            "put it into a parameter group with another rule, such as AdamW",
        ))
    }

    /// The new value of a tensor of shape `shape`, flat, and what the rule remembers. `what`: its name in errors.
    pub(super) fn step(
        &self,
        (what, shape): (&str, &[usize]),
        rate: f64,
        value: Tensor<1>,
        gradient: Tensor<1>,
        state: Option<RuleState>,
    ) -> Result<(Tensor<1>, Option<RuleState>)> {
        let state = state.map(|state| state.0);
        let update = || match *shape {
            [] => self.of_rank::<1>([1], rate, value, gradient, state),
            [a] => self.of_rank([a], rate, value, gradient, state),
            [a, b] => self.of_rank([a, b], rate, value, gradient, state),
            [a, b, c] => self.of_rank([a, b, c], rate, value, gradient, state),
            [a, b, c, d] => self.of_rank([a, b, c, d], rate, value, gradient, state),
            [a, b, c, d, e] => self.of_rank([a, b, c, d, e], rate, value, gradient, state),
            [a, b, c, d, e, f] => self.of_rank([a, b, c, d, e, f], rate, value, gradient, state),
            [a, b, c, d, e, f, g] => {
                self.of_rank([a, b, c, d, e, f, g], rate, value, gradient, state)
            }
            [a, b, c, d, e, f, g, h, ..] => {
                self.of_rank([a, b, c, d, e, f, g, h], rate, value, gradient, state)
            }
        };
        // Nothing that a panic may leave half done is looked at again.
        let (value, state) = catch_unwind(AssertUnwindSafe(update)).map_err(|panic| {
            Error::config(
                format!(
                    "{} failed on {what}, {shape:?}: {}",
                    self.name,
                    panic_message(panic.as_ref())
                ),
                "put it into a parameter group with another rule",
            )
        })?;
        Ok((value, state.map(RuleState)))
    }

    fn of_rank<const D: usize>(
        &self,
        shape: [usize; D],
        rate: f64,
        value: Tensor<1>,
        gradient: Tensor<1>,
        state: Option<DynState>,
    ) -> (Tensor<1>, Option<DynState>) {
        let count = value.dims();
        let [value, gradient] = [value, gradient].map(|x| x.reshape(shape).into_bridge());
        let (value, state) = self.rule.step_dyn(D, rate, value, gradient, state);
        (Tensor::<D>::from_bridge(value).reshape(count), state)
    }

    /// What the rule remembers, as named tensors and numbers.
    pub(super) fn take_apart(&self, state: &RuleState) -> Apart {
        let mut sink = StateSink::default();
        self.rule.state_flatten("", &state.0, &mut sink);
        let numbers = sink.scalars.into_iter().map(|(name, number)| {
            let number = match (i64::try_from(number), f64::try_from(number)) {
                (Ok(number), _) => Number::Integer(number),
                (_, Ok(number)) => Number::Float(number),
                _ => Number::Truth(bool::try_from(number).unwrap_or_default()),
            };
            (name, number)
        });
        Apart {
            numbers: numbers.collect(),
            tensors: sink.tensors.into_iter().collect(),
        }
    }

    /// The state of a tensor of rank `rank` from what [`Self::take_apart`] gave; none if something is missing.
    pub(super) fn put_together(
        &self,
        rank: usize,
        parts: &Apart,
        device: &Device,
    ) -> Option<RuleState> {
        let numbers = parts.numbers.iter().map(|(name, number)| {
            let number = match *number {
                Number::Integer(number) => number.into(),
                Number::Float(number) => number.into(),
                Number::Truth(number) => number.into(),
            };
            (name.clone(), number)
        });
        let mut source = StateSource::new(numbers.collect());
        for (name, data) in &parts.tensors {
            source.insert_tensor(name.clone(), data.clone());
        }
        let state = self
            .rule
            .state_unflatten(rank.max(1), "", &mut source, device)?;
        Some(RuleState(state))
    }
}

/// A rule's state as named tensors and numbers.
#[derive(Default)]
pub(super) struct Apart {
    pub numbers: BTreeMap<String, Number>,
    pub tensors: BTreeMap<String, TensorData>,
}

/// A number that a rule remembers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Number {
    Integer(i64),
    Float(f64),
    Truth(bool),
}

impl fmt::Debug for BurnRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl fmt::Debug for RuleState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RuleState")
    }
}
