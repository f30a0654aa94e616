//! Attention of query, key and value that lie side by side, as a projection gives them.

use burn::tensor::Tensor;

use super::{AttentionOptions, SelfAttention, attention, check};
use crate::error::Result;
use crate::ops::backends;
use crate::ops::gradient::with_gradient;
use crate::ops::rotary::{self, rotary};

/// Attention of the query, key and value of the same tokens, which lie side by side; queries and keys are turned first where there
/// is a rotary table. In f32 on the CPU they are read as they lie, and their gradients written so.
///
/// # Shapes
/// qkv `[batch, seq, (heads + 2 kv_heads) head_dim]`; gives `[batch, seq, heads head_dim]`.
///
/// # Errors
/// Another width, heads that do not share those of the keys, a table that does not fit, or a site of dropout of other shape.
pub fn self_attention(
    qkv: Tensor<3>,
    sizes: &SelfAttention,
    options: &AttentionOptions,
) -> Result<Tensor<3>> {
    let head_dim = check::self_attention(qkv.dims(), sizes, options)?;
    let [batch, seq, _] = qkv.dims();
    let &SelfAttention {
        heads, kv_heads, ..
    } = sizes;
    if let Some(table) = &sizes.rotary {
        rotary::check([seq, head_dim], table)?;
    }
    let x = qkv.clone().without_autodiff();
    let backend = backends::of(&x.device());
    if let Some((output, fused)) = backend.self_attention(&x, sizes, options) {
        return Ok(with_gradient([qkv.into_dispatch()], output, move |g| {
            [Some(fused(g).into_dispatch())]
        }));
    }
    let split = |first: usize, n: usize| {
        qkv.clone()
            .narrow(2, first * head_dim, n * head_dim)
            .reshape([batch, seq, n, head_dim])
            .swap_dims(1, 2) // [batch, n, seq, head_dim]
    };
    let (q, k, v) = (
        split(0, heads),
        split(heads, kv_heads),
        split(heads + kv_heads, kv_heads),
    );
    let (q, k) = match &sizes.rotary {
        Some(table) => (rotary(q, table)?, rotary(k, table)?),
        None => (q, k),
    };
    let context = attention(q, k, v, options)?;
    Ok(context
        .swap_dims(1, 2)
        .reshape([batch, seq, heads * head_dim]))
}
