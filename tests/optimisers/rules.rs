//! Rules: the same in every layout, saved in one and continued in another.

use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{
    AdaGradConfig, AdafactorConfig, AdamConfig, AdamWConfig, AdanConfig, LambConfig, LionConfig,
    MuonConfig, Optimizer, RecordState, RmsPropConfig, SgdConfig, StateSink, StateSource,
};
use burn::tensor::{DType, Device, Tensor};
use burn_frontier::optim::{self, BurnRule, OptimizerConfig, ParameterGroup};
use burn_frontier::parameter::Selection;

use crate::net::{Tensors, Trial, by_hand, layouts};

/// Of the net's parameters.
const NAMES: [&str; 4] = ["bias", "fused", "kernel", "table"];

/// Checks a rule on `names` in every layout, each continued from the checkpoint of another one.
fn holds<O: Optimizer>(
    rule: &O,
    names: &[&str],
    config: &(dyn Fn(OptimizerConfig) -> OptimizerConfig + Sync),
) {
    let trial = Trial::new(config);
    let whole = trial.train().unwrap();
    for name in names {
        assert_eq!(whole[*name], by_hand(rule, name, 5), "{name}");
    }
    let folder = tempfile::tempdir().unwrap();
    let all: Vec<_> = layouts().collect();
    for (i, &here) in all.iter().enumerate() {
        // A far one: another tp, and more often than not another ZeRO stage.
        let there = all[(i * 3 + 4) % all.len()];
        assert_same(&trial.of(here).train().unwrap(), &whole, here);
        let folder = folder.path().join(i.to_string());
        trial.of(there).saving(&folder, 3).train().unwrap();
        let continued = trial.of(here).resuming(&folder).train().unwrap();
        assert_same(&continued, &whole, (there, here));
    }
}

fn assert_same(one: &Tensors, other: &Tensors, what: impl std::fmt::Debug) {
    let names = |tensors: &Tensors| tensors.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(one), names(other), "{what:?}");
    for (name, values) in one {
        assert_eq!(values, &other[name], "{what:?}: {name}");
    }
}

fn everywhere<O: Optimizer>(rule: O) {
    holds(&rule, &NAMES, &|config| config.with_rule(rule.clone()));
}

#[test]
fn adam_is_the_same_in_every_layout() {
    let decay = Some(WeightDecayConfig::new(0.1));
    everywhere(
        AdamConfig::new()
            .with_amsgrad(true)
            .with_weight_decay(decay)
            .build(),
    );
}

#[test]
fn burns_adamw_is_the_same_in_every_layout() {
    everywhere(AdamWConfig::new().with_cautious_weight_decay(true).build());
}

#[test]
fn sgd_is_the_same_in_every_layout() {
    everywhere(SgdConfig::new().build());
    let momentum = MomentumConfig::new().with_nesterov(true);
    everywhere(SgdConfig::new().with_momentum(Some(momentum)).build());
}

#[test]
fn rmsprop_is_the_same_in_every_layout() {
    everywhere(RmsPropConfig::new().build());
    everywhere(
        RmsPropConfig::new()
            .with_centered(true)
            .with_momentum(0.9)
            .build(),
    );
}

#[test]
fn adagrad_lion_and_adan_are_the_same_in_every_layout() {
    everywhere(AdaGradConfig::new().build());
    everywhere(LionConfig::new().build());
    everywhere(AdanConfig::new().build());
}

#[test]
fn lamb_takes_norms_of_whole_parameters_in_every_layout() {
    everywhere(LambConfig::new().with_weight_decay(0.1).build());
}

#[test]
fn adafactor_sums_rows_and_columns_of_whole_parameters_in_every_layout() {
    everywhere(AdafactorConfig::new().build());
}

#[test]
fn muon_takes_whole_matrices_in_every_layout() {
    let muon = MuonConfig::new().build();
    let rest = || Selection::matching(|name| ["bias", "kernel"].contains(&name));
    let config = |config: OptimizerConfig| {
        let adamw = optim::AdamWConfig::default();
        let rest = ParameterGroup::new(rest()).with_rule(adamw);
        config.with_rule(muon.clone()).with_group(rest)
    };
    holds(&muon, &["fused", "table"], &config);
}

