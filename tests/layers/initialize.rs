//! First values of Burn modules are a function of (seed, path, index).

use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::nn::attention::{MultiHeadAttention, MultiHeadAttentionConfig};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Embedding, EmbeddingConfig, Initializer, Linear, LinearConfig, Lstm, LstmConfig};
use burn::tensor::{Device, Distribution, Int, Tensor};
use burn_frontier::Result;
use burn_frontier::comm::local::{LocalOptions, run};
use burn_frontier::random::{GeneratorWatch, check_replicas, initialize, initialize_as};

/// The process's generator, which one test at a time may use.
fn generator() -> MutexGuard<'static, ()> {
    static GENERATOR: Mutex<()> = Mutex::new(());
    GENERATOR.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Module, Debug)]
struct Model {
    first: Linear,
    second: Linear,
    orthogonal: Linear,
    convolution: Conv2d,
    embedding: Embedding,
    recurrent: Lstm,
    attention: MultiHeadAttention,
    permutation: Param<Tensor<1, Int>>,
}

fn model(device: &Device) -> Model {
    let linear = || LinearConfig::new(4, 6);
    let numbers = |device: &Device, _| Tensor::random([5], Distribution::Uniform(0.0, 1e6), device);
    Model {
        first: linear().init(device),
        second: linear().init(device),
        orthogonal: linear()
            .with_bias(false)
            .with_initializer(Initializer::Orthogonal { gain: 1.0 })
            .init(device),
        convolution: Conv2dConfig::new([1, 3], [3, 3]).init(device),
        embedding: EmbeddingConfig::new(7, 3).init(device),
        recurrent: LstmConfig::new(2, 3, true).init(device),
        attention: MultiHeadAttentionConfig::new(4, 2).init(device),
        permutation: Param::uninitialized(
            ParamId::new(),
            numbers,
            device.clone(),
            false,
            [5].into(),
        ),
    }
}

fn device() -> Device {
    Device::flex().autodiff()
}

/// A model with the first values of a seed.
fn first(seed: u64) -> Model {
    initialize(model(&device()), seed).unwrap()
}

/// All values of a module in visiting order, as bits.
fn bits<M: Module>(module: &M) -> Vec<Vec<u8>> {
    struct Bits(Vec<Vec<u8>>);
    impl ModuleVisitor for Bits {
        fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
            self.0.push(parameter.val().into_data().as_bytes().to_vec());
        }
        fn visit_int<const D: usize>(&mut self, parameter: &Param<Tensor<D, Int>>) {
            self.0.push(parameter.val().into_data().as_bytes().to_vec());
        }
    }
    let mut bits = Bits(Vec::new());
    module.visit(&mut bits);
    bits.0
}

#[test]
fn threads_that_initialise_at_once_have_the_values_of_one() {
    let _alone = generator();
    let alone = bits(&first(3));
    assert_eq!(alone.len(), 33);
    let together = run(4, &LocalOptions::default(), |_| Ok(bits(&first(3))));
    for rank in together.unwrap() {
        assert_eq!(rank, alone);
    }
}

#[test]
fn a_value_depends_on_seed_and_path_alone() {
    let _alone = generator();
    let device = device();
    let all = first(3);
    assert_ne!(
        bits(&all.first),
        bits(&all.second),
        "two layers of one kind"
    );
    assert_ne!(bits(&all.first), bits(&first(4).first));

    #[derive(Module, Debug)]
    struct Small {
        second: Linear,
    }
    device.seed(99);
    let small = Small {
        second: LinearConfig::new(4, 6).init(&device),
    };
    assert_eq!(
        bits(&initialize(small, 3).unwrap()),
        bits(&all.second),
        "without the layers before it"
    );
    let stage = LinearConfig::new(4, 6).init(&device);
    let stage = initialize_as(stage, 3, |path| format!("second.{path}")).unwrap();
    assert_eq!(bits(&stage), bits(&all.second), "as a part of the model");
}

