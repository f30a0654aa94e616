//! A synchronised batch norm gives the answer of one rank that has all samples.

use std::sync::Arc;

use burn::module::{Module, ModuleVisitor, Param, RunningState};
use burn::nn::{BatchNorm, BatchNormConfig};
use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_frontier::Result;
use burn_frontier::comm::Communicator;
use burn_frontier::comm::local::{LocalOptions, run, single};
use burn_frontier::layers::{SyncBatchNorm, SyncBatchNormConfig};
use burn_frontier::random::Draws;

const SAMPLES: usize = 9;
const FEATURES: usize = 3;
const PLACES: usize = 4;
const STEPS: u64 = 3;

/// What training and then evaluation give: outputs and gradients of x, one sample after the other; gradients of scale and
/// shift; running mean and variance; the evaluation's outputs.
#[derive(Debug, Clone, Default, PartialEq)]
struct Answer {
    y: Vec<f64>,
    x: Vec<f64>,
    parameters: Vec<f64>,
    running: Vec<f64>,
    evaluation: Vec<f64>,
}

fn device() -> Device {
    Device::flex().autodiff()
}

/// Samples `[rows, FEATURES, PLACES]` of a step with mean `offset`.
fn samples(name: &str, step: u64, rows: &[u64], offset: f64, dtype: DType) -> Tensor<3> {
    let draws = Draws::new(5, Some(step), rows.to_vec());
    let shape = [rows.len(), FEATURES, PLACES];
    let x = draws.normal(name, shape, (&device(), DType::F64)).unwrap();
    (x * 2.0 + offset).cast(dtype)
}

fn to_vec<const D: usize>(x: Tensor<D>) -> Vec<f64> {
    x.into_data().iter().collect()
}

fn parameter(values: [f64; FEATURES], dtype: DType) -> Tensor<1> {
    Tensor::from_data(TensorData::from(values), (&device(), dtype))
}

/// Trains a layer on these samples, by a loss of which no gradient is zero.
fn train<M: Module>(
    layer: &M,
    forward: impl Fn(&M, Tensor<3>) -> Tensor<3>,
    parts: impl Fn(&M) -> [Tensor<1>; 4],
    rows: &[u64],
    (offset, dtype): (f64, DType),
) -> Answer {
    let mut answer = Answer::default();
    for step in 0..STEPS {
        let x = samples("x", step, rows, offset, dtype).require_grad();
        let y = forward(layer, x.clone());
        let weights = samples("w", step, rows, 0.3, dtype);
        let gradients = (y.clone() * weights).sum().backward();
        let [gamma, beta, ..] = parts(layer);
        answer.y.extend(to_vec(y));
        answer.x.extend(to_vec(x.grad(&gradients).unwrap()));
        for parameter in [gamma, beta] {
            answer
                .parameters
                .extend(to_vec(parameter.grad(&gradients).unwrap()));
        }
    }
    let [_, _, mean, variance] = parts(layer);
    answer.running = [to_vec(mean), to_vec(variance)].concat();
    let x = samples("x", STEPS, rows, offset, dtype);
    answer.evaluation = to_vec(forward(&layer.valid(), x.without_autodiff()));
    answer
}

const GAMMA: [f64; FEATURES] = [0.5, -1.5, 2.0];
const BETA: [f64; FEATURES] = [0.1, 0.2, -0.3];

fn synchronised(group: Arc<dyn Communicator>, rows: &[u64], kind: (f64, DType)) -> Result<Answer> {
    let config = SyncBatchNormConfig::new(FEATURES).with_momentum(0.3);
    let mut layer = config.init(&device(), &group)?;
    let dtype = kind.1;
    layer.gamma = Param::from_tensor(parameter(GAMMA, dtype));
    layer.beta = Param::from_tensor(parameter(BETA, dtype));
    layer.running_mean = RunningState::new(parameter([0.0; FEATURES], dtype));
    layer.running_var = RunningState::new(parameter([1.0; FEATURES], dtype));
    let parts = |layer: &SyncBatchNorm| {
        let running = [&layer.running_mean, &layer.running_var].map(RunningState::value);
        let [mean, variance] = running;
        [layer.gamma.val(), layer.beta.val(), mean, variance]
    };
    let forward = |layer: &SyncBatchNorm, x| layer.forward(x).unwrap();
    Ok(train(&layer, forward, parts, rows, kind))
}

