//! Any Burn module trains: its parameters by path, what is frozen, its state, and where it continues.

use burn::module::{Module, Param};
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig, Relu};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use burn_frontier::checkpoint::Checkpoint;
use burn_frontier::comm::groups::Groups;
use burn_frontier::comm::{Buffer, local};
use burn_frontier::layers::{SyncBatchNorm, SyncBatchNormConfig};
use burn_frontier::optim::OptimizerConfig;
use burn_frontier::parameter::{BurnModule, Module as _, Selection};
use burn_frontier::pipeline::activation::Activation;
use burn_frontier::pipeline::model::{Model, Pass};
use burn_frontier::pipeline::run::Pipeline;
use burn_frontier::pipeline::schedule::Kind;
use burn_frontier::pipeline::stage::{Batch, Output};
use burn_frontier::train::{StepOptions, TrainState};
use burn_frontier::{Layout, Recompute, Result};

/// Points on a plane, and what is to be said of them.
#[derive(Debug, Clone)]
struct Points {
    x: Tensor<2>,
    y: Tensor<2>,
    at: Vec<u64>,
}

impl Batch for Points {
    fn count(&self) -> u64 {
        self.at.len() as u64
    }

    fn samples(&self) -> &[u64] {
        &self.at
    }
}

/// Samples `at` of a smooth function.
fn points(at: std::ops::Range<u64>) -> Points {
    let number = |i: u64, k: u64| ((i * 2 + k) as f32 * 0.7).sin();
    let xs: Vec<f32> = at
        .clone()
        .flat_map(|i| [number(i, 0), number(i, 1)])
        .collect();
    let ys: Vec<f32> = xs.chunks(2).map(|x| x[0] * x[1] + 0.5 * x[0]).collect();
    let n = ys.len();
    Points {
        x: Tensor::from_data(TensorData::new(xs, [n, 2]), &Device::flex()),
        y: Tensor::from_data(TensorData::new(ys, [n, 1]), &Device::flex()),
        at: at.collect(),
    }
}

#[derive(Module, Debug)]
struct Net {
    input: Linear,
    norm: BatchNorm,
    relu: Relu,
    /// Its weights stay as they are.
    frozen: Linear,
    /// Used twice.
    shared: Vec<Linear>,
    output: Linear,
    /// Which outputs of `frozen` are used.
    order: Param<Tensor<1, Int>>,
    mask: Param<Tensor<1, Bool>>,
}

fn linear(input: usize, output: usize, from: f32) -> Linear {
    let device = Device::flex();
    let mut linear = LinearConfig::new(input, output).init(&device);
    let n = input * output;
    let values: Vec<f32> = (0..n)
        .map(|i| (from + i as f32 * 1.3).sin() * 0.5)
        .collect();
    let data = TensorData::new(values, [input, output]);
    linear.weight = Param::from_data(data, &device);
    linear.bias = Some(Param::from_tensor(Tensor::zeros([output], &device)));
    linear
}

impl Net {
    fn new() -> Self {
        let device = Device::flex();
        let shared = linear(8, 8, 3.0);
        let order = Tensor::<1, Int>::from_data([7, 6, 5, 4, 3, 2, 1, 0], &device);
        let mask = Tensor::<1, Bool>::from_data(
            [true, true, true, true, true, true, true, false],
            &device,
        );
        Self {
            input: linear(2, 8, 1.0),
            norm: BatchNormConfig::new(8).init(&device),
            relu: Relu::new(),
            frozen: linear(8, 8, 2.0).no_grad(),
            shared: vec![shared.clone(), shared],
            output: linear(8, 1, 4.0),
            order: Param::initialized(burn::module::ParamId::new(), order),
            mask: Param::initialized(burn::module::ParamId::new(), mask),
        }
    }
}

impl Model for Net {
    type Batch = Points;

    fn forward(&self, _: Vec<Activation>, batch: &Points, _: &Pass) -> Result<Output> {
        let x = self
            .relu
            .forward(self.norm.forward(self.input.forward(batch.x.clone())));
        let x = self.frozen.forward(x).select(1, self.order.val());
        let mask = self.mask.val().float().unsqueeze::<2>();
        let mut x = self.relu.forward(x * mask);
        for layer in &self.shared {
            x = layer.forward(x).tanh();
        }
        let error = self.output.forward(x) - batch.y.clone();
        Ok(Output::Losses((error.clone() * error).reshape([-1])))
    }
}

