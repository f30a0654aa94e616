//! What attention can be given.

use burn::tensor::Tensor;

use super::{AttentionOptions, Biases, SelfAttention, Sequences};
use crate::error::{Error, Result};
use crate::ops::shape::{expect, expect_type};

/// Fails unless query, key and value belong together.
fn inputs([query, key, value]: [&Tensor<4>; 3]) -> Result<()> {
    let ([batch, heads, _, head_dim], [_, kv_heads, keys, _]) = (query.dims(), key.dims());
    let axes = "[batch, kv_heads, keys, head_dim], with the query's batch and head_dim";
    for (what, x) in [("the key", key), ("the value", value)] {
        let expected = [batch, kv_heads, keys, head_dim];
        expect("attention", what, x.dims(), expected, axes)?;
        expect_type("attention", what, x, query.dtype())?;
    }
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(Error::config(
            format!("attention: {heads} heads of queries cannot share {kv_heads} of keys"),
            "give as many heads of keys and values as divide the queries'",
        ));
    }
    if query.shape().num_elements() == 0 || keys == 0 {
        return Err(Error::config(
            format!(
                "attention of an empty tensor: query {:?}, key {:?}",
                query.dims(),
                key.dims()
            ),
            "give one query and one key at least",
        ));
    }
    Ok(())
}

/// Fails unless the probabilities `[samples, heads, seq, keys]` are the dropout's.
fn dropout(options: &AttentionOptions, probabilities: [usize; 4]) -> Result<()> {
    let Some(site) = &options.dropout else {
        return Ok(());
    };
    let [heads, seq, keys] = site.len;
    let found = [site.samples.len(), heads, seq, keys];
    let axes = "[samples, heads, seq, keys]";
    expect(
        "attention",
        "the dropout's site",
        found,
        probabilities,
        axes,
    )
}

/// Fails unless the tensors can be attended, with these biases.
pub(super) fn attention(
    tensors: [&Tensor<4>; 3],
    biases: &Biases,
    options: &AttentionOptions,
) -> Result<()> {
    inputs(tensors)?;
    let ([batch, heads, seq, _], [_, _, keys, _]) = (tensors[0].dims(), tensors[1].dims());
    for bias in biases.iter().flatten() {
        let [n, h, s, k] = bias.dims();
        let fits = n > 0 && batch.is_multiple_of(n) && [1, heads].contains(&h);
        if !fits || ![1, seq].contains(&s) || k != keys {
            return Err(Error::config(
                format!(
                    "attention: a bias has shape {:?}, and the scores {:?}",
                    bias.dims(),
                    [batch, heads, seq, keys]
                ),
                "a bias is [n, heads or 1, seq or 1, keys], where n divides the batch",
            ));
        }
    }
    dropout(options, [batch, heads, seq, keys])
}

/// Fails unless a tensor of that shape has query, key and value side by side; gives the elements of a head.
pub(super) fn self_attention(
    shape: [usize; 3],
    sizes: &SelfAttention,
    options: &AttentionOptions,
) -> Result<usize> {
    let (
        [batch, seq, width],
        &SelfAttention {
            heads, kv_heads, ..
        },
    ) = (shape, sizes);
    let parts = heads + 2 * kv_heads;
    if heads == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(Error::config(
            format!("self_attention: {heads} heads of queries cannot share {kv_heads} of keys"),
            "give as many heads of keys and values as divide the queries'",
        ));
    }
    if batch * seq * width == 0 || !width.is_multiple_of(parts) {
        return Err(Error::config(
            format!(
                "self_attention: qkv has shape {shape:?}, for {heads} heads and {kv_heads} of keys"
            ),
            "qkv is [batch, seq, (heads + 2 kv_heads) head_dim], and not empty",
        ));
    }
    dropout(options, [batch, heads, seq, seq])?;
    Ok(width / parts)
}

/// Fails unless outputs and log-sum-exps of two parts of the keys belong together.
pub(super) fn parts(first: &(Tensor<4>, Tensor<3>), second: &(Tensor<4>, Tensor<3>)) -> Result<()> {
    const OPERATION: &str = "merge_attention";
    let (shape, what) = (first.0.dims(), "the second output");
    let [batch, heads, seq, _] = shape;
    let axes = "[batch, heads, seq, head_dim]";
    expect(OPERATION, what, second.0.dims(), shape, axes)?;
    expect_type(OPERATION, what, &second.0, first.0.dtype())?;
    for (_, sums) in [first, second] {
        let (what, axes) = ("a log-sum-exp", "[batch, heads, seq]");
        expect(OPERATION, what, sums.dims(), [batch, heads, seq], axes)?;
        expect_type(OPERATION, what, sums, first.1.dtype())?;
    }
    Ok(())
}

/// Fails unless the sequences lie in the tensors, one after the other.
pub(super) fn packed(
    tensors: [&Tensor<4>; 3],
    sequences: &Sequences,
    options: &AttentionOptions,
) -> Result<()> {
    inputs(tensors)?;
    let ([batch, heads, total, _], [_, _, total_keys, _]) = (tensors[0].dims(), tensors[1].dims());
    let Sequences { queries, keys } = sequences;
    let fail = |what: String| {
        let remedy =
            "give the rows where the sequences begin, 0 first, and the number of all rows at last";
        Err(Error::config(format!("packed_attention: {what}"), remedy))
    };
    if batch != 1 {
        return fail(format!("sequences lie in a batch of 1, not {batch}"));
    }
    if queries.len() != keys.len() {
        let (q, k) = (queries.len(), keys.len());
        return fail(format!("{q} bounds of queries, and {k} of keys"));
    }
    for (what, bounds, total) in [("queries", queries, total), ("keys", keys, total_keys)] {
        let ends =
            bounds.first() == Some(&0) && bounds.last().map(|&end| end as usize) == Some(total);
        if !ends || !bounds.is_sorted() {
            return fail(format!("the bounds {bounds:?} of {total} {what}"));
        }
    }
    match &options.dropout {
        Some(site) if site.samples.len() + 1 != queries.len() || site.len[0] != heads => {
            fail(format!(
                "dropout of {} samples and {} heads, for {} sequences and {heads} heads",
                site.samples.len(),
                site.len[0],
                queries.len() - 1
            ))
        }
        _ => Ok(()),
    }
}
