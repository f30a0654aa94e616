//! Scaled dot-product attention with a gradient of its own.

mod check;
mod log_sum_exp;
mod packed;
mod self_attention;

pub use log_sum_exp::{attention_with_log_sum_exp, merge_attention};
pub use packed::packed_attention;
pub use self_attention::self_attention;

use burn::tensor::{Bool, DType, Device, FloatDType, Tensor, activation};

use super::backends::{self, AttentionGradients};
use super::gradient::with_gradient;
pub use super::problem::attention::{AttentionOptions, Biases, SelfAttention, Sequences};
use super::shape::expect;
use crate::error::Result;

/// `softmax(scale * Q K^T) V`.
///
/// By kernels without a matrix of scores in memory, on a GPU and in f32 and bf16 on the CPU; else by matrix products. A query that sees no
/// key gives zeros. One whose keys are all masked by a large number such as -1e9 gives the mean of the values; on a GPU it has no
/// gradient (below a log-sum-exp of -1e6, f32 keeps too little of the scores).
///
/// # Shapes
/// query `[batch, heads, seq, head_dim]`; key and value `[batch, kv_heads, keys, head_dim]` with heads a multiple of
/// kv_heads (grouped-query attention, arXiv 2305.13245); gives `[batch, heads, seq, head_dim]`.
///
/// # Errors
/// Other shapes, empty tensors, or tensors of different types.
pub fn attention(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    options: &AttentionOptions,
) -> Result<Tensor<4>> {
    attention_with_biases(query, key, value, [None, None], options)
}

/// Whether [`attention`] on `device` has no matrix of scores in memory, forward and back, for queries of `dtype` and of the
/// sizes `[batch, heads, seq, head_dim]`, with `kv_heads` heads of as many keys.
pub fn writes_no_scores(
    device: &Device,
    dtype: DType,
    queries: [usize; 4],
    kv_heads: usize,
) -> bool {
    backends::of(device).fuses_attention(device, dtype, queries, kv_heads)
}

/// `softmax(scale * Q K^T + bias1 + bias2) V`, differentiable in the biases too, whose gradients are summed in f32.
///
/// # Shapes
/// Those of [`attention`] and of [`Biases`].
///
/// # Errors
/// Those of [`attention`], and biases of other shapes.
pub fn attention_with_biases(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    biases: Biases,
    options: &AttentionOptions,
) -> Result<Tensor<4>> {
    check::attention([&query, &key, &value], &biases, options)?;
    let backend = backends::of(&query.device());
    let output = checked([query, key, value], biases, options);
    backend.refusal()?;
    Ok(output)
}

/// [`attention_with_biases`] of what fits.
fn checked(tensors: [Tensor<4>; 3], biases: Biases, options: &AttentionOptions) -> Tensor<4> {
    let [q, k, v] = tensors.each_ref().map(|x| x.clone().without_autodiff());
    let plain = biases
        .each_ref()
        .map(|bias| bias.clone().map(Tensor::without_autodiff));
    // A missing bias is a constant, and has no gradient.
    let [bias1, bias2] = biases.map(|bias| bias.unwrap_or_else(|| q.clone()).into_dispatch());
    let [query, key, value] = tensors.map(Tensor::into_dispatch);
    let (output, _, back) = both_ways([q, k, v], plain, options);
    with_gradient([query, key, value, bias1, bias2], output, move |g| {
        let AttentionGradients { inputs, biases } = back(g, None);
        let [q, k, v] = inputs.map(|x| Some(x.into_dispatch()));
        let [bias1, bias2] = biases.map(|x| x.map(Tensor::into_dispatch));
        [q, k, v, bias1, bias2]
    })
}

/// From the gradients of the output and of the log-sum-exps, if they are used, to those of the inputs.
type Back = Box<dyn FnOnce(Tensor<4>, Option<Tensor<3>>) -> AttentionGradients + Send>;

