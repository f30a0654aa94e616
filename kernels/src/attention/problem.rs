//! What one attention computes: sizes, strides, and what is added, masked and dropped.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use crate::error::{Error, Result};
use crate::hip::run::Scalars;
use crate::random;

/// Largest head dimension.
pub const MAX_HEAD_DIM: usize = 256;

/// Distances in elements between batch entries, heads and rows of a tensor whose head dimension is contiguous.
///
/// The row-wise statistics (log-sum-exp) have them too. Packed tensors have no batch stride: their rows follow each other.
#[derive(CubeType, CubeLaunch, Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Strides {
    /// Between batch entries; not used if sequences are packed.
    pub batch: u32,
    /// Between heads.
    pub head: u32,
    /// Between rows (positions of the sequence).
    pub row: u32,
}

impl Strides {
    /// Of `[batch, rows, heads, width]`, row-major; what 32 bits do not hold is the largest number, which no launch takes.
    pub fn rows_first(rows: u32, heads: u32, width: u32) -> Self {
        let row = heads.saturating_mul(width);
        Self {
            batch: rows.saturating_mul(row),
            head: width,
            row,
        }
    }

    /// Of `[batch, heads, rows, width]`, row-major; what 32 bits do not hold is the largest number, which no launch takes.
    pub fn heads_first(rows: u32, heads: u32, width: u32) -> Self {
        let head = rows.saturating_mul(width);
        Self {
            batch: heads.saturating_mul(head),
            head,
            row: width,
        }
    }
}

/// Where an additive bias lies, in elements: a stride of 0 broadcasts along its dimension.
#[derive(CubeType, CubeLaunch, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BiasStrides {
    /// Batch entries that share a bias, one after the other: entry `b` takes bias `b / divisor`.
    pub divisor: u32,
    /// Between biases of the batch.
    pub batch: u32,
    /// Between heads.
    pub head: u32,
    /// Between queries.
    pub query: u32,
    /// Between keys.
    pub key: u32,
}

impl Default for BiasStrides {
    fn default() -> Self {
        Self {
            divisor: 1,
            batch: 0,
            head: 0,
            query: 0,
            key: 0,
        }
    }
}

/// Dropout of the probabilities. That of `(sample, head, query, key)` is element (`query`, `key`) of site
/// `sample * heads_global + first_head + head` of [`crate::random`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Share that is dropped, in [0, 1).
    pub probability: f64,
    /// Key of the random numbers.
    pub key: [u32; 2],
    /// Heads of the whole model's layer, over all ranks.
    pub heads_global: u32,
    /// Global index of this rank's head 0.
    pub first_head: u32,
}

/// What a kernel is told at run time.
#[derive(CubeType, CubeLaunch, Clone, Copy, Debug, PartialEq)]
pub struct Geometry {
    /// Query heads that share a head of keys and values.
    pub group: u32,
    /// Queries of a sequence; of the longest if packed.
    pub queries: u32,
    /// Keys of a sequence; of the longest if packed.
    pub keys: u32,
    /// Strides of Q.
    pub q: Strides,
    /// Strides of K.
    pub k: Strides,
    /// Strides of V.
    pub v: Strides,
    /// Strides of O.
    pub o: Strides,
    /// Strides of the log-sum-exp.
    pub lse: Strides,
    /// Strides of the first bias.
    pub bias1: BiasStrides,
    /// Strides of the second bias.
    pub bias2: BiasStrides,
    /// Heads of all ranks.
    pub heads_global: u32,
    /// Global index of head 0.
    pub first_head: u32,
    /// A random word below it drops its probability.
    pub threshold: u32,
    /// Random key, low word.
    pub key_low: u32,
    /// Random key, high word.
    pub key_high: u32,
    /// Factor of Q K^T.
    pub scale: f32,
    /// Factor of the probabilities that dropout keeps, `1 / (1 - p)`.
    pub keep_scale: f32,
}

