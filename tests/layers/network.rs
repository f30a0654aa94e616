//! A network of these layers trains alike on any number of replicas.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor, activation::softplus};
use burn_frontier::comm::groups::Groups;
use burn_frontier::comm::local::{LocalOptions, run};
use burn_frontier::layers::{
    Dropout, DropoutConfig, GaussianNoise, GaussianNoiseConfig, SyncBatchNorm, SyncBatchNormConfig,
};
use burn_frontier::optim::OptimizerConfig;
use burn_frontier::parameter::{BurnModule, Module as _};
use burn_frontier::pipeline::activation::Activation;
use burn_frontier::pipeline::micro_batches::micro_batches;
use burn_frontier::pipeline::model::{Model, Pass};
use burn_frontier::pipeline::run::Pipeline;
use burn_frontier::pipeline::schedule::Kind;
use burn_frontier::pipeline::stage::{Batch, Output};
use burn_frontier::random::Draws;
use burn_frontier::train::{StepOptions, TrainState};
use burn_frontier::{Layout, Recompute, Result};

const GLOBAL_BATCH: u64 = 10;
const SEED: u64 = 11;

#[derive(Clone)]
struct Points {
    x: Tensor<2>,
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

/// A variational autoencoder, whose encoder has everything that draws.
#[derive(Module, Debug)]
struct Autoencoder {
    noise: GaussianNoise,
    input: Linear,
    norm: SyncBatchNorm,
    dropout: Dropout,
    mean: Linear,
    spread: Linear,
    output: Linear,
}

impl Autoencoder {
    fn new(device: &Device, groups: &Groups) -> Result<Self> {
        let linear = |input, output| LinearConfig::new(input, output).init(device);
        Ok(Self {
            noise: GaussianNoiseConfig::new(0.1).init("noise")?,
            // A bias before a batch norm has no gradient but rounding errors, which Adam makes steps of.
            input: LinearConfig::new(4, 16).with_bias(false).init(device),
            norm: SyncBatchNormConfig::new(16).init(device, &groups.dp)?,
            dropout: DropoutConfig::new(0.25).init("dropout")?,
            mean: linear(16, 2),
            spread: linear(16, 2),
            output: linear(2, 4),
        })
    }
}

impl Model for Autoencoder {
    type Batch = Points;

    fn forward(&self, _: Vec<Activation>, batch: &Points, pass: &Pass) -> Result<Output> {
        let x = self.noise.forward(batch.x.clone(), &pass.draws)?;
        let x = self.norm.forward(self.input.forward(x))?.tanh();
        let x = self.dropout.forward(x, &pass.draws)?;
        let (mean, spread) = (
            self.mean.forward(x.clone()),
            softplus(self.spread.forward(x), 1.0),
        );
        let normal = pass.draws.normal("epsilon", mean.dims(), &mean.device())?;
        let error = self.output.forward(mean + spread * normal) - batch.x.clone();
        Ok(Output::Losses((error.clone() * error).reshape([-1])))
    }
}

#[derive(Clone, Copy)]
struct Case {
    dp: usize,
    micro_batch: u64,
    zero: u8,
    recompute: Recompute,
}

const ONE: Case = Case {
    dp: 1,
    micro_batch: GLOBAL_BATCH,
    zero: 0,
    recompute: Recompute::None,
};

/// Losses and the running statistics at the end.
fn train(case: Case) -> (Vec<f64>, Vec<f64>) {
    let answers = run(case.dp, &LocalOptions::default(), |world| {
        let groups = Groups::new(
            Layout {
                dp: case.dp,
                ..Layout::single()
            },
            world,
        )?;
        let device = Device::flex();
        let chunks = vec![BurnModule::new(Autoencoder::new(&device, &groups)?, SEED)?];
        let replica = groups.at.dp;
        let pipeline = Pipeline::new(chunks, Kind::default(), groups, device.clone())?;
        let optimizer = OptimizerConfig::new(case.zero, false);
        let mut state = TrainState::new(pipeline, &[optimizer], SEED)?;
        let options = StepOptions {
            recompute: case.recompute,
            ..StepOptions::new(1e-2)
        };
        let mut losses = Vec::new();
        for step in 0..8 {
            let cuts = micro_batches(GLOBAL_BATCH, case.micro_batch, replica, case.dp)?;
            let batches = cuts.into_iter().map(|at| {
                let data = Draws::new(3, Some(step), at.clone().collect());
                let x = data.normal("data", [(at.end - at.start) as usize, 4], &device)?;
                Ok(Points {
                    x,
                    at: at.collect(),
                })
            });
            let batches: Vec<Points> = batches.collect::<Result<_>>()?;
            losses.push(state.step(&batches, &options)?.loss);
        }
        let running = state.pipeline.chunks[0].state()?;
        let running = running
            .into_iter()
            .flat_map(|state| state.data.into_f32().unwrap());
        Ok((losses, running.map(f64::from).collect()))
    });
    let answers: Vec<(Vec<f64>, Vec<f64>)> = answers.unwrap();
    for other in &answers[1..] {
        assert_eq!(*other, answers[0], "two ranks of {}", case.dp);
    }
    answers[0].clone()
}

#[test]
fn replicas_micro_batches_and_zero_train_as_one_rank() {
    let (expected, running) = train(ONE);
    assert_eq!(
        train(ONE),
        (expected.clone(), running.clone()),
        "when run again"
    );
    assert!(expected[7] < expected[0], "{expected:?}");
    for (dp, zero) in [(2, 0), (2, 1), (4, 1), (3, 0)] {
        // All samples at the same time: the batch norm of the whole batch.
        let case = Case { dp, zero, ..ONE };
        let found = train(case);
        assert_eq!(train(case), found, "dp {dp}, when run again");
        let pairs = found
            .0
            .iter()
            .zip(&expected)
            .chain(found.1.iter().zip(&running));
        for (a, b) in pairs {
            assert!(
                (a - b).abs() < 1e-5 * b.abs().max(1.0),
                "dp {dp} zero {zero}: {a} for {b}"
            );
        }
    }
    // Micro-batches of the same time are one rank's.
    let (one, two) = (
        train(Case {
            micro_batch: 4,
            ..ONE
        }),
        train(Case {
            dp: 2,
            micro_batch: 2,
            ..ONE
        }),
    );
    for (a, b) in two.0.iter().zip(&one.0) {
        assert!((a - b).abs() < 1e-5 * b, "{a} for {b}");
    }
}

#[test]
fn a_pass_that_is_computed_again_draws_the_same() {
    for dp in [1, 2] {
        let case = Case {
            dp,
            micro_batch: 3,
            ..ONE
        };
        let again = Case {
            recompute: Recompute::Full,
            ..case
        };
        assert_eq!(train(again), train(case), "dp {dp}");
    }
}