#[test]
fn our_adamw_is_the_same_in_every_layout() {
    let folder = tempfile::tempdir().unwrap();
    let trial = Trial::new(&|config| config);
    let whole = trial.train().unwrap();
    trial
        .of(layouts().last().unwrap())
        .saving(folder.path(), 3)
        .train()
        .unwrap();
    for here in layouts() {
        assert_same(&trial.of(here).train().unwrap(), &whole, here);
        let continued = trial.of(here).resuming(folder.path()).train().unwrap();
        assert_same(&continued, &whole, here);
    }
    // Names that checkpoints of earlier versions have.
    for name in NAMES {
        assert!(whole.contains_key(&format!("{name}::exp_avg")));
        assert!(whole.contains_key(&format!("{name}::exp_avg_sq")));
    }
}

#[test]
fn half_precision_keeps_full_weights_for_every_rule() {
    let (adam, lamb) = (AdamConfig::new().build(), LambConfig::new().build());
    let configs: [&(dyn Fn(OptimizerConfig) -> OptimizerConfig + Sync); 3] = [
        &|config| config,
        &|config| config.with_rule(adam.clone()),
        &|config| config.with_rule(lamb.clone()),
    ];
    for config in configs {
        let trial = Trial {
            dtype: DType::BF16,
            ..Trial::new(config)
        };
        let whole = trial.train().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let far = layouts().last().unwrap();
        trial.of(far).saving(folder.path(), 3).train().unwrap();
        for here in layouts() {
            let continued = trial.of(here).resuming(folder.path()).train().unwrap();
            assert_same(&continued, &whole, here);
        }
        for name in NAMES {
            let master = &whole[&format!("{name}::master")];
            let rounded = master.iter().map(|&x| f64::from(half::bf16::from_f64(x)));
            assert!(rounded.eq(whole[name].iter().copied()), "{name}");
            assert_ne!(master, &whole[name], "{name}");
        }
    }
}

/// A rule that nobody knows: goes along the gradient's sign, as far as its largest norm so far says, and counts.
#[derive(Clone)]
pub struct Largest;

#[derive(Clone)]
pub struct LargestState<const D: usize> {
    norm: Tensor<D>,
    steps: usize,
    share: f64,
    even: bool,
}

impl<const D: usize> RecordState for LargestState<D> {
    fn state_flatten(&self, prefix: &str, out: &mut StateSink) {
        out.push_tensor(prefix, "norm", self.norm.clone().into_data());
        out.push_scalar(prefix, "steps", self.steps.into());
        out.push_scalar(prefix, "share", self.share.into());
        out.push_scalar(prefix, "even", self.even.into());
    }

    fn state_unflatten(prefix: &str, src: &mut StateSource, device: &Device) -> Option<Self> {
        Some(Self {
            norm: Tensor::from_data(src.take_tensor(prefix, "norm")?, device),
            steps: src.take_scalar(prefix, "steps")?.try_into().ok()?,
            share: src.take_scalar(prefix, "share")?.try_into().ok()?,
            even: src.take_scalar(prefix, "even")?.try_into().ok()?,
        })
    }
}

impl Optimizer for Largest {
    type State<const D: usize> = LargestState<D>;

    fn step<const D: usize>(
        &self,
        lr: f64,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<LargestState<D>>,
    ) -> (Tensor<D>, Option<LargestState<D>>) {
        let now = grad.clone().square().sum().sqrt().reshape([1; D]);
        let (before, share, even) = match state {
            Some(state) => (state.norm, state.share / 3.0, !state.even),
            None => (now.zeros_like(), 1.0, false),
        };
        let norm = before.max_pair(now);
        let step = grad.sign() * norm.clone();
        let step = step.mul_scalar(lr * share * if even { 1.0 } else { -1.0 });
        let state = LargestState {
            norm,
            steps: 1,
            share,
            even,
        };
        (tensor - step, Some(state))
    }

    fn to_device<const D: usize>(state: LargestState<D>, _: &Device) -> LargestState<D> {
        state
    }
}

#[test]
fn a_rule_of_ones_own_gets_whole_parameters() {
    everywhere(Largest);
}

#[test]
fn a_rule_that_vows_to_be_element_wise_gets_runs() {
    let momentum = SgdConfig::new()
        .with_momentum(Some(MomentumConfig::new()))
        .build();
    let rule = BurnRule::new(momentum.clone()).element_wise();
    holds(&momentum, &NAMES, &|config| config.with_rule(rule.clone()));
}
