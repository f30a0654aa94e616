//! Dropout and noise belong to the samples.

use std::ops::Range;

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_frontier::layers::{Dropout, DropoutConfig, GaussianNoise, GaussianNoiseConfig};
use burn_frontier::random::Draws;

const SAMPLES: u64 = 8;

fn dropout(probability: f64) -> Dropout {
    DropoutConfig::new(probability).init("drop").unwrap()
}

fn noise(std: f64) -> GaussianNoise {
    GaussianNoiseConfig::new(std).init("noise").unwrap()
}

fn draws(step: u64, samples: Range<u64>) -> Draws {
    Draws::new(7, Some(step), samples.collect())
}

/// Ones of `[rows, 3, 4]`, where they can be trained.
fn ones(rows: u64) -> Tensor<3> {
    Tensor::ones([rows as usize, 3, 4], &Device::flex().autodiff())
}

fn values(x: Tensor<3>) -> Vec<f32> {
    x.into_data().try_to_vec().unwrap()
}

/// What both layers in turn make of the batch, as `cuts` divide it.
fn in_parts(cuts: &[u64], rows_a_sample: u64) -> Vec<f32> {
    let parts = cuts.windows(2).flat_map(|cut| {
        let draws = draws(3, cut[0]..cut[1]);
        let x = ones((cut[1] - cut[0]) * rows_a_sample);
        let x = dropout(0.5).forward(x, &draws).unwrap();
        values(noise(0.1).forward(x, &draws).unwrap())
    });
    parts.collect()
}

#[test]
fn replicas_and_micro_batches_have_one_ranks_numbers() {
    for rows in [1, 5] {
        let whole = in_parts(&[0, SAMPLES], rows);
        for cuts in [vec![0, 4, 8], vec![0, 1, 4, 6, 8], (0..=8).collect()] {
            assert_eq!(in_parts(&cuts, rows), whole, "cuts {cuts:?}");
        }
    }
}

#[test]
fn another_step_and_another_use_drop_others_and_a_pass_that_is_run_again_the_same() {
    let layer = dropout(0.5);
    let run = |draws: &Draws| values(layer.forward(ones(SAMPLES), draws).unwrap());
    let pass = draws(3, 0..SAMPLES);
    let (first, second) = (run(&pass), run(&pass));
    assert_ne!(first, second);
    assert_ne!(first, run(&draws(4, 0..SAMPLES)));
    let again = pass.clone();
    assert_eq!([run(&again), run(&again)], [first, second]);
}

#[test]
fn the_shape_within_a_sample_does_not_matter() {
    let device = Device::flex();
    let drop = |x: Tensor<3>| values(dropout(0.5).forward(x, &draws(3, 0..2)).unwrap());
    let flat = Tensor::<2>::ones([2, 24], &device);
    let flat = dropout(0.5).forward(flat, &draws(3, 0..2)).unwrap();
    let flat: Vec<f32> = flat.into_data().try_to_vec().unwrap();
    assert_eq!(drop(Tensor::ones([2, 4, 6], &device)), flat);
    assert_eq!(drop(Tensor::ones([8, 3, 2], &device)), flat);
}

#[test]
fn rows_of_a_graph_are_numbered_by_the_caller() {
    let layer = dropout(0.5);
    let pass = draws(3, 0..2);
    let all = layer.forward(ones(6), &pass.clone().of_rows((0..6).collect()));
    let some = layer.forward(ones(3), &pass.of_rows(vec![5, 0, 3]));
    let (all, some) = (values(all.unwrap()), values(some.unwrap()));
    let row = |i: usize| &all[12 * i..12 * (i + 1)];
    assert_eq!(some, [row(5), row(0), row(3)].concat());
}

#[test]
fn dropout_scales_what_it_keeps_and_the_gradient_alike() {
    let device = Device::flex().autodiff();
    for probability in [0.1, 0.5, 0.9] {
        let count = 4000;
        let data: Vec<f64> = (0..count).map(|i| f64::from(i) + 1.0).collect();
        let data = TensorData::new(data, [4, 1000]);
        let x = Tensor::<2>::from_data(data, (&device, DType::F64)).require_grad();
        let layer = dropout(probability);
        let y = layer.forward(x.clone(), &draws(3, 0..4)).unwrap();
        let gradients = y.clone().sum().backward();
        let slope: Vec<f64> = x.grad(&gradients).unwrap().into_data().iter().collect();
        let y: Vec<f64> = y.into_data().iter().collect();
        let keep = 1.0 / (1.0 - probability);
        for (i, (y, slope)) in y.iter().zip(&slope).enumerate() {
            assert!(*slope == 0.0 || *slope == keep, "{slope}");
            let expected = (i as f64 + 1.0) * slope;
            assert!((y - expected).abs() <= 1e-15 * expected);
        }
        let dropped = y.iter().filter(|y| **y == 0.0).count() as f64 / f64::from(count);
        assert!((dropped - probability).abs() < 0.03, "{dropped}");
    }
}

