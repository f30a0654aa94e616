//! Scaled dot-product attention with a gradient of its own.

use burn::tensor::{Bool, Device, Tensor, activation};

use super::dropout::Dropout;
use super::gradient::with_gradient;

/// What attention does besides the two matrix products.
#[derive(Debug, Clone)]
pub struct AttentionOptions {
    /// A query sees keys up to its own position only.
    pub causal: bool,
    /// Factor on the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f64,
    /// Compute the probabilities again in the backward pass instead of keeping them: `batch * heads * seq^2` elements less
    /// for one more score product (selective recompute, arXiv 2205.05198).
    pub recompute: bool,
    /// Dropout of the probabilities `[sample, heads, seq, seq]`.
    pub dropout: Option<Dropout>,
}

/// `softmax(scale * Q K^T) V`.
///
/// # Shapes
/// query `[batch, heads, seq, head_dim]`; key and value `[batch, kv_heads, keys, head_dim]` with heads a multiple of
/// kv_heads (grouped-query attention, arXiv 2305.13245); gives `[batch, heads, seq, head_dim]`.
pub fn attention(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    options: &AttentionOptions,
) -> Tensor<4> {
    let [q, k, v] = [&query, &key, &value].map(|x| x.clone().without_autodiff());
    let state = probabilities(q.clone(), k.clone(), options);
    let output = output(&state, &v);
    let kept = (!options.recompute).then_some(state);
    let options = options.clone();
    let inputs = [
        query.into_dispatch(),
        key.into_dispatch(),
        value.into_dispatch(),
    ];
    with_gradient(inputs, output, move |g| {
        let state = kept.unwrap_or_else(|| probabilities(q.clone(), k.clone(), &options));
        backward(q, k, v, state, g, options.scale).map(|x| Some(x.into_dispatch()))
    })
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

fn probabilities(q: Tensor<4>, k: Tensor<4>, options: &AttentionOptions) -> Probabilities {
    let [batch, heads, seq, _] = q.dims();
    let [_, kv_heads, keys, _] = k.dims();
    let scores = grouped(q.mul_scalar(options.scale), kv_heads)
        .matmul(k.swap_dims(2, 3))
        .reshape([batch, heads, seq, keys]);
    let scores = if options.causal {
        let hidden = causal_mask(seq, keys, &scores.device());
        scores.mask_fill(hidden.expand([batch, heads, seq, keys]), f64::NEG_INFINITY)
    } else {
        scores
    };
    Probabilities {
        mask: options
            .dropout
            .as_ref()
            .map(|site| site.mask(&scores.device(), scores.dtype())),
        plain: activation::softmax(scores, 3),
    }
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
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    state: Probabilities,
    g: Tensor<4>,
    scale: f64,
) -> [Tensor<4>; 3] {
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
    let inner = (d_p.clone() * p.clone()).sum_dim(3);
    let d_scores = grouped((d_p - inner) * p.mul_scalar(scale), kv_heads);
    let d_query = d_scores.clone().matmul(k).reshape(q_shape);
    let d_key = d_scores.swap_dims(2, 3).matmul(grouped(q, kv_heads));
    [d_query, d_key, d_value]
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{DType, TensorData};

    fn leaf(shape: [usize; 4], seed: u32) -> Tensor<4> {
        let mut s = seed;
        let values: Vec<f64> = (0..shape.iter().product())
            .map(|_| {
                s = s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                f64::from(s) / 2f64.powi(31) - 1.0
            })
            .collect();
        Tensor::from_data(
            TensorData::new(values, shape),
            (&Device::flex(), DType::F64),
        )
        .autodiff()
        .require_grad()
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
        let run = |f: &dyn Fn(Tensor<4>, Tensor<4>, Tensor<4>, &AttentionOptions) -> Tensor<4>| {
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
        for (own, plain) in run(&attention).into_iter().zip(run(&reference)) {
            assert!((own - plain).abs() < 1e-12, "{own} {plain}");
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
