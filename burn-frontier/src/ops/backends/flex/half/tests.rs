//! Against the compositions in f64, of numbers that bf16 has.

use burn::tensor::Device;

use super::*;
use crate::comm::local;
use crate::ops::gradient::seed;
use crate::ops::testing::{Place, assert_close, numbers};

fn place() -> Place {
    Place::new(&Device::flex(), DType::BF16)
}

/// Value and gradients of a function in bf16 and in f64.
fn compare<const N: usize, const D: usize, const E: usize>(
    what: &str,
    shapes: [[usize; D]; N],
    function: impl Fn([Tensor<D>; N]) -> Tensor<E>,
) {
    let results = |place: Place| {
        let mut number = 0;
        let leaves = shapes.map(|shape| {
            number += 1;
            place.leaf(shape, number)
        });
        let y = function(leaves.clone());
        let gradients = seed(y.clone(), place.constant(y.dims(), 9)).backward();
        let mut all = vec![numbers(y)];
        all.extend(leaves.map(|x| numbers(x.grad(&gradients).unwrap())));
        all
    };
    let (own, expected) = (results(place()), results(Place::reference(DType::BF16)));
    for (i, (own, expected)) in own.iter().zip(&expected).enumerate() {
        assert_close(&format!("{what}: result {i}"), DType::BF16, own, expected);
    }
}

/// The first numbers of a tensor, which make a vector a leaf of its shape.
fn first_row(x: Tensor<3>) -> Tensor<1> {
    x.slice([0..1, 0..1]).flatten(0, 2)
}

#[test]
fn norms_of_bf16_equal_their_definitions() {
    for shape in [[2, 3, 37], [7, 100, 520]] {
        compare("layer norm", [shape; 3], |[x, w, b]| {
            crate::ops::norm::layer_norm(x, first_row(w), first_row(b), 1e-5).unwrap()
        });
        for part in [0, 1] {
            compare("add_norm", [shape; 4], |[x, residual, w, b]| {
                let (w, bias) = (first_row(w), Some(first_row(b)));
                let (sum, y) =
                    crate::ops::norm::add_norm(x, residual, None, w, bias, 1e-5).unwrap();
                // The other one has a gradient too.
                [
                    sum.clone() + y.clone().mul_scalar(0.0),
                    y + sum.mul_scalar(0.0),
                ][part]
                    .clone()
            });
        }
    }
    let x = place().constant([2, 3, 37], 1);
    let parameters = NormParameters {
        weight: place().constant([37], 2),
        bias: None,
        epsilon: 1e-5,
    };
    assert!(norm(&x, &parameters).is_some(), "refused");
    assert!(add_norm([&x, &x], None, &parameters).is_some(), "refused");
    assert!(dropout(&x, Some(&x), None).is_some(), "refused");
}

#[test]
fn attention_of_bf16_equals_its_definition() {
    let options = AttentionOptions::causal(8);
    let shapes = [[2, 4, 9, 8], [2, 2, 9, 8], [2, 2, 9, 8]];
    compare("attention", shapes, |[q, k, v]| {
        crate::ops::attention::attention(q, k, v, &options).unwrap()
    });
    let sizes = SelfAttention {
        heads: 4,
        kv_heads: 2,
        rotary: None,
    };
    compare("self-attention", [[2, 70, 64]], |[qkv]| {
        crate::ops::attention::self_attention(qkv, &sizes, &options).unwrap()
    });
    let qkv = place().constant([2, 70, 64], 1);
    assert!(self_attention(&qkv, &sizes, &options).is_some(), "refused");
}

#[test]
fn cross_entropy_of_bf16_equals_its_definition() {
    local::run(1, &local::LocalOptions::default(), |group| {
        let targets: Vec<i64> = (0..60).map(|i| (i * 37 % 2001) - 1).collect();
        compare("cross entropy", [[60, 2100]], |[x]| {
            crate::ops::cross_entropy::cross_entropy(x, &targets, 0..2000, &group).unwrap()
        });
        let logits = place().constant([60, 2100], 1);
        assert!(cross_entropy(&logits, &targets, &(0..2000)).is_some());
        Ok(())
    })
    .unwrap();
}

#[test]
fn rows_of_bf16_are_added_to_sums_of_f32() {
    let g = place().constant([3, 5], 1);
    let zeros = Tensor::zeros([20], (&Device::flex(), DType::F32));
    let rows = [Some(2), None, Some(2)];
    let table = numbers(add_rows(zeros, &g, &rows).expect("refused"));
    let g = numbers(g);
    let expected: Vec<f64> = (0..5).map(|i| g[i] + g[10 + i]).collect();
    assert_close("the row", DType::F32, &table[10..15], &expected);
}