/// The output, its log-sum-exps for whoever asks, and the way back, of tensors without autodiff.
fn both_ways(
    [q, k, v]: [Tensor<4>; 3],
    biases: Biases,
    options: &AttentionOptions,
) -> (Tensor<4>, Box<dyn FnOnce() -> Tensor<3> + Send>, Back) {
    let options = options.clone();
    let fused = backends::of(&q.device()).attention([&q, &k, &v], &biases, None, &options);
    if let Some(fused) = fused {
        let back = move |g: Tensor<4>, g_sums: Option<Tensor<3>>| {
            (fused.backward)(g.clone(), g_sums.clone()).unwrap_or_else(|| {
                let state = probabilities(&q, &k, &biases, &options);
                backward([q, k, v], &biases, state, (g, g_sums), options.scale)
            })
        };
        return (fused.output, fused.log_sum_exp, Box::new(back));
    }
    let sums = {
        let (q, k, biases, causal) = (q.clone(), k.clone(), biases.clone(), options.causal);
        let scale = options.scale;
        move || log_sum_exp::of_scores(scores(&q, &k, &biases, scale), causal)
    };
    let state = probabilities(&q, &k, &biases, &options);
    let output = output(&state, &v);
    let kept = (!options.recompute).then_some(state);
    let back = move |g, g_sums| {
        let state = kept.unwrap_or_else(|| probabilities(&q, &k, &biases, &options));
        backward([q, k, v], &biases, state, (g, g_sums), options.scale)
    };
    (output, Box::new(sums), Box::new(back))
}

/// The attention of AlphaFold's Evoformer (arXiv 2310.04610): `softmax(Q K^T / sqrt(head_dim) + mask + pair) V`,
/// differentiable in all five.
///
/// # Shapes
/// query, key and value `[batch, n, seq, heads, head_dim]`, mask `[batch, n, 1, 1, seq]`, pair `[batch, 1, heads, seq, seq]`;
/// gives `[batch, n, seq, heads, head_dim]`.
///
/// # Errors
/// Other shapes, empty tensors, or tensors of different types.
pub fn evoformer_attention(
    query: Tensor<5>,
    key: Tensor<5>,
    value: Tensor<5>,
    mask: Option<Tensor<5>>,
    pair: Option<Tensor<5>>,
) -> Result<Tensor<5>> {
    let shape = query.dims();
    let [batch, n, seq, heads, head_dim] = shape;
    let (rows, mask_rows, pair_rows) = (shape, [batch, n, 1, 1, seq], [batch, 1, heads, seq, seq]);
    for (what, x, expected, axes) in [
        (
            "the key",
            Some(&key),
            rows,
            "[batch, n, seq, heads, head_dim]",
        ),
        (
            "the value",
            Some(&value),
            rows,
            "[batch, n, seq, heads, head_dim]",
        ),
        (
            "the mask",
            mask.as_ref(),
            mask_rows,
            "[batch, n, 1, 1, seq]",
        ),
        (
            "the pair bias",
            pair.as_ref(),
            pair_rows,
            "[batch, 1, heads, seq, seq]",
        ),
    ] {
        if let Some(x) = x {
            expect("evoformer_attention", what, x.dims(), expected, axes)?;
        }
    }
    let entries = batch * n;
    let rows = |x: Tensor<5>| x.reshape([entries, seq, heads, head_dim]).swap_dims(1, 2);
    let biases = [
        mask.map(|x| x.reshape([entries, 1, 1, seq])),
        pair.map(|x| x.reshape([batch, heads, seq, seq])),
    ];
    let options = AttentionOptions::full(head_dim);
    let output = attention_with_biases(rows(query), rows(key), rows(value), biases, &options)?;
    Ok(output.swap_dims(1, 2).reshape(shape))
}

/// Probabilities `[batch, heads, seq, keys]` before dropout, and its mask.
struct Probabilities {
    plain: Tensor<4>,
    mask: Option<Tensor<4>>,
}

impl Probabilities {
    fn dropped(&self) -> Tensor<4> {
        match &self.mask {
            Some(mask) => self.plain.clone() * mask.clone(),
            None => self.plain.clone(),
        }
    }
}

/// Heads that share a key head become rows of one matrix product: `[batch, kv_heads, group * seq, last]`.
fn grouped(x: Tensor<4>, kv_heads: usize) -> Tensor<4> {
    let [batch, heads, seq, last] = x.dims();
    x.reshape([batch, kv_heads, heads / kv_heads * seq, last])
}

/// Scores `[batch, heads, seq, keys]` before the causal mask.
fn scores(q: &Tensor<4>, k: &Tensor<4>, biases: &Biases, scale: f64) -> Tensor<4> {
    let [batch, heads, seq, _] = q.dims();
    let [_, kv_heads, keys, _] = k.dims();
    let mut scores = grouped(q.clone().mul_scalar(scale), kv_heads)
        .matmul(k.clone().swap_dims(2, 3))
        .reshape([batch, heads, seq, keys]);
    for bias in biases.iter().flatten() {
        scores = scores + for_each_entry(bias.clone().cast(q.dtype()), batch);
    }
    scores
}

