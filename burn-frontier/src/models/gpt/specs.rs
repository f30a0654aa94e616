//! The parameters, declared: what every one is called, how large it is, how it begins and how it lies on the tensor-parallel
//! ranks. The model is made from this list ([`super::sharding`]); without it nothing is allocated.

use std::ops::Range;

use super::{Activation, GptConfig, NormKind, Positions};
use crate::parameter::{Init, ParameterSpec};
use crate::placement::Placement;
use crate::tensor_parallel::embedding::VocabularyParallel;
use crate::tensor_parallel::linear::{AffineSpecs, LinearConfig};

/// Global name of the token embedding, which a tied head shares.
pub const TOKEN_EMBEDDING: &str = "embedding.token.weight";

/// Standard deviation of first weights (GPT-2).
const DEVIATION: f64 = 0.02;

/// Most of a width and of a length for which no size overflows; whatever is wider has more parameters than can be counted.
const COUNTABLE: (usize, usize) = (1 << 31, 1 << 40);

/// What stands in front of the blocks.
pub(super) struct EmbeddingSpecs {
    pub token: ParameterSpec,
    pub position: Option<ParameterSpec>,
}

/// A block.
pub(super) struct BlockSpecs {
    pub norm1: AffineSpecs,
    pub qkv: AffineSpecs,
    pub output: AffineSpecs,
    pub norm2: AffineSpecs,
    pub up: AffineSpecs,
    pub down: AffineSpecs,
}

/// What stands behind the blocks.
pub(super) struct HeadSpecs {
    pub norm: AffineSpecs,
    pub projection: ParameterSpec,
}

impl EmbeddingSpecs {
    pub fn list(self) -> Vec<ParameterSpec> {
        [Some(self.token), self.position]
            .into_iter()
            .flatten()
            .collect()
    }
}

impl BlockSpecs {
    pub fn list(self) -> Vec<ParameterSpec> {
        let (attention, mlp) = ([self.qkv, self.output], [self.up, self.down]);
        let all = [self.norm1].into_iter().chain(attention);
        let all = all.chain([self.norm2]).chain(mlp);
        all.flat_map(AffineSpecs::list).collect()
    }
}

impl HeadSpecs {
    pub fn list(self) -> Vec<ParameterSpec> {
        self.norm.list().chain([self.projection]).collect()
    }
}

/// Declares the parameters of a model whose replicated ones have gradients that are placed so.
pub(super) struct Declaration<'a> {
    pub config: &'a GptConfig,
    pub gradient: &'a Placement,
}

impl Declaration<'_> {
    pub fn embedding(&self) -> EmbeddingSpecs {
        let config = self.config;
        let positions = || ParameterSpec {
            init: Init::Normal(DEVIATION),
            ..self.replicated(
                "embedding.position.weight".into(),
                vec![config.sequence, config.hidden],
            )
        };
        EmbeddingSpecs {
            token: self.table(TOKEN_EMBEDDING),
            position: (config.positions == Positions::Learned).then(positions),
        }
    }

    pub fn block(&self, layer: usize) -> BlockSpecs {
        let config = self.config;
        let (hidden, ffn) = (config.hidden, config.ffn);
        let kv = config.kv_heads * config.head_dim();
        let up = match config.activation {
            Activation::Gelu => vec![ffn],
            Activation::Swiglu => vec![ffn, ffn],
        };
        // The two projections into the residual stream start smaller, so that its variance does not grow with depth.
        let residual = DEVIATION / (2.0 * config.layers as f64).sqrt();
        let linear = |what: &str, input, outputs, deviation| LinearConfig {
            name: name(layer, what),
            input,
            outputs,
            deviation,
            bias: config.bias,
        };
        let column = |what, input, outputs| linear(what, input, outputs, DEVIATION).column();
        let row = |what, input| linear(what, input, vec![hidden], residual).row(self.gradient);
        BlockSpecs {
            norm1: self.norm(&name(layer, "norm1")),
            qkv: column("attention.qkv", hidden, vec![hidden, kv, kv]),
            output: row("attention.output", hidden),
            norm2: self.norm(&name(layer, "norm2")),
            up: column("mlp.up", hidden, up),
            down: row("mlp.down", ffn),
        }
    }

    pub fn head(&self) -> HeadSpecs {
        HeadSpecs {
            norm: self.norm("final_norm"),
            projection: self.table(match self.config.tied {
                true => TOKEN_EMBEDDING,
                false => "head.weight",
            }),
        }
    }

    fn table(&self, name: &str) -> ParameterSpec {
        let config = self.config;
        VocabularyParallel::spec(name, config.vocabulary, config.hidden, DEVIATION)
    }

    /// Weight, and bias for layer norm.
    fn norm(&self, name: &str) -> AffineSpecs {
        let vector = |what: &str, value| ParameterSpec {
            init: Init::Constant(value),
            ..self.replicated(format!("{name}.{what}"), vec![self.config.hidden])
        };
        AffineSpecs {
            weight: vector("weight", 1.0),
            bias: (self.config.norm == NormKind::Layer).then(|| vector("bias", 0.0)),
        }
    }

    /// A parameter that every rank holds whole.
    fn replicated(&self, name: String, shape: Vec<usize>) -> ParameterSpec {
        ParameterSpec {
            name,
            decay: shape.len() > 1,
            shape,
            placement: Placement::Replicated,
            gradient: self.gradient.clone(),
            init: Init::Constant(0.0),
        }
    }
}

impl GptConfig {
    /// The declaration of the parameters, where those that every rank holds whole have gradients that are placed so.
    pub(super) fn declared<'a>(&'a self, gradient: &'a Placement) -> Declaration<'a> {
        Declaration {
            config: self,
            gradient,
        }
    }

    /// The parameters of the part with the given blocks, in the order in which the part shows them. `gradient` is the
    /// placement of the gradients of parameters that every rank holds whole.
    pub fn part_specs(&self, blocks: Range<usize>, gradient: &Placement) -> Vec<ParameterSpec> {
        let declared = self.declared(gradient);
        let mut specs = Vec::new();
        if blocks.start == 0 {
            specs.extend(declared.embedding().list());
        }
        let last = blocks.end == self.layers;
        specs.extend(blocks.flat_map(|layer| declared.block(layer).list()));
        if last {
            specs.extend(declared.head().list());
        }
        specs
    }

    /// Parameters, without vocabulary padding; `usize::MAX` of a model that is too large to count them.
    pub fn parameters(&self) -> usize {
        let widest = self.hidden.max(self.heads).max(self.kv_heads);
        let longest = self.ffn.max(self.vocabulary).max(self.sequence);
        if widest > COUNTABLE.0 || longest > COUNTABLE.1 {
            return usize::MAX;
        }
        let declared = self.declared(&Placement::Replicated);
        let elements = |specs: Vec<ParameterSpec>| {
            let of = |spec: &ParameterSpec| {
                spec.shape
                    .iter()
                    .fold(1, |n: usize, &m| n.saturating_mul(m))
            };
            specs.iter().map(of).fold(0, usize::saturating_add)
        };
        let mut head = declared.head().list();
        head.retain(|spec| spec.name != TOKEN_EMBEDDING);
        let blocks = elements(declared.block(0).list()).saturating_mul(self.layers);
        let ends = elements(declared.embedding().list()).saturating_add(elements(head));
        blocks.saturating_add(ends)
    }
}

/// Name of a part of a block.
pub(super) fn name(layer: usize, what: &str) -> String {
    format!("layers.{layer}.{what}")
}