fn state() -> TrainState<BurnModule<Net>> {
    let groups = Groups::new(Layout::single(), local::single()).unwrap();
    let chunks = vec![BurnModule::new(Net::new(), 1).unwrap()];
    let pipeline = Pipeline::new(chunks, Kind::default(), groups, Device::flex()).unwrap();
    TrainState::new(pipeline, &[OptimizerConfig::new(0, false)], 1).unwrap()
}

fn train(state: &mut TrainState<BurnModule<Net>>, steps: u64, recompute: Recompute) -> Vec<f64> {
    let options = StepOptions {
        recompute,
        ..StepOptions::new(1e-2)
    };
    let first = state.steps();
    let step = |step: u64| {
        let batches = [
            points(8 * step..8 * step + 4),
            points(8 * step + 4..8 * step + 8),
        ];
        state.step(&batches, &options).unwrap().loss
    };
    (first..first + steps).map(step).collect()
}

fn values(state: &TrainState<BurnModule<Net>>) -> Vec<(String, Buffer)> {
    let states = state.pipeline.chunks[0].state().unwrap();
    states.into_iter().map(|s| (s.name, s.data)).collect()
}

#[test]
fn parameters_have_their_paths_and_the_rest_is_state() {
    let mut module = BurnModule::new(Net::new(), 1).unwrap();
    assert_eq!(
        module.names(),
        [
            "input.weight",
            "input.bias",
            "norm.gamma",
            "norm.beta",
            "shared.0.weight",
            "shared.0.bias",
            "shared.0.weight",
            "shared.0.bias",
            "output.weight",
            "output.bias",
        ]
    );
    let states = module
        .state()
        .unwrap()
        .into_iter()
        .map(|s| (s.name, s.shape));
    let expected = [
        ("norm.running_mean", vec![8]),
        ("norm.running_var", vec![8]),
        ("frozen.weight", vec![8, 8]),
        ("frozen.bias", vec![8]),
        ("order", vec![8]),
        ("mask", vec![8]),
    ];
    let expected = expected.map(|(name, shape)| (name.to_string(), shape));
    assert_eq!(states.collect::<Vec<_>>(), expected);
    let twice = BurnModule::with_names(Net::new(), 1, |path| {
        path.rsplit('.').next().unwrap().into()
    });
    assert!(
        twice
            .unwrap_err()
            .to_string()
            .contains("two parameters are called")
    );
}

#[test]
fn a_module_learns_but_for_what_is_frozen() {
    let mut state = state();
    let before = values(&state);
    let losses = train(&mut state, 60, Recompute::None);
    assert!(losses[59] < 0.3 * losses[0], "{losses:?}");
    let after = values(&state);
    for ((name, before), (_, after)) in before.iter().zip(&after) {
        let running = name.starts_with("norm.running");
        assert_eq!(before != after, running, "{name}");
    }
    // Evaluation takes the running statistics, which one sample alone does not change.
    let (one, two) = (points(0..1), points(0..2));
    let [one, two] = [one, two].map(|batch| state.evaluate(&[batch]).unwrap());
    let alone = state.evaluate(&[points(1..2)]).unwrap();
    assert!(
        (one + alone - 2.0 * two).abs() < 1e-6,
        "{one} {alone} {two}"
    );
    assert_eq!(values(&state), after);
}

#[test]
fn recomputing_changes_no_bit() {
    let runs = [Recompute::None, Recompute::Full].map(|recompute| {
        let mut state = state();
        let losses = train(&mut state, 5, recompute);
        (losses, values(&state))
    });
    assert_eq!(runs[0], runs[1]);
    let options = StepOptions {
        recompute: Recompute::Selective,
        ..StepOptions::new(1e-2)
    };
    let error = state().step(&[points(0..4)], &options).unwrap_err();
    assert!(error.to_string().contains("selective"), "{error}");
}

#[test]
fn a_run_that_is_continued_is_the_run_that_was_not_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let mut whole = state();
    let expected = train(&mut whole, 6, Recompute::None);
    let mut first = state();
    train(&mut first, 3, Recompute::None);
    first.save(folder.path(), 0).unwrap();
    let checkpoint = Checkpoint::newest(folder.path()).unwrap().unwrap();
    let mut second = state();
    // What has happened to the state before counts no more.
    train(&mut second, 1, Recompute::None);
    second.resume(&checkpoint).unwrap();
    assert_eq!(second.steps(), 3);
    assert_eq!(train(&mut second, 3, Recompute::None), expected[3..]);
    assert_eq!(values(&second), values(&whole));
}