#[test]
fn first_values_do_not_change_with_versions() {
    let _alone = generator();
    let layer = initialize(LinearConfig::new(2, 2).init(&Device::flex()), 1).unwrap();
    let weight: Vec<f32> = layer.weight.val().into_data().try_to_vec().unwrap();
    let bias: Vec<f32> = layer.bias.unwrap().val().into_data().try_to_vec().unwrap();
    assert_eq!(weight, [0.20582378, 0.36643738, -0.31118652, 0.6390868]);
    assert_eq!(bias, [0.42640775, -0.52865076]);
}

#[test]
fn the_parameters_are_trained_as_before() {
    let _alone = generator();
    let device = device();
    let mut layer = LinearConfig::new(4, 6).init(&device);
    layer.bias = layer.bias.map(|bias| bias.set_require_grad(false));
    let layer = initialize(layer, 3).unwrap();
    let ids = (layer.weight.id, layer.bias.as_ref().unwrap().id);
    let loss = layer.forward(Tensor::<2>::ones([1, 4], &device)).sum();
    let gradients = loss.backward();
    assert!(layer.weight.grad(&gradients).is_some());
    let again = initialize(layer.clone(), 4).unwrap();
    assert_eq!(ids, (again.weight.id, again.bias.as_ref().unwrap().id));
    assert_eq!(bits(&again), bits(&layer), "values that are there stay");
    assert!(layer.bias.unwrap().grad(&gradients).is_none());
}

#[test]
fn parameters_that_are_one_get_one_value() {
    #[derive(Module, Debug)]
    struct Tied {
        input: Param<Tensor<2>>,
        output: Param<Tensor<2>>,
    }
    let _alone = generator();
    let weight = Initializer::Normal {
        mean: 0.0,
        std: 1.0,
    }
    .init([3, 4], &device());
    let tied = Tied {
        input: weight.clone(),
        output: weight,
    };
    let tied = initialize(tied, 3).unwrap();
    let bits = bits(&tied);
    assert_eq!(bits[0], bits[1]);
}

#[test]
fn an_initialiser_that_fails_is_an_error_that_names_its_parameter() {
    let _alone = generator();
    // Burn's panics for a bias.
    let orthogonal = Initializer::Orthogonal { gain: 1.0 };
    let layer = LinearConfig::new(4, 6).with_initializer(orthogonal);
    let pair = (
        LinearConfig::new(4, 6).init(&device()),
        layer.init(&device()),
    );
    let message = initialize(pair, 3).unwrap_err().to_string();
    assert!(message.contains("1.bias"), "{message}");
    assert!(message.contains("D >= 2"), "{message}");
}

#[test]
fn replicas_that_begin_differently_are_told_which_parameter_does() {
    let _alone = generator();
    let on_two = |make: fn(usize) -> Model| -> Result<Vec<()>> {
        run(2, &LocalOptions::default(), |world| {
            check_replicas(&make(world.rank()), &world)
        })
    };
    on_two(|_| first(3)).unwrap();
    let drawn = on_two(|rank| {
        let mut model = model(&device());
        let drawn = Tensor::full([4, 6], rank as f64, &device());
        model.second.weight = Param::from_tensor(drawn);
        initialize(model, 3).unwrap()
    });
    let message = drawn.unwrap_err().to_string();
    assert!(message.contains("values of second.weight"), "{message}");
    assert!(message.contains("random::initialize"), "{message}");
    let other = on_two(|rank| {
        let mut model = first(3);
        if rank == 1 {
            model.second.bias = None;
        }
        model
    });
    let message = other.unwrap_err().to_string();
    assert!(
        message.contains("the same model on every replica"),
        "{message}"
    );
}

#[test]
fn a_step_that_draws_from_the_processs_generator_is_seen() {
    let _alone = generator();
    let device = device();
    let step = |draws: bool| {
        let watch = GeneratorWatch::begin(&device, 3);
        let on_ranks = run(2, &LocalOptions::default(), |world| {
            let x = Tensor::<1>::ones([4], &device);
            if draws && world.rank() == 1 {
                x.random_like(Distribution::Default);
            }
            Ok(())
        });
        on_ranks.unwrap();
        watch.end().unwrap()
    };
    assert!(!step(false));
    assert!(step(true));
    assert!(!step(false), "what an earlier step drew is over");
}
