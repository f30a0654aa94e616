//! Shapes and types that do not fit are errors that say what would, before anything is computed.

#[path = "operations/batches.rs"]
mod batches;

use burn::tensor::{DType, Device, Tensor};
use burn_frontier::comm::{groups::Groups, local};
use burn_frontier::models::gpt::GptConfig;
use burn_frontier::models::gpt::batch::TokenBatch;
use burn_frontier::ops;
use burn_frontier::ops::activation::{Activation, swiglu};
use burn_frontier::ops::attention::{AttentionOptions, Sequences};
use burn_frontier::ops::attention::{attention_with_biases, evoformer_attention, packed_attention};
use burn_frontier::ops::cross_entropy::cross_entropy;
use burn_frontier::ops::dropout::{Dropout, add_dropout, dropout};
use burn_frontier::ops::feed_forward::{FeedForward, feed_forward};
use burn_frontier::ops::linear::{linear, projection};
use burn_frontier::ops::norm::{add_norm, layer_norm, rms_norm};
use burn_frontier::ops::rotary::{RotaryTable, rotary};
use burn_frontier::parameter::ParameterContext;
use burn_frontier::pipeline::schedule::Kind;
use burn_frontier::pipeline::stage::StepContext;
use burn_frontier::{Layout, Result};

fn x<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::ones(shape, (&Device::flex(), DType::F32))
}

fn half<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    x(shape).cast(DType::F16)
}

/// Fails unless it failed with all of these words.
fn says<T>(result: Result<T>, words: &[&str]) {
    let Err(error) = result else {
        panic!("no error that says {words:?}");
    };
    let message = error.to_string();
    for word in words {
        assert!(message.contains(word), "{message:?} does not say {word:?}");
    }
}

fn site(samples: usize, len: [usize; 3]) -> Dropout {
    Dropout {
        probability: 0.5,
        seed: 1,
        step: 1,
        name: "site".into(),
        samples: (0..samples as u64).collect(),
        global: len[0],
        start: [0; 3],
        len,
    }
}

#[test]
fn attention_says_which_tensor_does_not_fit() {
    let full = AttentionOptions::full(8);
    let of = |k, v| ops::attention(x([2, 4, 5, 8]), k, v, &full);
    let key = "the key";
    says(
        of(x([2, 4, 5, 7]), x([2, 4, 5, 7])),
        &[key, "[2, 4, 5, 7]", "[2, 4, 5, 8]"],
    );
    says(of(x([3, 4, 5, 8]), x([3, 4, 5, 8])), &[key, "[2, 4, 5, 8]"]);
    says(
        of(x([2, 4, 5, 8]), x([2, 4, 6, 8])),
        &["the value", "[2, 4, 6, 8]"],
    );
    says(
        of(half([2, 4, 5, 8]), x([2, 4, 5, 8])),
        &[key, "F16", "F32", "cast"],
    );
    says(
        of(x([2, 3, 5, 8]), x([2, 3, 5, 8])),
        &["4 heads", "3 of keys"],
    );
    says(of(x([2, 4, 0, 8]), x([2, 4, 0, 8])), &["empty"]);
    let dropped = AttentionOptions {
        dropout: Some(site(2, [4, 5, 6])),
        ..full.clone()
    };
    let y = ops::attention(x([2, 4, 5, 8]), x([2, 2, 5, 8]), x([2, 2, 5, 8]), &dropped);
    says(y, &["dropout", "[2, 4, 5, 6]", "[2, 4, 5, 5]"]);
    for bias in [[3, 4, 5, 5], [2, 2, 5, 5], [2, 4, 4, 5], [2, 4, 5, 1]] {
        let qkv = || x([2, 4, 5, 8]);
        let y = attention_with_biases(qkv(), qkv(), qkv(), [None, Some(x(bias))], &full);
        says(y, &["bias", &format!("{bias:?}"), "n divides the batch"]);
    }
    assert!(of(x([2, 2, 5, 8]), x([2, 2, 5, 8])).is_ok());
}

#[test]
fn the_evoformers_attention_says_which_axis_is_wrong() {
    let rows = || x([2, 3, 6, 4, 8]);
    let of = |mask, pair| evoformer_attention(rows(), rows(), rows(), mask, pair);
    says(
        of(Some(x([2, 3, 1, 1, 5])), None),
        &["the mask", "[2, 3, 1, 1, 6]"],
    );
    says(
        of(None, Some(x([2, 3, 4, 6, 6]))),
        &["the pair bias", "[2, 1, 4, 6, 6]"],
    );
    assert!(of(Some(x([2, 3, 1, 1, 6])), Some(x([2, 1, 4, 6, 6]))).is_ok());
}

