//! How a GPT is split: which blocks a pipeline part holds, and how every parameter lies on the tensor-parallel ranks.

use std::ops::Range;

use burn::tensor::Device;

use super::model::{Attention, Block, Embedding, Head, Mlp, Norm, Slice};
pub use super::specs::TOKEN_EMBEDDING;
use super::specs::name;
use super::{GptConfig, Positions};
use crate::comm::groups::Groups;
use crate::error::Result;
use crate::ops::rotary::RotaryTable;
use crate::parameter::{Parameter, ParameterContext};
use crate::pipeline::run::Pipeline;
use crate::pipeline::schedule::{Kind, split_layers};
use crate::placement::Placement;
use crate::tensor_parallel::embedding::VocabularyParallel;

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
        GptPart {
            embedding: (blocks.start == 0).then(|| split.embedding()),
            head: (blocks.end == self.layers).then(|| split.head()),
            blocks: blocks.map(|layer| split.block(layer)).collect(),
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

    fn gradient(&self) -> Placement {
        self.context.replicated_gradient()
    }

    fn embedding(&self) -> Embedding {
        let position = self.config.position_spec(&self.gradient());
        Embedding {
            config: self.config.clone(),
            slice: self.slice(),
            token: VocabularyParallel::init(self.config.table_spec(TOKEN_EMBEDDING), self.context),
            position: position.map(|spec| Parameter::init(spec, self.context)),
        }
    }

    fn head(&self) -> Head {
        Head {
            norm: self.norm("final_norm"),
            projection: VocabularyParallel::init(self.config.head_spec(), self.context),
        }
    }

    fn norm(&self, name: &str) -> Norm {
        let (weight, bias) = self.config.norm_specs(name, &self.gradient());
        Norm {
            kind: self.config.norm,
            epsilon: self.config.epsilon,
            weight: Parameter::init(weight, self.context),
            bias: bias.map(|bias| Parameter::init(bias, self.context)),
        }
    }

    fn block(&self, layer: usize) -> Block {
        let (config, context, slice) = (self.config, self.context, self.slice());
        let linears = config.linears(layer);
        Block {
            norm1: self.norm(&name(layer, "norm1")),
            attention: Attention {
                name: name(layer, "attention"),
                config: config.clone(),
                slice,
                rotary: self.rotary.clone(),
                qkv: linears.qkv.init_column(context),
                output: linears.output.init_row(context),
            },
            norm2: self.norm(&name(layer, "norm2")),
            mlp: Mlp {
                name: name(layer, "mlp"),
                config: config.clone(),
                slice,
                up: linears.up.init_column(context),
                down: linears.down.init_row(context),
            },
        }
    }
}
