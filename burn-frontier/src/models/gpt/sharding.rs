//! How a GPT is split: which blocks a pipeline part holds, and how every parameter lies on the tensor-parallel ranks.

use std::ops::Range;

use burn::tensor::Device;

use super::model::{Attention, Block, Embedding, Head, Mlp, Norm, Slice};
use super::{Activation, GptConfig, NormKind, Positions};
use crate::comm::groups::Groups;
use crate::error::Result;
use crate::ops::rotary::RotaryTable;
use crate::parameter::{Init, Parameter, ParameterContext, ParameterSpec};
use crate::pipeline::run::Pipeline;
use crate::pipeline::schedule::{Kind, split_layers};
use crate::placement::Placement;
use crate::tensor_parallel::embedding::VocabularyParallel;
use crate::tensor_parallel::linear::LinearConfig;

/// Global name of the token embedding, which a tied head shares.
pub const TOKEN_EMBEDDING: &str = "embedding.token.weight";

/// Base of the rotary angles.
const ROTARY_BASE: f64 = 10_000.0;

/// Standard deviation of first weights (GPT-2).
const DEVIATION: f64 = 0.02;

/// A pipeline part: consecutive blocks, with the embedding before the first and the head behind the last.
#[derive(Debug, Clone)]
pub struct GptPart {
    /// First part only.
    pub embedding: Option<Embedding>,
    /// The blocks.
    pub blocks: Vec<Block>,
    /// Last part only.
    pub head: Option<Head>,
    pub(super) hidden: usize,
    pub(super) sequence_split: usize,
    pub(super) device: Device,
}

crate::module!(GptPart {
    embedding,
    blocks,
    head
});

impl GptConfig {
    /// Makes the part with the given blocks.
    pub fn init_part(&self, blocks: Range<usize>, context: &ParameterContext) -> GptPart {
        let place = (&context.device, context.dtype);
        let table = || RotaryTable::new(self.sequence, self.head_dim(), ROTARY_BASE, place);
        let split = Split {
            config: self,
            context,
            rotary: (self.positions == Positions::Rotary).then(table),
        };
        GptPart {
            embedding: (blocks.start == 0).then(|| split.embedding()),
            head: (blocks.end == self.layers).then(|| split.head()),
            blocks: blocks.map(|layer| split.block(layer)).collect(),
            hidden: self.hidden,
            device: context.device.clone(),
            sequence_split: if context.sequence_parallel {
                context.tp.size()
            } else {
                1
            },
        }
    }
}

impl GptConfig {
    /// Makes this rank's stage: its share of the layers, with their first values, ready to run in the order of `kind`.
    ///
    /// # Errors
    /// A model that cannot be split so, found before anything is allocated.
    pub fn init(
        &self,
        kind: Kind,
        groups: &Groups,
        context: &ParameterContext,
    ) -> Result<Pipeline<GptPart>> {
        let (stages, stage) = (groups.layout.pp, groups.at.pp);
        self.validate(&groups.layout, context.sequence_parallel)?;
        // A stage's chunks are as far apart as there are stages.
        let blocks = split_layers(self.layers, stages * kind.chunks())?;
        let blocks = blocks.into_iter().skip(stage).step_by(stages);
        let parts = blocks
            .map(|blocks| self.init_part(blocks, context))
            .collect();
        let (device, dtype) = (context.device.clone(), context.dtype);
        Pipeline::new(parts, kind, groups.clone(), device, dtype)
    }

    /// The parameter that first and last stage share, if they are two and the head is tied.
    pub fn tied_parameter(&self, groups: &Groups) -> Option<&'static str> {
        (self.tied && groups.layout.pp > 1).then_some(TOKEN_EMBEDDING)
    }
}

struct Split<'a> {
    config: &'a GptConfig,
    context: &'a ParameterContext,
    rotary: Option<RotaryTable>,
}

