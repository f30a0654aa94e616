//! How a GPT is split: which blocks a pipeline part holds, made from the declaration of its parameters ([`super::specs`]).

use std::ops::Range;

use burn::tensor::Device;

use super::model::{Attention, Block, Embedding, Head, Mlp, Norm, Slice};
pub use super::specs::TOKEN_EMBEDDING;
use super::specs::{BlockSpecs, EmbeddingSpecs, HeadSpecs, name};
use super::{GptConfig, Positions};
use crate::comm::groups::Groups;
use crate::error::Result;
use crate::ops::rotary::RotaryTable;
use crate::parameter::{Parameter, ParameterContext};
use crate::pipeline::run::Pipeline;
use crate::pipeline::schedule::{Kind, split_layers};
use crate::tensor_parallel::embedding::VocabularyParallel;
use crate::tensor_parallel::linear::{AffineSpecs, ColumnParallelLinear, RowParallelLinear};

/// Base of the rotary angles.
const ROTARY_BASE: f64 = 10_000.0;

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
    pub(super) vocabulary: usize,
    /// Most tokens of a sample.
    pub(super) sequence: usize,
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
        let gradient = context.replicated_gradient();
        let declared = self.declared(&gradient);
        let block = |layer| split.block(layer, declared.block(layer));
        GptPart {
            embedding: (blocks.start == 0).then(|| split.embedding(declared.embedding())),
            head: (blocks.end == self.layers).then(|| split.head(declared.head())),
            blocks: blocks.map(block).collect(),
            hidden: self.hidden,
            vocabulary: self.vocabulary,
            sequence: self.sequence,
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
        let pipeline = Pipeline::new(parts, kind, groups.clone(), context.device.clone())?;
        Ok(pipeline.with_tied(self.tied_parameter(groups)))
    }

    /// The parameter that first and last stage share, if they are two and the head is tied.
    pub fn tied_parameter(&self, groups: &Groups) -> Option<&'static str> {
        (self.tied && groups.layout.pp > 1).then_some(TOKEN_EMBEDDING)
    }
}

/// Makes a rank's modules from their declared parameters.
struct Split<'a> {
    config: &'a GptConfig,
    context: &'a ParameterContext,
    rotary: Option<RotaryTable>,
}

impl Split<'_> {
    fn slice(&self) -> Slice {
        let tp = &self.context.tp;
        Slice {
            head: tp.rank() * (self.config.heads / tp.size()),
            part: if self.context.sequence_parallel {
                tp.rank()
            } else {
                0
            },
        }
    }

    fn embedding(&self, specs: EmbeddingSpecs) -> Embedding {
        let position = specs.position;
        Embedding {
            config: self.config.clone(),
            slice: self.slice(),
            token: VocabularyParallel::init(specs.token, self.context),
            position: position.map(|spec| Parameter::init(spec, self.context)),
        }
    }

    fn head(&self, specs: HeadSpecs) -> Head {
        Head {
            norm: self.norm(specs.norm),
            projection: VocabularyParallel::init(specs.projection, self.context),
        }
    }

    fn norm(&self, specs: AffineSpecs) -> Norm {
        let bias = specs.bias;
        Norm {
            kind: self.config.norm,
            epsilon: self.config.epsilon,
            weight: Parameter::init(specs.weight, self.context),
            bias: bias.map(|bias| Parameter::init(bias, self.context)),
        }
    }

    fn block(&self, layer: usize, specs: BlockSpecs) -> Block {
        let (config, context, slice) = (self.config, self.context, self.slice());
        Block {
            norm1: self.norm(specs.norm1),
            attention: Attention {
                name: name(layer, "attention"),
                config: config.clone(),
                slice,
                rotary: self.rotary.clone(),
                qkv: ColumnParallelLinear::init(specs.qkv, context),
                output: RowParallelLinear::init(specs.output, context),
            },
            norm2: self.norm(specs.norm2),
            mlp: Mlp {
                name: name(layer, "mlp"),
                config: config.clone(),
                slice,
                up: ColumnParallelLinear::init(specs.up, context),
                down: RowParallelLinear::init(specs.down, context),
            },
        }
    }
}