impl Geometry {
    /// The scalars in the order of the kernel's parameters.
    pub fn scalars(&self) -> Scalars {
        let strides = |s: Strides| [s.batch, s.head, s.row];
        let bias = |s: BiasStrides| [s.divisor, s.batch, s.head, s.query, s.key];
        let tensors = [self.q, self.k, self.v, self.o, self.lse];
        let mut u32 = vec![self.group, self.queries, self.keys];
        u32.extend(tensors.into_iter().flat_map(strides));
        u32.extend([self.bias1, self.bias2].into_iter().flat_map(bias));
        u32.extend([self.heads_global, self.first_head, self.threshold]);
        u32.extend([self.key_low, self.key_high]);
        Scalars {
            u32,
            f32: vec![self.scale, self.keep_scale],
            ..Scalars::default()
        }
    }
}

/// What is compiled into a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// Elements of a row of Q, K, V and O; 1 to [`MAX_HEAD_DIM`].
    pub head_dim: usize,
    /// Query `i` sees keys `j <= i + keys - queries` only.
    pub causal: bool,
    /// Which of the two biases are added.
    pub bias: [bool; 2],
    /// Sequences are packed; cumulative lengths say where each begins.
    pub packed: bool,
    /// Probabilities are dropped.
    pub dropout: bool,
}

/// An attention: O = softmax(scale Q K^T + bias1 + bias2) V.
///
/// # Shapes
/// Q, O `[batch, queries, heads, head_dim]`, K, V `[batch, keys, kv_heads, head_dim]`, in any strides with a contiguous
/// head dimension; biases broadcast to `[batch, heads, queries, keys]`; log-sum-exp `[batch, heads, queries]`, f32,
/// natural logarithm. A query that sees no key, or scores of -inf only, gives zeros and a log-sum-exp of -inf.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Problem {
    /// Sequences.
    pub batch: u32,
    /// Heads of Q and O.
    pub heads: u32,
    /// Heads of K and V; `heads` is a multiple.
    pub kv_heads: u32,
    /// Queries of a sequence; of the longest if packed.
    pub queries: u32,
    /// Keys of a sequence; of the longest if packed.
    pub keys: u32,
    /// Elements of a row.
    pub head_dim: u32,
    /// Factor of Q K^T.
    pub scale: f32,
    /// Whether query `i` sees keys `j <= i + keys - queries` only.
    pub causal: bool,
    /// Whether sequences are packed: rows of sequence `b` are `cumulative[b]..cumulative[b + 1]`.
    pub packed: bool,
    /// Strides of Q.
    pub q: Strides,
    /// Strides of K.
    pub k: Strides,
    /// Strides of V.
    pub v: Strides,
    /// Strides of O.
    pub o: Strides,
    /// Strides of the log-sum-exp.
    pub lse: Strides,
    /// The biases that are added.
    pub bias: [Option<BiasStrides>; 2],
    /// Dropout of the probabilities.
    pub dropout: Option<Dropout>,
}

impl Problem {
    /// Full attention of contiguous `[batch, rows, heads, head_dim]`, as many heads in K and V as in Q, scale
    /// `1 / sqrt(head_dim)`.
    pub fn new(batch: u32, heads: u32, queries: u32, keys: u32, head_dim: u32) -> Self {
        let of_queries = Strides::rows_first(queries, heads, head_dim);
        let of_keys = Strides::rows_first(keys, heads, head_dim);
        Self {
            batch,
            heads,
            kv_heads: heads,
            queries,
            keys,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            causal: false,
            packed: false,
            q: of_queries,
            k: of_keys,
            v: of_keys,
            o: of_queries,
            lse: Strides::heads_first(queries, heads, 1),
            bias: [None; 2],
            dropout: None,
        }
    }

    /// With `kv_heads` heads of K and V, contiguous `[batch, keys, kv_heads, head_dim]`.
    pub fn kv_heads(mut self, kv_heads: u32) -> Self {
        self.kv_heads = kv_heads;
        self.k = Strides::rows_first(self.keys, kv_heads, self.head_dim);
        self.v = self.k;
        self
    }

