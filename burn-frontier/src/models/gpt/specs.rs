//! What every parameter is called, how large it is and how it lies on the tensor-parallel ranks, without allocating any.

use std::ops::Range;

use super::{Activation, GptConfig, NormKind, Positions};
use crate::parameter::{Init, ParameterSpec};
use crate::placement::Placement;
use crate::tensor_parallel::embedding::VocabularyParallel;
use crate::tensor_parallel::linear::LinearConfig;

/// Global name of the token embedding, which a tied head shares.
pub const TOKEN_EMBEDDING: &str = "embedding.token.weight";

/// Standard deviation of first weights (GPT-2).
const DEVIATION: f64 = 0.02;

/// The linear layers of a block.
pub(super) struct Linears {
    pub qkv: LinearConfig,
    pub output: LinearConfig,
    pub up: LinearConfig,
    pub down: LinearConfig,
}

impl GptConfig {
    /// The parameters of the part with the given blocks, in the order in which the part shows them. `gradient` is the
    /// placement of the gradients of parameters that every rank holds whole.
    pub fn part_specs(&self, blocks: Range<usize>, gradient: &Placement) -> Vec<ParameterSpec> {
        let mut specs = Vec::new();
        if blocks.start == 0 {
            specs.push(self.table_spec(TOKEN_EMBEDDING));
            specs.extend(self.position_spec(gradient));
        }
        let last = blocks.end == self.layers;
        for layer in blocks {
            let linears = self.linears(layer);
            let mut add = |(weight, bias): (ParameterSpec, Option<ParameterSpec>)| {
                specs.push(weight);
                specs.extend(bias);
            };
            add(self.norm_specs(&name(layer, "norm1"), gradient));
            add(linears.qkv.column_specs());
            add(linears.output.row_specs(gradient));
            add(self.norm_specs(&name(layer, "norm2"), gradient));
            add(linears.up.column_specs());
            add(linears.down.row_specs(gradient));
        }
        if last {
            let (weight, bias) = self.norm_specs("final_norm", gradient);
            specs.push(weight);
            specs.extend(bias);
            specs.push(self.head_spec());
        }
        specs
    }

    pub(super) fn head_spec(&self) -> ParameterSpec {
        self.table_spec(if self.tied {
            TOKEN_EMBEDDING
        } else {
            "head.weight"
        })
    }

    pub(super) fn table_spec(&self, name: &str) -> ParameterSpec {
        VocabularyParallel::spec(name, self.vocabulary, self.hidden, DEVIATION)
    }

    pub(super) fn position_spec(&self, gradient: &Placement) -> Option<ParameterSpec> {
        (self.positions == Positions::Learned).then(|| {
            replicated(
                "embedding.position.weight".into(),
                vec![self.sequence, self.hidden],
                gradient,
                Init::Normal(DEVIATION),
            )
        })
    }

    /// Weight, and bias for layer norm.
    pub(super) fn norm_specs(
        &self,
        name: &str,
        gradient: &Placement,
    ) -> (ParameterSpec, Option<ParameterSpec>) {
        let vector = |what: &str, value| {
            replicated(
                format!("{name}.{what}"),
                vec![self.hidden],
                gradient,
                Init::Constant(value),
            )
        };
        let bias = || vector("bias", 0.0);
        (
            vector("weight", 1.0),
            (self.norm == NormKind::Layer).then(bias),
        )
    }

    pub(super) fn linears(&self, layer: usize) -> Linears {
        let (hidden, ffn) = (self.hidden, self.ffn);
        let kv = self.kv_heads * self.head_dim();
        let up = match self.activation {
            Activation::Gelu => vec![ffn],
            Activation::Swiglu => vec![ffn, ffn],
        };
        // The two projections into the residual stream start smaller, so that its variance does not grow with depth.
        let residual = DEVIATION / (2.0 * self.layers as f64).sqrt();
        let linear = |what: &str, input, outputs, deviation| LinearConfig {
            name: name(layer, what),
            input,
            outputs,
            deviation,
            bias: self.bias,
        };
        Linears {
            qkv: linear("attention.qkv", hidden, vec![hidden, kv, kv], DEVIATION),
            output: linear("attention.output", hidden, vec![hidden], residual),
            up: linear("mlp.up", hidden, up, DEVIATION),
            down: linear("mlp.down", ffn, vec![hidden], residual),
        }
    }
}

/// Name of a part of a block.
pub(super) fn name(layer: usize, what: &str) -> String {
    format!("layers.{layer}.{what}")
}

/// A parameter that every rank holds whole.
fn replicated(name: String, shape: Vec<usize>, gradient: &Placement, init: Init) -> ParameterSpec {
    ParameterSpec {
        name,
        decay: shape.len() > 1,
        shape,
        placement: Placement::Replicated,
        gradient: gradient.clone(),
        init,
    }
}