fn probabilities(
    q: &Tensor<4>,
    k: &Tensor<4>,
    biases: &Biases,
    options: &AttentionOptions,
) -> Probabilities {
    let scores = scores(q, k, biases, options.scale);
    let mask = options.dropout.as_ref();
    let mask = mask.map(|site| site.mask(&scores.device(), scores.dtype()));
    let biased = biases.iter().any(Option::is_some);
    let plain = backends::of(&q.device())
        .softmax(scores, options.causal)
        .unwrap_or_else(|scores| softmax(*scores, options.causal, biased));
    Probabilities { plain, mask }
}

/// The softmax of the last dimension; zeros where all of a row is -inf.
fn softmax(scores: Tensor<4>, causal: bool, biased: bool) -> Tensor<4> {
    let [_, _, seq, keys] = scores.dims();
    let scores = hidden(scores, causal);
    // Where all scores of a row may be -inf, a plain softmax would give NaN.
    match causal && seq > keys || biased {
        true => softmax_or_zeros(scores),
        false => activation::softmax(scores, 3),
    }
}

/// Scores, -inf where a query must not look.
fn hidden(scores: Tensor<4>, causal: bool) -> Tensor<4> {
    let [batch, heads, seq, keys] = scores.dims();
    if !causal {
        return scores;
    }
    let hidden = causal_mask(seq, keys, &scores.device());
    scores.mask_fill(hidden.expand([batch, heads, seq, keys]), f64::NEG_INFINITY)
}

/// Less than any score that is not -inf: a mask of -1e9 is a score like any other.
fn least(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => -65504.0,
        _ => -1e30,
    }
}

/// A bias of `n` entries, each repeated for its share of the batch.
fn for_each_entry(bias: Tensor<4>, batch: usize) -> Tensor<4> {
    let [n, heads, seq, keys] = bias.dims();
    if n == batch || n == 1 {
        return bias;
    }
    bias.reshape([n, 1, heads * seq * keys])
        .repeat_dim(1, batch / n)
        .reshape([batch, heads, seq, keys])
}

/// The softmax of the last dimension; zeros where all of a row is -inf.
fn softmax_or_zeros(scores: Tensor<4>) -> Tensor<4> {
    let largest = scores.clone().max_dim(3).clamp_min(least(scores.dtype()));
    let exponentials = (scores - largest).exp();
    let sum = exponentials.clone().sum_dim(3);
    exponentials / sum.clamp_min(1e-4)
}

/// True where a query must not look. With more keys than queries, the last query sees all keys.
fn causal_mask(seq: usize, keys: usize, device: &Device) -> Tensor<4, Bool> {
    let offset = keys as i64 - seq as i64 + 1;
    Tensor::<2, Bool>::triu_mask([seq, keys], offset, device)
        .bool_not()
        .unsqueeze()
}

fn output(state: &Probabilities, v: &Tensor<4>) -> Tensor<4> {
    let [batch, kv_heads, _, head_dim] = v.dims();
    let [_, heads, seq, _] = state.plain.dims();
    grouped(state.dropped(), kv_heads)
        .matmul(v.clone())
        .reshape([batch, heads, seq, head_dim])
}

fn backward(
    [q, k, v]: [Tensor<4>; 3],
    biases: &Biases,
    state: Probabilities,
    (g, g_sums): (Tensor<4>, Option<Tensor<3>>),
    scale: f64,
) -> AttentionGradients {
    let kv_heads = k.dims()[1];
    let (q_shape, p_shape) = (q.shape(), state.plain.shape());
    let g = grouped(g, kv_heads);
    let d_value = grouped(state.dropped(), kv_heads)
        .swap_dims(2, 3)
        .matmul(g.clone());
    let d_p = g.matmul(v.swap_dims(2, 3)).reshape(p_shape);
    let d_p = match &state.mask {
        Some(mask) => d_p * mask.clone(),
        None => d_p,
    };
    let p = state.plain;
    let d_scores = backends::of(&p.device())
        .softmax_gradient(&p, d_p)
        .unwrap_or_else(|d_p| {
            let inner = (d_p.as_ref().clone() * p.clone()).sum_dim(3);
            (*d_p - inner) * p.clone()
        });
    let d_scores = match g_sums {
        Some(g) => d_scores + p.clone() * g.unsqueeze_dim::<4>(3).cast(p.dtype()),
        None => d_scores,
    };
    let d_biases = biases
        .each_ref()
        .map(|bias| bias.as_ref().map(|bias| summed_to(&d_scores, bias)));
    let d_scores = grouped(d_scores.mul_scalar(scale), kv_heads);
    let d_query = d_scores.clone().matmul(k).reshape(q_shape);
    let d_key = d_scores.swap_dims(2, 3).matmul(grouped(q, kv_heads));
    AttentionGradients {
        inputs: [d_query, d_key, d_value],
        biases: d_biases,
    }
}

