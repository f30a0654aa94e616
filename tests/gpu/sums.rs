//! Where kernels add gradients to sums beside the graph, what is not trained must gather none.

use burn::tensor::{Device, Tensor};
use burn_frontier::Layout;
use burn_frontier::comm::groups::Groups;
use burn_frontier::comm::local;
use burn_frontier::optim::OptimizerConfig;
use burn_frontier::parameter::{ParameterContext, Selection};
use burn_frontier::pipeline::segment::segment;
use burn_frontier::tensor_parallel::linear::{ColumnParallelLinear, LinearConfig};
use burn_frontier::zero::reducer::GradientReducer;

use crate::harness::gpu::gpu;

/// Two networks, one behind the other.
#[derive(Debug, Clone)]
struct Pair {
    generator: ColumnParallelLinear,
    discriminator: ColumnParallelLinear,
}

burn_frontier::module!(Pair {
    generator,
    discriminator
});

fn layer(name: &str, context: &ParameterContext) -> ColumnParallelLinear {
    let config = LinearConfig {
        name: name.into(),
        input: 32,
        outputs: vec![32],
        deviation: 0.1,
        bias: true,
    };
    ColumnParallelLinear::init(config.column(), context)
}

/// A backward pass through both for what is `trained`; gives the reduced gradients' sum.
fn pass(pair: &Pair, trained: &Selection, reducer: &mut GradientReducer, device: &Device) -> f64 {
    reducer.begin().unwrap();
    let noise = Tensor::<3>::ones([8, 16, 32], device);
    let through = move |pair: &Pair, _| {
        let made = pair.generator.forward(noise.clone().autodiff())?;
        Ok(vec![pair.discriminator.forward(made)?.into()])
    };
    let (outputs, back) = segment(pair, Vec::new(), false, trained, through).unwrap();
    let ones = outputs.into_iter().map(|x| {
        let x = x.tensor::<3>().unwrap();
        x.ones_like().into()
    });
    let gradients = back(ones.collect()).unwrap();
    reducer.add(gradients.parameters, true).unwrap();
    let reduced = reducer.finish().unwrap();
    let sums = reduced
        .into_iter()
        .map(|x| x.abs().sum().into_scalar::<f32>());
    sums.map(f64::from).sum()
}

#[test]
fn a_discriminator_gathers_nothing_while_its_generator_trains() {
    let Some(gpu) = gpu() else { return };
    let device = gpu.of_rank(0);
    let groups = Groups::new(Layout::single(), local::single()).unwrap();
    let context = ParameterContext::new(1, &groups, device.clone());
    let mut pairs = [Pair {
        generator: layer("generator", &context),
        discriminator: layer("discriminator", &context),
    }];
    let config =
        |path: &str| OptimizerConfig::new(0, false).with_selection(Selection::within(path));
    let [(mut of_generator, _), (mut of_discriminator, _)] = ["generator", "discriminator"]
        .map(|path| config(path).init(&mut pairs, None, &groups).unwrap());
    let [generator, discriminator] =
        ["generator", "discriminator"].map(|path| config(path).trained());
    let first = pass(&pairs[0], &discriminator, &mut of_discriminator, &device);
    for _ in 0..3 {
        pass(&pairs[0], &generator, &mut of_generator, &device);
        let Pair { discriminator, .. } = &pairs[0];
        let sums = [
            &discriminator.weight.sum,
            &discriminator.bias.as_ref().unwrap().sum,
        ];
        assert!(
            sums.iter()
                .all(|sum| sum.as_ref().unwrap().take().is_none())
        );
    }
    let again = pass(&pairs[0], &discriminator, &mut of_discriminator, &device);
    assert_eq!(again, first);
    assert!(first > 0.0);
    // One that a pass of somebody else has left does not reach a step either.
    pass(&pairs[0], &Selection::all(), &mut of_generator, &device);
    let left = pairs[0].discriminator.weight.sum.as_ref().unwrap();
    let kept = left.take().expect("a kernel adds to the sum");
    left.add(kept);
    let again = pass(&pairs[0], &discriminator, &mut of_discriminator, &device);
    assert_eq!(again, first);
}
