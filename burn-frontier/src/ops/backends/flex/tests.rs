//! Against the compositions in f64.

use burn::tensor::{DType, Device, Tensor};

use crate::comm::local;
use crate::ops::activation::{gelu, leaky_relu, swiglu};
use crate::ops::attention::{AttentionOptions, attention};
use crate::ops::cross_entropy::cross_entropy;
use crate::ops::dropout::{Dropout, add_dropout, dropout};
use crate::ops::gradient::seed;
use crate::ops::norm::{add_norm, layer_norm, rms_norm};
use crate::ops::testing::{Place, assert_close, numbers};

fn leaf<const D: usize>(shape: [usize; D], seed: u32, dtype: DType) -> Tensor<D> {
    Place::new(&Device::flex(), dtype).leaf(shape, seed)
}

/// Value and gradients of a function in f32 and in f64.
fn compare<const N: usize, const D: usize, const E: usize>(
    what: &str,
    shapes: [[usize; D]; N],
    function: impl Fn([Tensor<D>; N]) -> Tensor<E>,
) {
    let results = |dtype| {
        let mut number = 0;
        let leaves = shapes.map(|shape| {
            number += 1;
            leaf(shape, number, dtype)
        });
        let y = function(leaves.clone());
        let g = leaf::<E>(y.dims(), 9, dtype).without_autodiff();
        let gradients = seed(y.clone(), g).backward();
        let mut all = vec![numbers(y)];
        all.extend(leaves.map(|x| numbers(x.grad(&gradients).unwrap())));
        all
    };
    let (own, expected) = (results(DType::F32), results(DType::F64));
    for (i, (own, expected)) in own.iter().zip(&expected).enumerate() {
        assert_close(&format!("{what}: result {i}"), DType::F32, own, expected);
    }
}

#[test]
fn gelu_equals_its_formula() {
    // Also more than one thread takes.
    for shape in [[3, 7], [600, 1000]] {
        compare("gelu", [shape], |[x]| gelu(x));
    }
}

#[test]
fn leaky_relu_equals_burns() {
    for shape in [[3, 7], [600, 1000]] {
        // In f64 it is Burn's.
        compare("leaky ReLU", [shape], |[x]| leaky_relu(x, 0.2));
    }
}

#[test]
fn swiglu_equals_its_formula() {
    for shape in [[2, 3, 14], [3, 100, 1000]] {
        compare("swiglu", [shape], |[x]| swiglu(x).unwrap());
    }
}

#[test]
fn norms_equal_their_definitions() {
    // More than one thread takes, of which the last has fewer rows; a width that no vector divides.
    for shape in [[2, 3, 37], [7, 100, 520]] {
        compare("RMS norm", [shape], |[x]| {
            let weight = leaf([shape[2]], 7, x.dtype());
            rms_norm(x, weight, 1e-5).unwrap()
        });
        compare("layer norm", [shape], |[x]| {
            let [weight, bias] = [7, 8].map(|seed| leaf([shape[2]], seed, x.dtype()));
            layer_norm(x, weight, bias, 1e-5).unwrap()
        });
    }
    compare("gradients of weight and bias", [[37], [37]], |[w, b]| {
        layer_norm(leaf([2, 3, 37], 5, w.dtype()), w, b, 1e-5).unwrap()
    });
    compare(
        "gradients of large weight and bias",
        [[520], [520]],
        |[w, b]| layer_norm(leaf([7, 100, 520], 5, w.dtype()), w, b, 1e-5).unwrap(),
    );
}

#[test]
fn attention_equals_its_definition() {
    for (causal, [seq, keys]) in [
        (false, [5, 9]),
        (true, [6, 6]),
        (true, [4, 19]),
        (true, [5, 3]),
    ] {
        let options = AttentionOptions {
            causal,
            scale: 0.4,
            recompute: false,
            dropout: None,
        };
        let shapes = [[2, 4, seq, 8], [2, 2, keys, 8], [2, 2, keys, 8]];
        let what = format!("attention of {seq} to {keys}, causal {causal}");
        compare(&what, shapes, |[q, k, v]| {
            attention(q, k, v, &options).unwrap()
        });
    }
}

#[test]
fn cross_entropy_equals_its_definition() {
    local::run(1, &local::LocalOptions::default(), |group| {
        let targets = [3, -1, 2, 33, 5];
        for ids in [0..37, 0..34, 2..39] {
            compare("cross entropy", [[5, 37]], |[x]| {
                cross_entropy(x, &targets, ids.clone(), &group).unwrap()
            });
        }
        // More than one thread takes.
        let targets: Vec<i64> = (0..60).map(|i| (i * 37 % 2001) - 1).collect();
        compare("cross entropy of many", [[60, 2100]], |[x]| {
            cross_entropy(x, &targets, 0..2000, &group).unwrap()
        });
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_number_that_is_none_is_not_lost() {
    let x = Tensor::<4>::from_data([[[[1.0f32, f32::NAN, 0.0]]]], &Device::flex());
    let p = super::softmax::softmax(x.clone(), false).unwrap();
    assert!(numbers(p).iter().all(|x| x.is_nan()));
    assert!(numbers(gelu(x))[1].is_nan());
}

/// A site of a tensor of that shape.
fn site([batch, seq, hidden]: [usize; 3]) -> Dropout {
    Dropout {
        probability: 0.3,
        seed: 1,
        step: 2,
        name: "site".into(),
        samples: (0..batch as u64).map(|i| 3 * i + 1).collect(),
        global: 1,
        start: [0, 5, 0],
        len: [1, seq, hidden],
    }
}

#[test]
fn dropout_equals_its_definition() {
    for shape in [[2, 3, 37], [7, 100, 520]] {
        let site = site(shape);
        compare("dropout", [shape], |[x]| dropout(x, Some(&site)).unwrap());
        compare("add_dropout", [shape; 2], |[x, residual]| {
            add_dropout(x, residual, Some(&site)).unwrap()
        });
    }
}

#[test]
fn add_norm_equals_its_definition() {
    for shape in [[2, 3, 37], [7, 100, 520]] {
        let site = site(shape);
        for site in [None, Some(&site)] {
            for layer in [false, true] {
                compare("add_norm", [shape; 4], |[x, residual, w, b]| {
                    let first_row = |x: Tensor<3>| x.slice([0..1, 0..1]).flatten::<1>(0, 2);
                    let (w, b) = (first_row(w), first_row(b));
                    let bias = layer.then(|| b.clone());
                    let (sum, y) = add_norm(x, residual, site, w, bias, 1e-5).unwrap();
                    // The sum goes on beside its norm; without a bias, the fourth leaf is used here.
                    sum + y * b.unsqueeze()
                });
            }
        }
    }
}