    /// With a causal mask, or without.
    pub fn causal(mut self, causal: bool) -> Self {
        self.causal = causal;
        self
    }

    /// What is compiled into its kernel.
    pub fn variant(&self) -> Variant {
        Variant {
            head_dim: self.head_dim as usize,
            causal: self.causal,
            bias: self.bias.map(|bias| bias.is_some()),
            packed: self.packed,
            dropout: self.dropout.is_some(),
        }
    }

    /// What its kernel is told.
    pub fn geometry(&self) -> Geometry {
        let [bias1, bias2] = self.bias.map(Option::unwrap_or_default);
        let dropout = self.dropout.unwrap_or(Dropout {
            probability: 0.0,
            key: [0; 2],
            heads_global: self.heads,
            first_head: 0,
        });
        Geometry {
            group: self.heads / self.kv_heads,
            queries: self.queries,
            keys: self.keys,
            q: self.q,
            k: self.k,
            v: self.v,
            o: self.o,
            lse: self.lse,
            bias1,
            bias2,
            heads_global: dropout.heads_global,
            first_head: dropout.first_head,
            threshold: random::threshold(dropout.probability),
            key_low: dropout.key[0],
            key_high: dropout.key[1],
            scale: self.scale,
            keep_scale: (1.0 / (1.0 - dropout.probability)) as f32,
        }
    }

    /// Elements of one access to Q, K, V and O: at most `most`, a power of two that divides the head dimension and all
    /// strides in `tensors`.
    pub fn vector_width(&self, most: usize, tensors: &[Strides]) -> usize {
        let strides = tensors.iter().flat_map(|s| [s.batch, s.head, s.row]);
        let all = strides.fold(self.head_dim, |all, stride| all | stride);
        most.min(1 << all.trailing_zeros())
    }

    /// # Errors
    /// Sizes that no kernel takes.
    pub fn check(&self) -> Result<()> {
        let refuse =
            |problem: String, remedy: &str| Err(Error::argument("attention", problem, remedy));
        if self.head_dim == 0 || self.head_dim as usize > MAX_HEAD_DIM {
            return refuse(
                format!("head_dim is {}", self.head_dim),
                "use 1 to 256 elements a head",
            );
        }
        if !(self.scale.is_finite() && self.scale > 0.0) {
            return refuse(
                format!("a scale of {}", self.scale),
                "scale by a positive number, and change the signs of Q instead",
            );
        }
        const SHORT: u32 = 1 << 24;
        let rows = [
            (self.k, self.keys),
            (self.v, self.keys),
            (self.q, self.queries),
        ];
        let most = rows.map(|(s, rows)| u64::from(rows) * u64::from(s.row));
        if rows.iter().any(|&(s, rows)| rows.max(s.row) >= SHORT)
            || most.iter().any(|&span| span >= 1 << 30)
        {
            return refuse(
                format!(
                    "{} queries and {} keys, rows up to {} elements apart",
                    self.queries, self.keys, self.k.row
                ),
                "give a head's rows fewer than 2^30 elements, fewer than 2^24 rows, and strides below 2^24",
            );
        }
        if self.kv_heads == 0 || self.heads % self.kv_heads != 0 {
            return refuse(
                format!("{} heads share {} of K and V", self.heads, self.kv_heads),
                "make the heads of Q a multiple of those of K and V",
            );
        }
        if self.bias.iter().flatten().any(|bias| bias.divisor == 0) {
            return refuse(
                "a bias is shared by 0 batch entries".into(),
                "pass a divisor of 1 if each entry has its own",
            );
        }
        if let Some(Dropout { probability, .. }) = self.dropout
            && !(0.0..1.0).contains(&probability)
        {
            return refuse(
                format!("dropout of {probability}"),
                "drop a share in [0, 1)",
            );
        }
        Ok(())
    }
}