#[test]
fn packed_sequences_fill_their_tensors_in_order() {
    let of = |queries: &[u32], keys: &[u32], batch| {
        let (queries, keys) = (queries.to_vec(), keys.to_vec());
        let sequences = Sequences { queries, keys };
        let qkv = || x([batch, 2, 7, 4]);
        packed_attention(
            qkv(),
            qkv(),
            qkv(),
            &sequences,
            &AttentionOptions::causal(4),
        )
    };
    assert!(of(&[0, 3, 7], &[0, 3, 7], 1).is_ok());
    says(of(&[0, 3, 7], &[0, 3, 7], 2), &["batch of 1"]);
    says(of(&[0, 3, 7], &[0, 7], 1), &["3 bounds", "2 of keys"]);
    for bounds in [&[0, 3, 6][..], &[1, 7], &[0, 5, 3, 7], &[0], &[]] {
        says(of(bounds, bounds, 1), &["bounds", "0 first"]);
    }
}

#[test]
fn layers_say_which_parameter_does_not_fit() {
    let input = || x([2, 3, 8]);
    says(
        linear(input(), x([7, 5]), None),
        &["the weight", "[7, 5]", "[8, 5]"],
    );
    says(
        linear(input(), x([8, 5]), Some(x([4]))),
        &["the bias", "[4]", "[5]"],
    );
    says(
        linear(input(), half([8, 5]), None),
        &["the weight", "F16", "cast"],
    );
    says(
        projection(input(), x([5, 7]), None),
        &["projection", "the table, transposed,", "[7, 5]"],
    );
    let block = |up, down, activation| {
        let layers = FeedForward {
            up,
            up_bias: None,
            activation,
            down,
            down_bias: None,
        };
        feed_forward(input(), layers)
    };
    says(
        block(x([8, 6]), x([6, 8]), Activation::Swiglu),
        &["the weight down", "[3, 8]"],
    );
    says(
        block(x([8, 7]), x([3, 8]), Activation::Swiglu),
        &["pairs", "7"],
    );
    says(
        block(x([9, 6]), x([6, 8]), Activation::Gelu),
        &["the weight up", "[8, 6]"],
    );
    says(swiglu(x([2, 3, 7])), &["7 columns"]);
}

#[test]
fn norms_and_dropout_say_what_they_are_not_of() {
    let input = || x([2, 3, 8]);
    says(
        layer_norm(input(), x([8]), x([7]), 1e-5),
        &["layer_norm", "the bias", "[7]", "[8]"],
    );
    says(rms_norm(input(), x([4]), 1e-5), &["rms_norm", "the weight"]);
    let sum = add_norm(input(), x([2, 4, 8]), None, x([8]), None, 1e-5);
    says(sum, &["the residual", "[2, 4, 8]"]);
    says(
        dropout(input(), Some(&site(2, [1, 3, 7]))),
        &["site", "[2, 1, 3, 8]"],
    );
    says(
        add_dropout(input(), input(), Some(&site(1, [1, 3, 8]))),
        &["site", "[1, 1, 3, 8]"],
    );
}

#[test]
fn losses_and_positions_say_what_is_missing() {
    let table = RotaryTable::new(5, 8, 1e4, (&Device::flex(), DType::F32));
    says(rotary(x([1, 2, 6, 8]), &table), &["6 positions", "5"]);
    says(
        rotary(x([1, 2, 5, 6]), &table),
        &["table", "head dimension"],
    );
    local::run(1, &Default::default(), |group| {
        let of = |targets: &[i64], ids| cross_entropy(x([3, 8]), targets, ids, &group);
        says(of(&[1, 2], 0..8), &["[3, 8]", "2 targets"]);
        says(of(&[1, 2, 3], 0..9), &["9 ids"]);
        says(of(&[1, -1, 7], 0..7), &["target 7"]);
        of(&[1, 2, 3], 0..8).map(drop)
    })
    .unwrap();
}

#[test]
fn a_model_refuses_tokens_and_lengths_that_it_does_not_know() {
    let gpt = GptConfig::new(2, 16, 2, 64, 8);
    let run = |samples: &[Vec<u32>], (tp, pp)| {
        let layout = Layout {
            tp,
            pp,
            ..Layout::single()
        }
        .validated()?;
        let positions = (0..samples.len() as u64).collect();
        let batch = [TokenBatch::new(samples, positions)?];
        local::run(layout.world(), &Default::default(), |world| {
            let groups = Groups::new(layout, world)?;
            let context = ParameterContext::new(1, &groups, Device::flex());
            let pipeline = gpt.init(Kind::default(), &groups, &context)?;
            pipeline.evaluate(&batch, &StepContext::default())
        })
    };
    let sample = |last: u32, len: u32| (1..len).chain([last]).collect::<Vec<u32>>();
    for layout in [(1, 1), (2, 1), (1, 2), (2, 2)] {
        assert!(run(&[sample(5, 9)], layout).is_ok());
        says(
            run(&[sample(64, 9)], layout),
            &["token 64", "vocabulary of 64"],
        );
        says(run(&[sample(64, 5), sample(3, 5)], layout), &["token 64"]);
        says(run(&[sample(5, 10)], layout), &["8 positions"]);
        says(
            run(&[sample(5, 4), sample(5, 5)], layout),
            &["sample 0 has 4 tokens", "sample 1 has 5"],
        );
    }
}
