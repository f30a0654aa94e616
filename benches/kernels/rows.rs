//! What does little with each element it reads: norms, cross entropy, rotary positions, AdamW.

use std::cell::RefCell;
use std::hint::black_box;
use std::rc::Rc;

use anyhow::{Result, ensure};
use burn::tensor::{DType, Tensor};
use burn_frontier::comm::local;
use burn_frontier::ops::adamw::{AdamWState, AdamWStep, adamw};
use burn_frontier::ops::cross_entropy::cross_entropy;
use burn_frontier::ops::norm::{layer_norm, rms_norm};
use burn_frontier::ops::rotary::{RotaryTable, rotary};

use crate::case::{Case, Pass, Place, Timed, Work};
use crate::catalog::{BOTH, Operation};

const NORM: &[&str] = &["tokens", "hidden"];
const NORM_SHAPES: [&[&[usize]]; 3] = [
    &[&[24, 40]],
    &[&[2048, 1024], &[1024, 2049]],
    &[&[16384, 4096], &[8192, 12288]],
];
const EPSILON: f64 = 1e-5;

pub const OPERATIONS: &[Operation] = &[
    Operation {
        name: "layer_norm",
        form: NORM,
        shapes: NORM_SHAPES,
        passes: BOTH,
        make: |shape, pass, place| norm(shape, true, pass, place),
    },
    Operation {
        name: "rms_norm",
        form: NORM,
        shapes: NORM_SHAPES,
        passes: BOTH,
        make: |shape, pass, place| norm(shape, false, pass, place),
    },
    Operation {
        name: "cross_entropy",
        form: &["tokens", "vocabulary"],
        shapes: [&[&[24, 40]], &[&[256, 8192]], &[&[8192, 50304]]],
        passes: BOTH,
        make: loss,
    },
    Operation {
        name: "rotary",
        form: &["batch", "heads", "seq", "head_dim"],
        shapes: [
            &[&[1, 2, 24, 8]],
            &[&[2, 8, 1024, 64]],
            &[&[4, 32, 4096, 128]],
        ],
        passes: BOTH,
        make: rotation,
    },
    Operation {
        name: "adamw",
        form: &["parameters"],
        shapes: [&[&[1000]], &[&[1 << 22]], &[&[1 << 27]]],
        passes: &[Pass::Forward],
        make: update,
    },
];

/// Layer norm, or RMS norm without `centred`.
fn norm(shape: &[usize], centred: bool, pass: Pass, place: &Place) -> Result<Case> {
    let &[tokens, hidden] = shape else {
        unreachable!("a shape has the numbers of its form");
    };
    let x: Tensor<3> = place.tensor([1, tokens, hidden]);
    let [weight, bias]: [Tensor<1>; 2] = [(); 2].map(|()| place.tensor([hidden]));
    let (parameters, per_element) = match (centred, pass) {
        // Mean, difference, square, its mean, quotient, weight, bias.
        (true, Pass::Forward) => (2 * hidden, 7.0),
        // Normal (2), gradients of bias (1) and weight (2), g w (1), two means (3), input's gradient (4).
        (true, Pass::Backward) => (3 * hidden, 13.0),
        // Square, its mean, quotient, weight.
        (false, Pass::Forward) => (hidden, 4.0),
        // Normal (1), gradient of weight (2), g w (1), one mean (2), input's gradient (3).
        (false, Pass::Backward) => (2 * hidden, 9.0),
    };
    let passes_over = if pass == Pass::Forward { 2 } else { 3 };
    let work = Work {
        flops: per_element * (tokens * hidden) as f64,
        bytes: place.bytes(passes_over * tokens * hidden + parameters),
    };
    Ok(Case::of(pass, place, work, move |take| match centred {
        true => layer_norm(take.of(&x), take.of(&weight), take.of(&bias), EPSILON),
        false => rms_norm(take.of(&x), take.of(&weight), EPSILON),
    }))
}

fn loss(shape: &[usize], pass: Pass, place: &Place) -> Result<Case> {
    let &[tokens, vocabulary] = shape else {
        unreachable!("a shape has the numbers of its form");
    };
    let logits: Tensor<2> = place.tensor([tokens, vocabulary]);
    let targets: Vec<i64> = (0..tokens)
        .map(|i| (i * 7919 % vocabulary) as i64)
        .collect();
    let group = local::single();
    let logit_count = tokens * vocabulary;
    let work = Work {
        // Forward maximum, difference, exponential, sum; backward difference, exponential, quotient, product with g.
        flops: 4.0 * logit_count as f64,
        bytes: place.bytes(match pass {
            Pass::Forward => logit_count,
            Pass::Backward => 2 * logit_count,
        }),
    };
    Ok(Case::of(pass, place, work, move |take| {
        cross_entropy(take.of(&logits), &targets, 0..vocabulary, &group)
    }))
}

fn rotation(shape: &[usize], pass: Pass, place: &Place) -> Result<Case> {
    let &[batch, heads, seq, head_dim] = shape else {
        unreachable!("a shape has the numbers of its form");
    };
    ensure!(
        head_dim.is_multiple_of(2),
        "rotary positions rotate pairs, and head_dim is {head_dim}; choose an even one"
    );
    let x: Tensor<4> = place.tensor([batch, heads, seq, head_dim]);
    let table = RotaryTable::new(seq, head_dim, 10_000.0, (&place.device, place.dtype));
    let elements = batch * heads * seq * head_dim;
    let work = Work {
        // Four products and two sums a pair.
        flops: 3.0 * elements as f64,
        // Cosines and sines are in f32.
        bytes: place.bytes(2 * elements) + (4 * seq * head_dim) as f64,
    };
    Ok(Case::of(pass, place, work, move |take| {
        rotary(take.of(&x), &table)
    }))
}

/// State and gradient in f32; the new weights in the type asked for. Steps follow each other in place.
fn update(shape: &[usize], _: Pass, place: &Place) -> Result<Case> {
    let &[count] = shape else {
        unreachable!("a shape has the numbers of its form");
    };
    let plain = || place.tensor_of::<1>([count], DType::F32);
    let zeros = || Tensor::<1>::zeros([count], (&place.device, DType::F32));
    let gradient = plain();
    let state = Rc::new(RefCell::new(Some(AdamWState {
        parameters: plain(),
        first: zeros(),
        second: zeros(),
    })));
    let numbers = AdamWStep {
        learning_rate: 1e-4,
        weight_decay: 0.1,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        step: 10,
        gradient_scale: 0.5,
    };
    let weights = place.dtype;
    // Four tensors of f32 are read, three written, and weights where they are not the parameters themselves.
    let written = if weights == DType::F32 {
        0
    } else {
        weights.size()
    };
    let work = Work {
        // Scale (1), first moment (3), second (4), root, its correction, epsilon, quotient, step size, decay, difference.
        flops: 15.0 * count as f64,
        bytes: ((28 + written) * count) as f64,
    };
    let prepare = move || {
        let (state, gradient) = (state.clone(), gradient.clone());
        let run: Timed = Box::new(move || {
            if let Some(before) = state.take() {
                let (after, weights) = adamw(before, gradient, &numbers, weights)?;
                black_box(weights);
                state.replace(Some(after));
            }
            Ok(())
        });
        Ok(run)
    };
    Ok(Case {
        work,
        prepare: Box::new(prepare),
    })
}