#[test]
fn only_what_is_selected_is_trained() {
    let module = BurnModule::new(Net::new(), 1).unwrap();
    let leaves = module.leaves(&Selection::within("output"));
    let weight = |linear: &Linear| linear.weight.val().is_require_grad();
    assert!(weight(&leaves.module().output));
    assert!(!weight(&leaves.module().input));
}

/// A batch norm in front, of Burn or ours.
#[derive(Module, Debug)]
struct Front {
    burns: Option<BatchNorm>,
    ours: Option<SyncBatchNorm>,
    output: Linear,
    /// Whether the batch's tensors are said to be input.
    #[module(skip)]
    input: bool,
}

impl Model for Front {
    type Batch = Points;

    fn forward(&self, _: Vec<Activation>, batch: &Points, pass: &Pass) -> Result<Output> {
        let mut x = batch.x.clone();
        if self.input {
            x = pass.input(x);
        }
        if let Some(norm) = &self.burns {
            x = norm.forward(x);
        }
        if let Some(norm) = &self.ours {
            x = norm.forward(x)?;
        }
        let error = self.output.forward(x) - batch.y.clone();
        Ok(Output::Losses((error.clone() * error).reshape([-1])))
    }
}

fn front(groups: Groups, (ours, input): (bool, bool)) -> Result<TrainState<BurnModule<Front>>> {
    let device = Device::flex();
    let norm = SyncBatchNormConfig::new(2);
    let front = Front {
        burns: (!ours).then(|| BatchNormConfig::new(2).init(&device)),
        ours: ours.then(|| norm.init(&device, &groups.dp)).transpose()?,
        output: LinearConfig::new(2, 1).init(&device),
        input,
    };
    let chunks = vec![BurnModule::new(front, 7)?];
    let pipeline = Pipeline::new(chunks, Kind::default(), groups, device)?;
    TrainState::new(pipeline, &[OptimizerConfig::new(0, false)], 7)
}

/// What is said while `body` runs.
fn said(body: impl FnOnce()) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let file = std::fs::File::create(&path).unwrap();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(std::sync::Mutex::new(file))
        .finish();
    tracing::subscriber::with_default(subscriber, body);
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn a_batch_norm_that_does_not_see_that_it_trains_is_named() {
    for (ours, input, expected) in [
        (false, false, true),
        (false, true, false),
        // It looks at its parameters too.
        (true, false, false),
    ] {
        let said = said(|| {
            let groups = Groups::new(Layout::single(), local::single()).unwrap();
            let mut state = front(groups, (ours, input)).unwrap();
            for step in 0..2 {
                let batch = [points(step * 4..step * 4 + 4)];
                state.step(&batch, &StepOptions::new(1e-2)).unwrap();
            }
        });
        let named = said.matches("statistics of burns as they were").count();
        assert_eq!(named, usize::from(expected), "{said}");
    }
}

#[test]
fn replicas_that_meet_need_as_many_micro_batches_and_their_own_statistics_are_refused() {
    let layout = Layout {
        dp: 2,
        ..Layout::single()
    };
    let run = |ours, counts: [u64; 2]| {
        local::run(2, &Default::default(), |world| {
            let groups = Groups::new(layout, world)?;
            let replica = groups.at.dp as u64;
            let mut state = front(groups, (ours, true))?;
            let batches = (0..counts[replica as usize]).map(|i| {
                let first = 8 * replica + i;
                points(first..first + 1)
            });
            state.step(&batches.collect::<Vec<_>>(), &StepOptions::new(1e-2))
        })
    };
    run(true, [2, 2]).unwrap();
    let error = run(true, [2, 3]).unwrap_err().to_string();
    assert!(error.contains("as many micro-batches"), "{error}");
    let error = run(false, [2, 2]).unwrap_err().to_string();
    assert!(error.contains("SyncBatchNorm"), "{error}");
}

#[test]
fn a_parameter_without_an_optimiser_is_refused() {
    let groups = Groups::new(Layout::single(), local::single()).unwrap();
    let chunks = vec![BurnModule::new(Net::new(), 1).unwrap()];
    let pipeline = Pipeline::new(chunks, Kind::default(), groups, Device::flex()).unwrap();
    let some = OptimizerConfig::new(0, false).with_selection(Selection::within("output"));
    let error = TrainState::new(pipeline, &[some], 1)
        .unwrap_err()
        .to_string();
    assert!(error.contains("input.weight has no optimiser"), "{error}");
}
