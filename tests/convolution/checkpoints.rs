//! What a network of Burn's layers has saved, one of ours goes on with, and the other way round.

use burn::module::Module;
use burn::nn::conv as burns;
use burn::tensor::{DType, Device, Tensor};
use burn_frontier::layers as ours;
use burn_frontier::prelude::*;

use crate::agreement::drawn;

#[derive(Clone)]
struct Pictures {
    x: Tensor<4>,
    at: Vec<u64>,
}

impl Batch for Pictures {
    fn count(&self) -> u64 {
        self.at.len() as u64
    }

    fn samples(&self) -> &[u64] {
        &self.at
    }
}

/// A network of one kind of layers.
macro_rules! network {
    ($net:ident, $layers:ident, |$layer:ident| $made:expr, |$y:ident| $value:expr) => {
        #[derive(Module, Debug)]
        struct $net {
            down: $layers::Conv2d,
            up: $layers::ConvTranspose2d,
        }

        impl $net {
            fn state() -> Result<TrainState<BurnModule<Self>>> {
                let device = Device::flex();
                let $layer = $layers::Conv2dConfig::new([2, 4], [3, 3])
                    .with_stride([2, 2])
                    .init(&device);
                let down = $made;
                let $layer = $layers::ConvTranspose2dConfig::new([4, 2], [3, 3])
                    .with_stride([2, 2])
                    .init(&device);
                let net = BurnModule::new(Self { down, up: $made }, 1)?;
                let groups = Groups::new(Layout::single(), local::single())?;
                let pipeline = Pipeline::new(vec![net], Kind::default(), groups, device)?;
                TrainState::new(pipeline, &[OptimizerConfig::new(0, true)], 1)
            }
        }

        impl Model for $net {
            type Batch = Pictures;

            fn forward(&self, _: Vec<Activation>, batch: &Pictures, _: &Pass) -> Result<Output> {
                let $y = self.down.forward(batch.x.clone());
                let $y = self.up.forward($value.tanh());
                let error: Tensor<2> = ($value - batch.x.clone()).square().flatten(1, 3);
                Ok(Output::Losses(error.mean_dim(1).reshape([-1])))
            }
        }
    };
}

network!(OfOurs, ours, |layer| layer?, |y| y?);
network!(OfBurns, burns, |layer| layer, |y| y);

fn step<M: Model<Batch = Pictures>>(state: &mut TrainState<BurnModule<M>>) -> Result<f64> {
    let x = drawn([3, 2, 7, 9], state.steps() as u32, DType::F32);
    let batch = Pictures {
        x,
        at: (0..3).collect(),
    };
    Ok(state.step(&[batch], &StepOptions::new(1e-2))?.loss)
}

#[test]
fn each_goes_on_where_the_other_was() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let (mut own, mut theirs) = (OfOurs::state()?, OfBurns::state()?);
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-6 * b, "{a} instead of {b}");
    for _ in 0..3 {
        close(step(&mut own)?, step(&mut theirs)?);
    }
    let [of_own, of_theirs] = ["own", "theirs"].map(|name| folder.path().join(name));
    own.save(&of_own, 1)?;
    theirs.save(&of_theirs, 1)?;
    let expected = step(&mut theirs)?;
    let newest = |folder| Ok::<_, Error>(Checkpoint::newest(folder)?.expect("a checkpoint"));
    let (mut own, mut theirs) = (OfOurs::state()?, OfBurns::state()?);
    own.resume(&newest(&of_theirs)?)?;
    theirs.resume(&newest(&of_own)?)?;
    close(step(&mut own)?, expected);
    close(step(&mut theirs)?, expected);
    Ok(())
}
