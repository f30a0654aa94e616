//! Attention, and the Evoformer's with its two biases.

use anyhow::{Result, ensure};
use burn_frontier::ops::attention::{AttentionOptions, attention, evoformer_attention};

use crate::case::{Case, Pass, Place, Work};
use crate::catalog::{BOTH, Operation};

const FORM: &[&str] = &["batch", "heads", "kv_heads", "seq", "head_dim"];
const SHAPES: [&[&[usize]]; 3] = [
    &[&[1, 2, 1, 24, 16]],
    &[
        &[1, 4, 4, 256, 64],
        &[1, 4, 4, 256, 128],
        &[1, 2, 2, 256, 200],
        &[1, 8, 2, 256, 64],
    ],
    &[
        &[4, 16, 16, 2048, 64],
        &[4, 16, 16, 2048, 128],
        &[2, 16, 16, 2048, 200],
        &[4, 32, 8, 2048, 128],
    ],
];

pub const OPERATIONS: &[Operation] = &[
    Operation {
        name: "attention_causal",
        form: FORM,
        shapes: SHAPES,
        passes: BOTH,
        make: |shape, pass, place| scaled_dot_product(shape, true, pass, place),
    },
    Operation {
        name: "attention_full",
        form: FORM,
        shapes: SHAPES,
        passes: BOTH,
        make: |shape, pass, place| scaled_dot_product(shape, false, pass, place),
    },
    Operation {
        name: "evoformer",
        form: &["batch", "n", "seq", "heads", "head_dim"],
        shapes: [
            &[&[1, 2, 16, 2, 8]],
            &[&[1, 8, 128, 4, 32]],
            &[&[1, 128, 256, 8, 32]],
        ],
        passes: BOTH,
        make: evoformer,
    },
];

/// Two products of `pairs` rows of `head_dim` forward; five backward, the scores again among them.
fn products(pairs: f64, head_dim: usize, pass: Pass) -> f64 {
    let products = match pass {
        Pass::Forward => 2.0,
        Pass::Backward => 5.0,
    };
    products * 2.0 * pairs * head_dim as f64
}

fn scaled_dot_product(shape: &[usize], causal: bool, pass: Pass, place: &Place) -> Result<Case> {
    let &[batch, heads, kv_heads, seq, head_dim] = shape else {
        unreachable!("a shape has the numbers of its form");
    };
    ensure!(
        heads.is_multiple_of(kv_heads),
        "{kv_heads} kv_heads do not divide {heads} heads; choose a divisor"
    );
    let q = place.tensor([batch, heads, seq, head_dim]);
    let [k, v] = [(); 2].map(|()| place.tensor([batch, kv_heads, seq, head_dim]));
    let pairs = (batch * heads * seq * seq) as f64 * if causal { 0.5 } else { 1.0 };
    // Forward q, k, v and the output; backward these with the output's gradient in its place, and three gradients.
    let (query, key) = (
        batch * heads * seq * head_dim,
        batch * kv_heads * seq * head_dim,
    );
    let elements = match pass {
        Pass::Forward => 2 * query + 2 * key,
        Pass::Backward => 3 * query + 4 * key,
    };
    let work = Work {
        flops: products(pairs, head_dim, pass),
        bytes: place.bytes(elements),
    };
    let options = match causal {
        true => AttentionOptions::causal(head_dim),
        false => AttentionOptions::full(head_dim),
    };
    Ok(Case::of(pass, place, work, move |take| {
        attention(take.of(&q), take.of(&k), take.of(&v), &options)
    }))
}

fn evoformer(shape: &[usize], pass: Pass, place: &Place) -> Result<Case> {
    let &[batch, n, seq, heads, head_dim] = shape else {
        unreachable!("a shape has the numbers of its form");
    };
    let [q, k, v] = [(); 3].map(|()| place.tensor([batch, n, seq, heads, head_dim]));
    let mask = place.tensor([batch, n, 1, 1, seq]);
    let pair = place.tensor([batch, 1, heads, seq, seq]);
    let rows = batch * n * seq * heads * head_dim;
    let biases = batch * n * seq + batch * heads * seq * seq;
    let elements = match pass {
        Pass::Forward => 4 * rows + biases,
        Pass::Backward => 7 * rows + 2 * biases,
    };
    let work = Work {
        flops: products((batch * n * heads * seq * seq) as f64, head_dim, pass),
        bytes: place.bytes(elements),
    };
    Ok(Case::of(pass, place, work, move |take| {
        let (mask, pair) = (take.of(&mask), take.of(&pair));
        evoformer_attention(
            take.of(&q),
            take.of(&k),
            take.of(&v),
            Some(mask),
            Some(pair),
        )
    }))
}