fn of_burn(kind: (f64, DType)) -> Answer {
    let config = BatchNormConfig::new(FEATURES).with_momentum(0.3);
    let mut layer = config.init(&device());
    let dtype = kind.1;
    layer.gamma = Param::from_tensor(parameter(GAMMA, dtype));
    layer.beta = Param::from_tensor(parameter(BETA, dtype));
    layer.running_mean = RunningState::new(parameter([0.0; FEATURES], dtype));
    layer.running_var = RunningState::new(parameter([1.0; FEATURES], dtype));
    let parts = |layer: &BatchNorm| {
        let running = [&layer.running_mean, &layer.running_var].map(RunningState::value_sync);
        let [mean, variance] = running;
        [layer.gamma.val(), layer.beta.val(), mean, variance]
    };
    let rows: Vec<u64> = (0..SAMPLES as u64).collect();
    train(&layer, BatchNorm::forward, parts, &rows, kind)
}

/// The answers of `shares.len()` ranks, each with its share of the samples, put together as one rank's.
fn on_ranks(shares: &[usize], kind: (f64, DType)) -> Answer {
    let answers = run(shares.len(), &LocalOptions::default(), |world| {
        let first: usize = shares[..world.rank()].iter().sum();
        let rows: Vec<u64> = (first..first + shares[world.rank()])
            .map(|i| i as u64)
            .collect();
        synchronised(world, &rows, kind)
    });
    let answers = answers.unwrap();
    let mut whole = answers[0].clone();
    whole.evaluation = answers.iter().flat_map(|a| a.evaluation.clone()).collect();
    let sizes = shares.iter().map(|share| share * FEATURES * PLACES);
    let of_step = |of: Field, step: usize| -> Vec<f64> {
        let parts = answers.iter().zip(sizes.clone());
        let cut = parts.flat_map(|(a, size)| of(a)[step * size..(step + 1) * size].to_vec());
        cut.collect()
    };
    let steps = 0..STEPS as usize;
    whole.y = steps
        .clone()
        .flat_map(|step| of_step(|a| &a.y, step))
        .collect();
    whole.x = steps.flat_map(|step| of_step(|a| &a.x, step)).collect();
    for other in &answers[1..] {
        assert_eq!(
            other.running, whole.running,
            "running statistics of two ranks"
        );
        let sums = whole.parameters.iter_mut().zip(&other.parameters);
        sums.for_each(|(sum, gradient)| *sum += gradient);
    }
    whole
}

type Field = fn(&Answer) -> &Vec<f64>;

fn expect(found: &Answer, expected: &Answer, tolerance: f64, who: &str) {
    let fields: [(&str, Field); 5] = [
        ("y", |a| &a.y),
        ("gradient of x", |a| &a.x),
        ("gradients of scale and shift", |a| &a.parameters),
        ("running statistics", |a| &a.running),
        ("evaluation", |a| &a.evaluation),
    ];
    for (name, field) in fields {
        let (found, expected) = (field(found), field(expected));
        assert_eq!(found.len(), expected.len(), "{who}: {name}");
        let largest = expected.iter().fold(1.0, |m: f64, x| m.max(x.abs()));
        for (a, b) in found.iter().zip(expected) {
            assert!(
                (a - b).abs() < tolerance * largest,
                "{who}, {name}: {a} instead of {b}"
            );
        }
    }
}

#[test]
fn one_rank_has_the_values_gradients_and_statistics_of_burns_layer() {
    let rows: Vec<u64> = (0..SAMPLES as u64).collect();
    for (dtype, tolerance) in [(DType::F64, 1e-10), (DType::F32, 1e-5)] {
        let kind = (0.7, dtype);
        let own = synchronised(single(), &rows, kind).unwrap();
        expect(&own, &of_burn(kind), tolerance, "one rank");
    }
}

#[test]
fn ranks_of_unequal_shares_have_the_answer_of_one() {
    let expected = of_burn((0.7, DType::F64));
    for shares in [vec![4, 5], vec![8, 1], vec![1, 3, 2, 3]] {
        let who = format!("shares {shares:?}");
        expect(
            &on_ranks(&shares, (0.7, DType::F64)),
            &expected,
            1e-10,
            &who,
        );
        let single = on_ranks(&shares, (0.7, DType::F32));
        expect(&single, &expected, 1e-5, &who);
    }
}

#[test]
fn ranks_repeat_their_answer_bit_for_bit() {
    let kind = (0.7, DType::F32);
    assert_eq!(on_ranks(&[2, 3, 4], kind), on_ranks(&[2, 3, 4], kind));
}

#[test]
fn a_mean_far_from_zero_does_not_spoil_the_variance() {
    // In f32 the mean of the squares less the square of the mean would have no digit left.
    let (kind, exact) = ((3e3, DType::F32), (3e3, DType::F64));
    let (found, expected) = (on_ranks(&[4, 5], kind), of_burn(exact));
    for (a, b) in found.running[FEATURES..]
        .iter()
        .zip(&expected.running[FEATURES..])
    {
        assert!((a - b).abs() < 1e-3 * b, "variance {a} instead of {b}");
    }
}

