//! Attention of sequences of different lengths without padding.

use burn::tensor::Tensor;

use super::{AttentionOptions, Sequences, check, checked};
use crate::error::Result;
use crate::ops::backends;
use crate::ops::gradient::with_gradient;

/// [`super::attention`] of each of several sequences by itself, without padding. The dropout's `samples` are one a sequence.
/// Queries of a sequence without keys give zeros; keys of one without queries have gradients of zero.
///
/// # Shapes
/// query `[1, heads, total, head_dim]`, key and value `[1, kv_heads, total keys, head_dim]`; gives the query's.
///
/// # Errors
/// Those of [`super::attention`], a batch that is not 1, or sequences that do not fill the tensors.
pub fn packed_attention(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    sequences: &Sequences,
    options: &AttentionOptions,
) -> Result<Tensor<4>> {
    check::packed([&query, &key, &value], sequences, options)?;
    let [q, k, v] = [&query, &key, &value].map(|x| x.clone().without_autodiff());
    let backend = backends::of(&q.device());
    let fused = backend.attention([&q, &k, &v], &[None, None], Some(sequences), options);
    if let Some(fused) = fused {
        let inputs = [
            query.into_dispatch(),
            key.into_dispatch(),
            value.into_dispatch(),
        ];
        let (sequences, options) = (sequences.clone(), options.clone());
        return Ok(with_gradient(inputs, fused.output, move |g| {
            let gradients = (fused.backward)(g.clone(), None).map(|gradients| gradients.inputs);
            let gradients = gradients
                .unwrap_or_else(|| one_by_one_gradients([q, k, v], g, &sequences, &options));
            gradients.map(|x| Some(x.into_dispatch()))
        }));
    }
    backend.refusal()?;
    Ok(one_by_one([query, key, value], sequences, options))
}

/// Packed attention, a sequence at a time.
fn one_by_one(
    [query, key, value]: [Tensor<4>; 3],
    sequences: &Sequences,
    options: &AttentionOptions,
) -> Tensor<4> {
    let part = |x: &Tensor<4>, bounds: &[u32]| {
        let (from, to) = (bounds[0] as usize, bounds[1] as usize);
        (to > from).then(|| x.clone().narrow(2, from, to - from))
    };
    let bounds = sequences.queries.windows(2).zip(sequences.keys.windows(2));
    let outputs = bounds.enumerate().filter_map(|(i, (queries, keys))| {
        let q = part(&query, queries)?;
        let Some((k, v)) = part(&key, keys).zip(part(&value, keys)) else {
            return Some(zeros(q));
        };
        let mut options = options.clone();
        if let Some(site) = &mut options.dropout {
            site.samples = vec![site.samples[i]];
            site.len = [q.dims()[1], q.dims()[2], k.dims()[2]];
        }
        Some(checked([q, k, v], [None, None], &options))
    });
    Tensor::cat(outputs.collect(), 2)
}

/// What queries without keys give: zeros, whose gradient is zeros.
fn zeros(q: Tensor<4>) -> Tensor<4> {
    let y = q.clone().without_autodiff().zeros_like();
    with_gradient([q.into_dispatch()], y, |g| {
        [Some(g.zeros_like().into_dispatch())]
    })
}

/// The gradients of [`one_by_one`], from that of the output.
fn one_by_one_gradients(
    inputs: [Tensor<4>; 3],
    gradient: Tensor<4>,
    sequences: &Sequences,
    options: &AttentionOptions,
) -> [Tensor<4>; 3] {
    let leaves = inputs.map(|x| x.autodiff().require_grad());
    let output = one_by_one(leaves.clone(), sequences, options);
    let gradients = (output * gradient.autodiff()).sum().backward();
    leaves.map(|x| {
        x.grad(&gradients)
            .unwrap_or_else(|| x.without_autodiff().zeros_like())
    })
}
