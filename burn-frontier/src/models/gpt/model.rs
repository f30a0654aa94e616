//! The mathematics. A forward pass contains no communication: layers do (see [`super::sharding`] for how they are split).

use burn::tensor::Tensor;

use super::{GptConfig, NormKind};
use crate::error::{Error, Result};
use crate::ops::attention::{AttentionOptions, SelfAttention, self_attention};
use crate::ops::dropout::{Dropout, add_dropout, dropout};
use crate::ops::embedding::add_rows;
use crate::ops::norm::{add_norm, layer_norm, rms_norm};
use crate::ops::rotary::RotaryTable;
use crate::parameter::Parameter;
use crate::tensor_parallel::embedding::VocabularyParallel;
use crate::tensor_parallel::linear::{ColumnParallelLinear, RowParallelLinear, feed_forward};

/// What a forward pass is done for.
#[derive(Debug, Clone)]
pub struct Pass {
    /// Seed of the run, for dropout.
    pub seed: u64,
    /// Optimiser step, for dropout; `None` outside training, where nothing is dropped.
    pub step: Option<u64>,
    /// Positions of the samples in the global batch, for dropout.
    pub samples: Vec<u64>,
    /// Compute attention probabilities again in the backward pass.
    pub recompute_attention: bool,
}

/// Where this rank's slices lie in the global tensors, for positions and dropout.
#[derive(Debug, Clone, Copy)]
pub struct Slice {
    /// First head.
    pub head: usize,
    /// Which part of the sequence is here between blocks. All parts are as long, whatever a sample's length is.
    pub part: usize,
}

/// Token and position embedding.
#[derive(Debug, Clone)]
pub struct Embedding {
    pub(super) config: GptConfig,
    pub(super) slice: Slice,
    pub(super) token: VocabularyParallel,
    pub(super) position: Option<Parameter<2>>,
}

crate::module!(Embedding { token, position });

impl Embedding {
    /// tokens row-major `[batch, seq]`; gives `[batch, seq, hidden]`.
    pub fn forward(&self, tokens: &[i64], batch: usize, pass: &Pass) -> Result<Tensor<3>> {
        let x = self.token.embed(tokens, batch)?;
        let x = match &self.position {
            Some(table) => {
                let seq = x.dims()[1];
                let first = self.slice.part * seq;
                let [positions, _] = table.value.dims();
                if first + seq > positions {
                    return Err(Error::config(
                        format!("a sample of more tokens than the model's {positions} positions"),
                        "shorten the samples, or give the model a longer sequence",
                    ));
                }
                add_rows(x, table.value.clone(), first, table.sum.as_ref())?
            }
            None => x,
        };
        let site = rows_site("embedding", &x, &self.config, self.slice, pass);
        dropout(x, site.as_ref())
    }
}

/// One transformer block.
#[derive(Debug, Clone)]
pub struct Block {
    pub(super) norm1: Norm,
    pub(super) attention: Attention,
    pub(super) norm2: Norm,
    pub(super) mlp: Mlp,
}

crate::module!(Block {
    norm1,
    attention,
    norm2,
    mlp
});

impl Block {
    /// x `[batch, seq, hidden]`.
    pub fn forward(&self, x: Tensor<3>, pass: &Pass) -> Result<Tensor<3>> {
        let normed = self.norm1.forward(x.clone())?;
        let y = self.attention.forward(normed, pass)?;
        let site = self.attention.site(&y, pass);
        let (h, normed) = self.norm2.add(y, x, site.as_ref())?;
        let y = self.mlp.forward(normed)?;
        let site = self.mlp.site(&y, pass);
        add_dropout(y, h, site.as_ref())
    }
}

/// Layer norm or RMS norm.
#[derive(Debug, Clone)]
pub struct Norm {
    pub(super) kind: NormKind,
    pub(super) epsilon: f64,
    pub(super) weight: Parameter<1>,
    pub(super) bias: Option<Parameter<1>>,
}

crate::module!(Norm { weight, bias });

impl Norm {
    /// x `[batch, seq, hidden]`.
    pub fn forward(&self, x: Tensor<3>) -> Result<Tensor<3>> {
        let weight = self.weight.value.clone();
        match (self.kind, &self.bias) {
            (NormKind::Layer, Some(bias)) => {
                layer_norm(x, weight, bias.value.clone(), self.epsilon)
            }
            _ => rms_norm(x, weight, self.epsilon),
        }
    }

