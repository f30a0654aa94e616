//! Attention that gives its log-sum-exps, by which results over parts of the keys are merged.

use burn::tensor::{DType, Tensor};

use super::{AttentionOptions, both_ways, check, hidden, least};
use crate::error::Result;
use crate::ops::backends;
use crate::ops::backends::AttentionGradients;
use crate::ops::gradient::with_gradients;

/// [`super::attention`] and the log-sum-exp of each query's scores, differentiable in both. Dropout changes the output alone.
///
/// # Shapes
/// Those of [`super::attention`]; the log-sum-exps are `[batch, heads, seq]` in f32 (f64 of f64), -inf where a query sees no key.
///
/// # Errors
/// Those of [`super::attention`].
pub fn attention_with_log_sum_exp(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    options: &AttentionOptions,
) -> Result<(Tensor<4>, Tensor<3>)> {
    check::attention([&query, &key, &value], &[None, None], options)?;
    let backend = backends::of(&query.device());
    let inputs = [query, key, value];
    let plain = inputs.each_ref().map(|x| x.clone().without_autodiff());
    let (output, sums, back) = both_ways(plain, [None, None], options);
    backend.refusal()?;
    let zeros = output.clone();
    let inputs = inputs.map(Tensor::into_dispatch);
    let outputs = [output, sums().unsqueeze_dim(3)];
    let [output, sums] = with_gradients(inputs, outputs, move |[g, g_sums]| {
        let g = g.unwrap_or_else(|| zeros.zeros_like());
        let AttentionGradients { inputs, .. } = back(g, g_sums.map(|g| g.squeeze_dim(3)));
        inputs.map(|x| Some(x.into_dispatch()))
    });
    Ok((output, sums.squeeze_dim(3)))
}

/// The log-sum-exps of scores before the causal mask.
pub(super) fn of_scores(scores: Tensor<4>, causal: bool) -> Tensor<3> {
    let scores = match scores.dtype() {
        DType::F64 => scores,
        _ => scores.cast(DType::F32),
    };
    let scores = hidden(scores, causal);
    let largest = scores.clone().max_dim(3).clamp_min(least(scores.dtype()));
    let sum = (scores - largest.clone()).exp().sum_dim(3);
    (largest + sum.log()).squeeze_dim(3)
}

/// Attention over two parts of the keys as one, from what [`attention_with_log_sum_exp`] gives of each: the outputs, weighted by
/// `exp(log_sum_exp_i - log_sum_exp)`, and the log-sum-exp of all. Differentiable in all four.
///
/// # Shapes
/// Outputs `[batch, heads, seq, head_dim]` and log-sum-exps `[batch, heads, seq]`, in and out.
///
/// # Errors
/// Other shapes or types.
pub fn merge_attention(
    first: (Tensor<4>, Tensor<3>),
    second: (Tensor<4>, Tensor<3>),
) -> Result<(Tensor<4>, Tensor<3>)> {
    check::parts(&first, &second)?;
    let dtype = first.0.dtype();
    let plain = |x: &Tensor<4>| x.clone().without_autodiff();
    let outputs = [plain(&first.0), plain(&second.0)];
    let sums = [&first.1, &second.1].map(|x| x.clone().without_autodiff().unsqueeze_dim::<4>(3));
    let largest = sums[0].clone().max_pair(sums[1].clone());
    let largest = largest.clamp_min(least(DType::F32));
    let weights = sums.map(|x| (x - largest.clone()).exp());
    let total = weights[0].clone() + weights[1].clone();
    let sum = largest + total.clone().log();
    // Where neither part has a key, weights of zero.
    let total = total.clamp_min(f64::from(f32::MIN_POSITIVE));
    let weights = weights.map(|x| x / total.clone());
    let [a, b] = [0, 1].map(|i| outputs[i].clone() * weights[i].clone().cast(dtype));
    let merged = a + b;
    let ((o1, s1), (o2, s2)) = (first, second);
    let inputs = [
        o1.into_dispatch(),
        o2.into_dispatch(),
        s1.unsqueeze_dim::<4>(3).into_dispatch(),
        s2.unsqueeze_dim::<4>(3).into_dispatch(),
    ];
    let kept = merged.clone();
    let [merged, sum] = with_gradients(inputs, [merged, sum], move |[g, g_sum]| {
        let g = g.unwrap_or_else(|| kept.zeros_like());
        let wide = |x: Tensor<4>| x.cast(weights[0].dtype());
        // A part's share of the sum: what its output gains above the merged one.
        let of_sum = |i: usize| {
            let gain = wide(g.clone()) * wide(outputs[i].clone() - kept.clone());
            let gain = gain.sum_dim(3);
            let gain = match &g_sum {
                Some(g) => gain + g.clone(),
                None => gain,
            };
            Some((weights[i].clone() * gain).into_dispatch())
        };
        let of_output = |i: usize| {
            let share = g.clone() * weights[i].clone().cast(g.dtype());
            Some(share.into_dispatch())
        };
        [of_output(0), of_output(1), of_sum(0), of_sum(1)]
    });
    Ok((merged, sum.squeeze_dim(3)))
}
