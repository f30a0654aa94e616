//! Linear layers and the feed-forward block.

use anyhow::Result;
use burn::tensor::Tensor;
use burn_frontier::ops::activation::Activation;
use burn_frontier::ops::feed_forward::{FeedForward, feed_forward};
use burn_frontier::ops::linear::linear;

use crate::case::{Case, Pass, Place, Work};
use crate::catalog::{BOTH, Operation};

const LINEAR: &[&str] = &["tokens", "in", "out"];
const LINEAR_SHAPES: [&[&[usize]]; 3] = [
    &[&[24, 32, 40]],
    &[&[256, 512, 512], &[255, 513, 511]],
    &[&[4096, 4096, 4096], &[4096, 4096, 16384]],
];
const BLOCK: &[&str] = &["tokens", "hidden", "ffn"];
const BLOCK_SHAPES: [&[&[usize]]; 3] = [
    &[&[24, 32, 40]],
    &[&[256, 256, 1024]],
    &[&[4096, 4096, 16384]],
];

pub const OPERATIONS: &[Operation] = &[
    Operation {
        name: "linear",
        form: LINEAR,
        shapes: LINEAR_SHAPES,
        passes: BOTH,
        make: |shape, pass, place| layer(shape, false, pass, place),
    },
    Operation {
        name: "linear_nt",
        form: LINEAR,
        shapes: LINEAR_SHAPES,
        passes: BOTH,
        make: |shape, pass, place| layer(shape, true, pass, place),
    },
    Operation {
        name: "feed_forward_gelu",
        form: BLOCK,
        shapes: BLOCK_SHAPES,
        passes: BOTH,
        make: |shape, pass, place| block(shape, Activation::Gelu, pass, place),
    },
    Operation {
        name: "feed_forward_swiglu",
        form: BLOCK,
        shapes: BLOCK_SHAPES,
        passes: BOTH,
        make: |shape, pass, place| block(shape, Activation::Swiglu, pass, place),
    },
];

/// Of so many weights: a multiply-add each for every token; backward one for the input's gradient, one for the weight's.
fn products(tokens: usize, weights: usize, pass: Pass) -> f64 {
    let forward = 2.0 * (tokens * weights) as f64;
    match pass {
        Pass::Forward => forward,
        Pass::Backward => 2.0 * forward,
    }
}

/// With a bias. `transposed`: the weight lies in memory as `[out, in]`, as that of a tied head does.
fn layer(shape: &[usize], transposed: bool, pass: Pass, place: &Place) -> Result<Case> {
    let &[tokens, input, output] = shape else {
        unreachable!("a shape has the numbers of its form");
    };
    let x: Tensor<3> = place.tensor([1, tokens, input]);
    let weight: Tensor<2> = match transposed {
        false => place.tensor([input, output]),
        true => place.tensor([output, input]),
    };
    let bias: Tensor<1> = place.tensor([output]);
    let parameters = input * output + output;
    let elements = match pass {
        Pass::Forward => tokens * (input + output) + parameters,
        // The bias is not read; the gradients of input, weight and bias are written.
        Pass::Backward => tokens * (2 * input + output) + input * output + parameters,
    };
    let work = Work {
        flops: products(tokens, input * output, pass),
        bytes: place.bytes(elements),
    };
    Ok(Case::of(pass, place, work, move |take| {
        let weight = take.of(&weight);
        let weight = if transposed {
            weight.transpose()
        } else {
            weight
        };
        linear(take.of(&x), weight, Some(take.of(&bias)))
    }))
}

/// With biases.
fn block(shape: &[usize], activation: Activation, pass: Pass, place: &Place) -> Result<Case> {
    let &[tokens, hidden, ffn] = shape else {
        unreachable!("a shape has the numbers of its form");
    };
    let columns = match activation {
        Activation::Gelu => ffn,
        Activation::Swiglu => 2 * ffn,
    };
    let x: Tensor<3> = place.tensor([1, tokens, hidden]);
    // The spread of a layer's output shall not grow with its width.
    let small = |x: Tensor<2>| {
        let scale = 1.0 / (x.dims()[0] as f64).sqrt();
        x.mul_scalar(scale)
    };
    let layers = FeedForward {
        up: small(place.tensor([hidden, columns])),
        up_bias: Some(place.tensor([columns])),
        activation,
        down: small(place.tensor([ffn, hidden])),
        down_bias: Some(place.tensor([hidden])),
    };
    let weights = hidden * columns + ffn * hidden;
    let biases = columns + hidden;
    let elements = match pass {
        Pass::Forward => 2 * tokens * hidden + weights + biases,
        Pass::Backward => 3 * tokens * hidden + 2 * (weights + biases),
    };
    let work = Work {
        flops: products(tokens, weights, pass),
        bytes: place.bytes(elements),
    };
    Ok(Case::of(pass, place, work, move |take| {
        let bias = |x: &Option<Tensor<1>>| x.as_ref().map(|x| take.of(x));
        let layers = FeedForward {
            up: take.of(&layers.up),
            up_bias: bias(&layers.up_bias),
            activation,
            down: take.of(&layers.down),
            down_bias: bias(&layers.down_bias),
        };
        feed_forward(take.of(&x), layers)
    }))
}