impl Split<'_> {
    fn slice(&self) -> Slice {
        let tp = &self.context.tp;
        let token = if self.context.sequence_parallel {
            tp.rank() * (self.config.sequence / tp.size())
        } else {
            0
        };
        Slice {
            head: tp.rank() * (self.config.heads / tp.size()),
            token,
        }
    }

    /// A parameter that every rank holds whole.
    fn replicated(&self, name: String, shape: Vec<usize>, init: Init) -> ParameterSpec {
        ParameterSpec {
            name,
            decay: shape.len() > 1,
            shape,
            placement: Placement::Replicated,
            gradient: self.context.replicated_gradient(),
            init,
        }
    }

    fn embedding(&self) -> Embedding {
        let config = self.config;
        let position = || {
            let shape = vec![config.sequence, config.hidden];
            let spec = self.replicated(
                "embedding.position.weight".into(),
                shape,
                Init::Normal(DEVIATION),
            );
            Parameter::init(spec, self.context)
        };
        Embedding {
            config: config.clone(),
            slice: self.slice(),
            token: self.table(TOKEN_EMBEDDING),
            position: (config.positions == Positions::Learned).then(position),
        }
    }

    fn table(&self, name: &str) -> VocabularyParallel {
        let config = self.config;
        VocabularyParallel::init(
            name,
            config.vocabulary,
            config.hidden,
            DEVIATION,
            self.context,
        )
    }

    fn head(&self) -> Head {
        Head {
            norm: self.norm("final_norm"),
            projection: self.table(if self.config.tied {
                TOKEN_EMBEDDING
            } else {
                "head.weight"
            }),
        }
    }

    fn norm(&self, name: &str) -> Norm {
        let vector = |what: &str, value| {
            let spec = self.replicated(
                format!("{name}.{what}"),
                vec![self.config.hidden],
                Init::Constant(value),
            );
            Parameter::init(spec, self.context)
        };
        Norm {
            kind: self.config.norm,
            epsilon: self.config.epsilon,
            weight: vector("weight", 1.0),
            bias: (self.config.norm == NormKind::Layer).then(|| vector("bias", 0.0)),
        }
    }

    fn linear(
        &self,
        name: String,
        input: usize,
        outputs: Vec<usize>,
        deviation: f64,
    ) -> LinearConfig {
        LinearConfig {
            name,
            input,
            outputs,
            deviation,
            bias: self.config.bias,
        }
    }

    fn block(&self, layer: usize) -> Block {
        let (config, context, slice) = (self.config, self.context, self.slice());
        let (hidden, ffn) = (config.hidden, config.ffn);
        let kv = config.kv_heads * config.head_dim();
        let up = match config.activation {
            Activation::Gelu => vec![ffn],
            Activation::Swiglu => vec![ffn, ffn],
        };
        // The two projections into the residual stream start smaller, so that its variance does not grow with depth.
        let residual = DEVIATION / (2.0 * config.layers as f64).sqrt();
        let name = |what: &str| format!("layers.{layer}.{what}");
        Block {
            norm1: self.norm(&name("norm1")),
            attention: Attention {
                name: name("attention"),
                config: config.clone(),
                slice,
                rotary: self.rotary.clone(),
                qkv: self
                    .linear(
                        name("attention.qkv"),
                        hidden,
                        vec![hidden, kv, kv],
                        DEVIATION,
                    )
                    .init_column(context),
                output: self
                    .linear(name("attention.output"), hidden, vec![hidden], residual)
                    .init_row(context),
            },
            norm2: self.norm(&name("norm2")),
            mlp: Mlp {
                name: name("mlp"),
                config: config.clone(),
                slice,
                up: self
                    .linear(name("mlp.up"), hidden, up, DEVIATION)
                    .init_column(context),
                down: self
                    .linear(name("mlp.down"), ffn, vec![hidden], residual)
                    .init_row(context),
            },
        }
    }
}