    /// `residual + dropout(x)` and its norm; x and residual `[batch, seq, hidden]`.
    pub fn add(
        &self,
        x: Tensor<3>,
        residual: Tensor<3>,
        site: Option<&Dropout>,
    ) -> Result<(Tensor<3>, Tensor<3>)> {
        let bias = self.bias.as_ref().map(|bias| bias.value.clone());
        let bias = bias.filter(|_| self.kind == NormKind::Layer);
        let weight = self.weight.value.clone();
        add_norm(x, residual, site, weight, bias, self.epsilon)
    }
}

/// Causal self-attention.
#[derive(Debug, Clone)]
pub struct Attention {
    pub(super) name: String,
    pub(super) config: GptConfig,
    pub(super) slice: Slice,
    /// Without learned positions.
    pub(super) rotary: Option<RotaryTable>,
    pub(super) qkv: ColumnParallelLinear,
    pub(super) output: RowParallelLinear,
}

crate::module!(Attention { qkv, output });

impl Attention {
    /// x `[batch, seq, hidden]`; the output is not dropped out yet.
    pub fn forward(&self, x: Tensor<3>, pass: &Pass) -> Result<Tensor<3>> {
        let d = self.config.head_dim();
        let qkv = self.qkv.forward(x)?; // [batch, seq, (heads + 2 kv_heads) head_dim]
        let [_, seq, width] = qkv.dims();
        let kv_heads =
            width / d * self.config.kv_heads / (self.config.heads + 2 * self.config.kv_heads);
        let heads = width / d - 2 * kv_heads;
        let sizes = SelfAttention {
            heads,
            kv_heads,
            rotary: self.rotary.clone(),
        };
        let context = self_attention(qkv, &sizes, &self.options(heads, seq, pass))?;
        self.output.forward(context)
    }

    /// The dropout of the output y `[batch, seq, hidden]`.
    fn site(&self, y: &Tensor<3>, pass: &Pass) -> Option<Dropout> {
        rows_site(&self.name, y, &self.config, self.slice, pass)
    }

    fn options(&self, heads: usize, seq: usize, pass: &Pass) -> AttentionOptions {
        AttentionOptions {
            recompute: pass.recompute_attention,
            dropout: site(
                format!("{}.probabilities", self.name),
                self.config.heads,
                [self.slice.head, 0, 0],
                [heads, seq, seq],
                &self.config,
                pass,
            ),
            ..AttentionOptions::causal(self.config.head_dim())
        }
    }
}

/// The feed-forward block.
#[derive(Debug, Clone)]
pub struct Mlp {
    pub(super) name: String,
    pub(super) config: GptConfig,
    pub(super) slice: Slice,
    pub(super) up: ColumnParallelLinear,
    pub(super) down: RowParallelLinear,
}

crate::module!(Mlp { up, down });

impl Mlp {
    /// x `[batch, seq, hidden]`; the output is not dropped out yet.
    pub fn forward(&self, x: Tensor<3>) -> Result<Tensor<3>> {
        feed_forward(x, &self.up, self.config.activation, &self.down)
    }

    /// The dropout of the output y `[batch, seq, hidden]`.
    fn site(&self, y: &Tensor<3>, pass: &Pass) -> Option<Dropout> {
        rows_site(&self.name, y, &self.config, self.slice, pass)
    }
}

/// Final norm and output projection.
#[derive(Debug, Clone)]
pub struct Head {
    pub(super) norm: Norm,
    pub(super) projection: VocabularyParallel,
}

crate::module!(Head { norm, projection });

impl Head {
    /// Cross entropy of every token `[batch * seq]`; x `[batch, seq, hidden]`, targets row-major, negative: ignored.
    pub fn loss(&self, x: Tensor<3>, targets: &[i64]) -> Result<Tensor<1>> {
        self.projection.loss(self.norm.forward(x)?, targets)
    }

    /// All logits `[batch * seq, vocabulary]`.
    pub fn logits(&self, x: Tensor<3>) -> Result<Tensor<2>> {
        self.projection.logits(self.norm.forward(x)?)
    }
}

fn site(
    name: String,
    global: usize,
    start: [usize; 3],
    len: [usize; 3],
    config: &GptConfig,
    pass: &Pass,
) -> Option<Dropout> {
    let step = pass.step.filter(|_| config.dropout > 0.0)?;
    Some(Dropout {
        probability: config.dropout,
        seed: pass.seed,
        step,
        name,
        samples: pass.samples.clone(),
        global,
        start,
        len,
    })
}

/// The dropout of this rank's rows x `[batch, seq, hidden]` between blocks.
fn rows_site(
    name: &str,
    x: &Tensor<3>,
    config: &GptConfig,
    slice: Slice,
    pass: &Pass,
) -> Option<Dropout> {
    let [_, seq, hidden] = x.dims();
    let (start, len) = ([0, slice.part * seq, 0], [1, seq, hidden]);
    site(name.into(), 1, start, len, config, pass)
}
