//! Optimisers in a training of a Burn module.

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::optim::{LambConfig, SgdConfig};
use burn::tensor::{Device, Tensor, TensorData};
use burn_frontier::comm::groups::Groups;
use burn_frontier::comm::local;
use burn_frontier::optim::{OptimizerConfig, ParameterGroup};
use burn_frontier::parameter::{BurnModule, Selection};
use burn_frontier::pipeline::activation::Activation;
use burn_frontier::pipeline::model::{Model, Pass};
use burn_frontier::pipeline::run::Pipeline;
use burn_frontier::pipeline::schedule::Kind;
use burn_frontier::pipeline::stage::{Batch, Output};
use burn_frontier::train::{StepOptions, TrainState};
use burn_frontier::{Layout, Result};

/// `y = v w x` with x = 2 and target 1, squared error: both weights are 1 at first.
#[derive(Module, Debug)]
struct Product {
    v: Linear,
    w: Linear,
    /// Not used.
    idle: Linear,
}

#[derive(Debug, Clone)]
struct Samples(Vec<u64>);

impl Batch for Samples {
    fn count(&self) -> u64 {
        self.0.len() as u64
    }

    fn samples(&self) -> &[u64] {
        &self.0
    }
}

impl Model for Product {
    type Batch = Samples;

    fn forward(&self, _: Vec<Activation>, batch: &Samples, _: &Pass) -> Result<Output> {
        let x = Tensor::<2>::full([batch.0.len(), 1], 2.0, &Device::flex());
        let error = self.v.forward(self.w.forward(x)) - 1.0;
        Ok(Output::Losses((error.clone() * error).reshape([-1])))
    }
}

fn one() -> Linear {
    let device = Device::flex();
    let mut linear = LinearConfig::new(1, 1).with_bias(false).init(&device);
    linear.weight = Param::from_data(TensorData::new(vec![1.0f32], [1, 1]), &device);
    linear
}

type State = TrainState<BurnModule<Product>>;

fn train(optimizers: &[OptimizerConfig]) -> Result<State> {
    let groups = Groups::new(Layout::single(), local::single())?;
    let product = Product {
        v: one(),
        w: one(),
        idle: one(),
    };
    let chunks = vec![BurnModule::new(product, 1)?];
    let pipeline = Pipeline::new(chunks, Kind::default(), groups, Device::flex())?;
    TrainState::new(pipeline, optimizers, 1)
}

fn weights(state: &State) -> [f32; 3] {
    let Product { v, w, idle } = state.pipeline.chunks[0].module();
    [v, w, idle].map(|linear| linear.weight.val().into_scalar::<f32>())
}

fn sgd() -> OptimizerConfig {
    OptimizerConfig::new(0, false).with_rule(SgdConfig::new().build())
}

fn options(optimizer: usize) -> StepOptions {
    StepOptions {
        optimizer,
        clip: None,
        ..StepOptions::new(0.125)
    }
}

fn batch() -> [Samples; 1] {
    [Samples(vec![0, 1])]
}

#[test]
fn two_optimisers_take_turns() {
    let idle = ParameterGroup::new(Selection::within("idle")).frozen();
    let first = sgd().with_selection(Selection::within("v"));
    let rest = Selection::matching(|name| !name.starts_with('v'));
    let second = sgd().with_selection(rest).with_group(idle);
    let mut state = train(&[first, second]).unwrap();
    // The error is v w x - 1 = 1, and its square's gradient 2 w x = 4.
    state.step(&batch(), &options(0)).unwrap();
    assert_eq!(weights(&state), [0.5, 1.0, 1.0]);
    // Now it is 0.
    state.step(&batch(), &options(1)).unwrap();
    assert_eq!(weights(&state), [0.5, 1.0, 1.0]);
    assert_eq!(state.progress().updates, [1, 1]);
}

#[test]
fn what_takes_no_part_in_a_pass_has_a_gradient_of_zero() {
    // A bucket of its own, in which nothing has a gradient.
    let lamb = LambConfig::new().with_weight_decay(0.0).build();
    let idle = ParameterGroup::new(Selection::within("idle")).with_rule(lamb);
    let mut state = train(&[sgd().with_group(idle)]).unwrap();
    let gradients = state.gradients(&batch(), &options(0)).unwrap();
    let found = state
        .gradients_by_name(&gradients, &Selection::all())
        .unwrap();
    let mut found: Vec<_> = found
        .into_iter()
        .map(|(spec, x)| (spec.name.clone(), x.into_scalar::<f32>()))
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    let expected = [("idle.weight", 0.0), ("v.weight", 4.0), ("w.weight", 4.0)];
    assert_eq!(found, expected.map(|(name, x)| (name.to_string(), x)));
    state.update(gradients, &options(0)).unwrap();
    assert_eq!(weights(&state), [0.5, 0.5, 1.0]);
}

#[test]
fn every_parameter_has_one_optimiser() {
    let refused = |optimizers: &[OptimizerConfig]| train(optimizers).unwrap_err().to_string();
    let v = || sgd().with_selection(Selection::within("v"));
    let error = refused(&[v()]);
    assert!(error.contains("w.weight has no optimiser"), "{error}");
    let error = refused(&[v(), sgd()]);
    assert!(
        error.contains("v.weight has an optimiser already"),
        "{error}"
    );
}