/// The gradient of a bias: that of the scores, summed in f32 or more over all that share an element of it.
fn summed_to(d_scores: &Tensor<4>, bias: &Tensor<4>) -> Tensor<4> {
    let [batch, heads, seq, keys] = d_scores.dims();
    let [n, ..] = bias.dims();
    let wide = match d_scores.dtype() {
        DType::F64 => FloatDType::F64,
        _ => FloatDType::F32,
    };
    let mut sum = d_scores.clone().cast(wide);
    if n < batch {
        sum = sum
            .reshape([n, batch / n, heads * seq * keys])
            .sum_dim(1)
            .reshape([n, heads, seq, keys]);
    }
    for dim in 1..4 {
        if bias.dims()[dim] < sum.dims()[dim] {
            sum = sum.sum_dim(dim);
        }
    }
    sum.cast(bias.dtype())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::dropout::Dropout;
    use crate::ops::testing::Place;

    fn leaf(shape: [usize; 4], seed: u32) -> Tensor<4> {
        Place::exact().leaf(shape, seed)
    }

    /// Plain composition over repeated key heads, differentiated by Burn.
    fn reference(
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
        options: &AttentionOptions,
    ) -> Tensor<4> {
        let group = q.dims()[1] / k.dims()[1];
        let repeat = |x: Tensor<4>| {
            let [batch, kv_heads, keys, d] = x.dims();
            x.reshape([batch, kv_heads, 1, keys * d])
                .repeat_dim(2, group)
                .reshape([batch, kv_heads * group, keys, d])
        };
        let scores = q.clone().matmul(repeat(k.clone()).swap_dims(2, 3)) * options.scale;
        let [batch, heads, seq, keys] = scores.dims();
        let scores = if options.causal {
            let hidden = causal_mask(seq, keys, &Device::flex());
            scores.mask_fill(hidden.expand([batch, heads, seq, keys]), f64::NEG_INFINITY)
        } else {
            scores
        };
        let p = activation::softmax(scores, 3);
        let p = match &options.dropout {
            Some(site) => p * site.mask(&Device::flex(), DType::F64),
            None => p,
        };
        p.matmul(repeat(v))
    }

    fn agrees(kv_heads: usize, causal: bool, with_dropout: bool, recompute: bool) {
        let options = AttentionOptions {
            causal,
            scale: 0.4,
            recompute,
            dropout: with_dropout.then(|| Dropout {
                probability: 0.3,
                seed: 1,
                step: 1,
                name: "p".into(),
                samples: vec![0, 1],
                global: 4,
                start: [0; 3],
                len: [4, 5, 5],
            }),
        };
        type Function = fn(Tensor<4>, Tensor<4>, Tensor<4>, &AttentionOptions) -> Tensor<4>;
        let own: Function = |q, k, v, options| attention(q, k, v, options).unwrap();
        let run = |f: Function| {
            let q = leaf([2, 4, 5, 6], 1);
            let (k, v) = (leaf([2, kv_heads, 5, 6], 2), leaf([2, kv_heads, 5, 6], 3));
            let y = f(q.clone(), k.clone(), v.clone(), &options);
            let gradients = (y.clone() * leaf([2, 4, 5, 6], 4)).sum().backward();
            let mut all = y.into_data().try_to_vec::<f64>().unwrap();
            for x in [q, k, v] {
                all.extend(
                    x.grad(&gradients)
                        .unwrap()
                        .into_data()
                        .try_to_vec::<f64>()
                        .unwrap(),
                );
            }
            all
        };
        for (own, plain) in run(own).into_iter().zip(run(reference)) {
            assert!((own - plain).abs() < 1e-12, "{own} {plain}");
        }
    }

    #[test]
    fn the_cpu_writes_no_scores_in_f32_and_bf16() {
        let sizes = [1, 4, 128, 64];
        for (dtype, fused) in [
            (DType::F32, true),
            (DType::F64, false),
            (DType::BF16, true),
            (DType::F16, false),
        ] {
            assert_eq!(writes_no_scores(&Device::flex(), dtype, sizes, 4), fused);
        }
    }

    #[test]
    fn attention_equals_the_plain_composition() {
        for kv_heads in [4, 2, 1] {
            for causal in [false, true] {
                for with_dropout in [false, true] {
                    agrees(kv_heads, causal, with_dropout, false);
                    agrees(kv_heads, causal, with_dropout, true);
                }
            }
        }
    }
}