#[test]
fn numbers_do_not_change_with_versions() {
    // A run that continues would otherwise go on with others.
    let device = Device::flex();
    let draws = draws(3, 2..4);
    let normal = draws.normal("z", [2, 2], &device).unwrap();
    let normal: Vec<f32> = normal.into_data().try_to_vec().unwrap();
    assert_eq!(normal, [-1.0958844, -0.56074756, -1.0431985, -0.77965873]);
    let uniform = draws.uniform("z", [2, 2], &device).unwrap();
    let uniform: Vec<f32> = uniform.into_data().try_to_vec().unwrap();
    assert_eq!(uniform, [0.3387205, 0.67961353, 0.25443625, 0.25056976]);
    let x = Tensor::<2>::ones([2, 8], &device);
    let kept = dropout(0.5).forward(x, &draws).unwrap().greater_elem(0);
    let kept: Vec<i64> = kept.int().into_data().iter().collect();
    assert_eq!(kept, [0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 1, 0, 1, 0, 0, 0]);
}

#[test]
fn half_types_stay_half() {
    let device = Device::flex();
    for dtype in [DType::F16, DType::BF16] {
        let x = Tensor::<2>::ones([2, 8], (&device, dtype));
        let x = dropout(0.5).forward(x, &draws(3, 0..2)).unwrap();
        let x = noise(0.5).forward(x, &draws(3, 0..2)).unwrap();
        assert_eq!(x.dtype(), dtype);
    }
}

#[test]
fn noise_has_its_deviation_and_lets_the_gradient_through() {
    let x = Tensor::<2>::zeros([8, 5000], &Device::flex().autodiff()).require_grad();
    let y = noise(0.5).forward(x.clone(), &draws(3, 0..8)).unwrap();
    let gradients = y.clone().sum().backward();
    let slope = x.grad(&gradients).unwrap().into_data();
    assert!(slope.iter::<f32>().all(|slope| slope == 1.0));
    let y: Vec<f64> = y.into_data().iter().collect();
    let mean = y.iter().sum::<f64>() / y.len() as f64;
    let variance = y.iter().map(|y| (y - mean) * (y - mean)).sum::<f64>() / y.len() as f64;
    assert!(
        mean.abs() < 0.02 && (variance - 0.25).abs() < 0.02,
        "{mean} {variance}"
    );
}

#[test]
fn nothing_is_drawn_outside_training_nor_in_a_frozen_layer() {
    let evaluation = Draws::new(7, None, (0..SAMPLES).collect());
    let training = draws(3, 0..SAMPLES);
    let unchanged = values(ones(SAMPLES));
    let drop = |layer: &Dropout, draws| values(layer.forward(ones(SAMPLES), draws).unwrap());
    let add = |layer: &GaussianNoise, draws| values(layer.forward(ones(SAMPLES), draws).unwrap());
    let (layer, adder) = (dropout(0.5), noise(0.5));
    for (layer, adder, draws) in [
        (layer.clone(), adder.clone(), &evaluation),
        (layer.clone().freeze(), adder.clone().freeze(), &training),
        (layer.valid(), adder.valid(), &training),
        (dropout(0.0), noise(0.0), &training),
    ] {
        assert_eq!(drop(&layer, draws), unchanged);
        assert_eq!(add(&adder, draws), unchanged);
    }
}

#[test]
fn what_cannot_be_drawn_is_refused() {
    for probability in [-0.1, 1.0, f64::NAN] {
        let error = DropoutConfig::new(probability).init("drop").unwrap_err();
        assert!(error.to_string().contains("'drop'"), "{error}");
    }
    for std in [-0.1, f64::INFINITY, f64::NAN] {
        let error = GaussianNoiseConfig::new(std).init("noise").unwrap_err();
        assert!(error.to_string().contains("'noise'"), "{error}");
    }
    let error = dropout(0.5).forward(ones(3), &draws(3, 0..2)).unwrap_err();
    assert!(error.to_string().contains("2 samples"), "{error}");
}
