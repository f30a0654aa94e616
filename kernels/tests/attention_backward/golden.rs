//! Attention with two biases gives the golden gradients of the Evoformer.

use frontier_kernels::attention::backward::reference::Gradients;
use frontier_kernels::attention::{BiasStrides, Problem};
use frontier_kernels::matrix::instruction::{Element, Target};

use super::evoformer::{golden, numbers};
use super::fixture::Case;

const S: u32 = 18;
const HEADS: u32 = 2;
const D: u32 = 4;
const N: u32 = 2;

/// The case `name` of `batch` entries, with a dense first bias, a mask of keys, or none; with a second, or not.
fn check(name: &str, batch: u32, bias1: Option<&str>, bias2: bool) {
    let mut problem = Problem::new(batch * N, HEADS, S, S, D);
    let mask = BiasStrides {
        batch: S,
        key: 1,
        ..BiasStrides::default()
    };
    let pairs = BiasStrides {
        divisor: N,
        batch: HEADS * S * S,
        head: S * S,
        query: S,
        key: 1,
    };
    problem.bias = [bias1.map(|_| mask), bias2.then_some(pairs)];
    let mut case = Case::new(Target::Gfx90a, Element::F32, problem);
    let elements = (batch * N * S * HEADS * D) as usize;
    (case.inputs.q, case.inputs.k) = (numbers(1, elements), numbers(2, elements));
    (case.inputs.v, case.o_gradient) = (numbers(3, elements), numbers(6, elements));
    if let Some(kind) = bias1 {
        let drawn = numbers(4, (batch * N * S) as usize);
        let masked = |at: usize, x: f64| !at.is_multiple_of(S as usize) && (x + 1.0) / 2.0 < 0.3;
        let value = |(at, &x): (usize, &f64)| match kind {
            "mask" if masked(at, x) => -1e9,
            "mask" => 0.0,
            _ => x,
        };
        case.inputs.bias[0] = drawn.iter().enumerate().map(value).collect();
    }
    if bias2 {
        case.inputs.bias[1] = numbers(5, (batch * HEADS * S * S) as usize);
    }
    let mut found = case.run();
    let expected = Gradients {
        q: golden(name, "dq"),
        k: golden(name, "dk"),
        v: golden(name, "dv"),
        bias: [golden(name, "dbias1"), golden(name, "dbias2")],
    };
    assert!(!expected.q.is_empty());
    // A mask of 0 and -1e9 has no golden gradient.
    if expected.bias[0].is_empty() {
        found.bias[0].clear();
    }
    case.assert_close(&found, &expected);
}

#[test]
fn gradients_of_all_five_inputs_are_the_golden_ones() {
    check("both", 1, Some("dense"), true);
    check("bias1_only", 1, Some("dense"), false);
    check("bias2_only", 1, None, true);
    check("none", 1, None, false);
    check("mask_and_bias2", 2, Some("mask"), true);
}
