//! What attention is asked for besides its query, key and value.

use burn::tensor::Tensor;

use super::dropout::Dropout;
use super::rotary::RotaryTable;

/// What attention does besides the two matrix products.
#[derive(Debug, Clone)]
pub struct AttentionOptions {
    /// A query sees keys up to its own position only. With other than as many keys, the last query stands beside the last key
    /// (aligned at the bottom right, as in FlashAttention since 2.1): query i of n sees the keys j <= i + keys - n. One that
    /// sees none gives zeros.
    pub causal: bool,
    /// Factor on the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f64,
    /// Compute the probabilities again in the backward pass instead of keeping them: `batch * heads * seq^2` elements less
    /// for one more score product (selective recompute, arXiv 2205.05198).
    pub recompute: bool,
    /// Dropout of the probabilities `[sample, heads, seq, seq]`.
    pub dropout: Option<Dropout>,
}

impl AttentionOptions {
    /// Every query sees every key; the scale is `1 / sqrt(head_dim)`; nothing is dropped or computed again.
    pub fn full(head_dim: usize) -> Self {
        Self {
            causal: false,
            scale: 1.0 / (head_dim as f64).sqrt(),
            recompute: false,
            dropout: None,
        }
    }

    /// [`Self::full`], where a query sees keys up to its own position only, as the field of that name says.
    pub fn causal(head_dim: usize) -> Self {
        Self {
            causal: true,
            ..Self::full(head_dim)
        }
    }
}

/// Additive biases of the scores, each `[n, heads or 1, seq or 1, keys]`, where `n` divides the batch: entry `b` of the batch
/// has bias `b * n / batch`, so that 1 is one bias for all, and `batch` one for each.
pub type Biases = [Option<Tensor<4>>; 2];

/// Sequences that lie one after the other in tensors of batch 1: where each begins, and at last where all end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequences {
    /// In the queries; one number more than there are sequences, none below the one before.
    pub queries: Vec<u32>,
    /// In the keys and values, as many.
    pub keys: Vec<u32>,
}

/// What lies side by side in a tensor `[batch, seq, (heads + 2 kv_heads) head_dim]`: the heads of the queries, of the keys, and of
/// the values.
#[derive(Debug, Clone)]
pub struct SelfAttention {
    /// Heads of the queries, a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of the keys, and of the values.
    pub kv_heads: usize,
    /// By what queries and keys are turned, if they are.
    pub rotary: Option<RotaryTable>,
}