#[test]
fn a_visitor_sees_the_running_statistics_of_the_last_step() {
    struct Last(Vec<f64>);
    impl ModuleVisitor for Last {
        fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
            self.0 = to_vec(parameter.val());
        }
    }
    let layer = SyncBatchNormConfig::new(FEATURES)
        .init(&device(), &single())
        .unwrap();
    let rows: Vec<u64> = (0..SAMPLES as u64).collect();
    layer
        .forward(samples("x", 0, &rows, 0.0, DType::F32))
        .unwrap();
    let mut last = Last(Vec::new());
    layer.visit(&mut last);
    assert!(
        last.0.iter().all(|variance| *variance > 1.0),
        "{last:?}",
        last = last.0
    );
    assert_eq!(last.0, to_vec(layer.running_var.value_sync()));
}

#[test]
fn records_of_burns_layer_and_of_this_one_load_into_each_other() {
    let device = device();
    let theirs = BatchNormConfig::new(FEATURES).init(&device);
    let rows: Vec<u64> = (0..SAMPLES as u64).collect();
    theirs.forward(samples("x", 0, &rows, 0.5, DType::F32));
    let theirs = theirs.valid();
    let mean = to_vec(theirs.running_mean.value());
    let ours = SyncBatchNormConfig::new(FEATURES)
        .init(&device, &single())
        .unwrap();
    let ours = ours.try_load_record(theirs.into_record()).unwrap();
    assert_eq!(to_vec(ours.running_mean.value()), mean);
    let back = BatchNormConfig::new(FEATURES).init(&device);
    let back = back.try_load_record(ours.into_record()).unwrap();
    assert_eq!(to_vec(back.running_mean.value()), mean);
}

#[test]
fn the_replicas_meet_once_forward_and_once_backward() {
    let traffic = run(2, &LocalOptions::default(), |world| {
        let rows = [world.rank() as u64];
        synchronised(world.clone(), &rows, (0.7, DType::F32))?;
        Ok(world.traffic())
    });
    for rank in traffic.unwrap() {
        let mut calls: Vec<_> = rank.iter().map(|t| (t.operation, t.calls)).collect();
        calls.sort_unstable();
        assert_eq!(calls, [("all_gather", STEPS), ("all_reduce", STEPS)]);
    }
}

#[test]
fn a_frozen_layer_keeps_its_statistics_and_meets_no_one() {
    let traffic = run(2, &LocalOptions::default(), |world| {
        let layer = SyncBatchNormConfig::new(FEATURES)
            .init(&device(), &world)?
            .freeze();
        layer.forward(samples("x", 0, &[0, 1], 0.5, DType::F32))?;
        assert_eq!(to_vec(layer.running_mean.value_sync()), [0.0; FEATURES]);
        Ok(world.traffic())
    });
    assert!(traffic.unwrap().iter().all(Vec::is_empty));
}

#[test]
fn half_types_keep_their_type_and_have_statistics_in_full() {
    let layer = SyncBatchNormConfig::new(FEATURES)
        .init(&device(), &single())
        .unwrap();
    let rows: Vec<u64> = (0..SAMPLES as u64).collect();
    let x = samples("x", 0, &rows, 0.5, DType::BF16).require_grad();
    let y = layer.forward(x.clone()).unwrap();
    assert_eq!(y.dtype(), DType::BF16);
    let gradients = y.sum().backward();
    assert_eq!(x.grad(&gradients).unwrap().dtype(), DType::BF16);
    assert_eq!(layer.running_mean.value_sync().dtype(), DType::F32);
}

#[test]
fn a_layer_shows_what_burns_does() {
    let layer = SyncBatchNormConfig::new(FEATURES)
        .init(&device(), &single())
        .unwrap();
    assert_eq!(
        layer.to_string(),
        "SyncBatchNorm {num_features: 3, momentum: 0.1, epsilon: 0.00001, params: 12}"
    );
}

#[test]
fn what_does_not_fit_is_refused() {
    let (device, group) = (device(), single());
    for config in [
        SyncBatchNormConfig::new(0),
        SyncBatchNormConfig::new(2).with_epsilon(0.0),
        SyncBatchNormConfig::new(2).with_momentum(f64::NAN),
    ] {
        let error = config.init(&device, &group).unwrap_err();
        assert!(
            error.to_string().contains("momentum from 0 to 1"),
            "{error}"
        );
    }
    let layer = SyncBatchNormConfig::new(2).init(&device, &group).unwrap();
    let error = layer
        .forward(Tensor::<3>::ones([4, 3, 2], &device))
        .unwrap_err();
    assert!(error.to_string().contains("[4, 3, 2]"), "{error}");
    let error = layer.forward(Tensor::<1>::ones([2], &device)).unwrap_err();
    assert!(error.to_string().contains("2 features"), "{error}");
    let error = layer
        .forward(Tensor::<2>::ones([0, 2], &device))
        .unwrap_err();
    assert!(error.to_string().contains("no samples"), "{error}");
}
