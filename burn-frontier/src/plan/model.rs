//! What the planner asks a model.

use serde::{Deserialize, Serialize};

use super::machine::Program;
use crate::error::{Error, Result};
use crate::mesh::Layout;
use crate::observe::flops::Flops;
use crate::parameter::ParameterSpec;
use crate::placement::Placement;
use crate::recompute::Recompute;

/// A model that can be planned for: its parameters, the work of its passes, and the bytes that they keep.
///
/// Its layers are alike, but for their names; whatever is not is in front of the first or behind the last. A model that says
/// only what it must is planned on replicas ([`Outline`](super::Outline) is one, made of any module's parameters); the other
/// answers let the planner split it over tensor-parallel ranks and pipeline stages.
pub trait Planned: Clone + PartialEq {
    /// The model in words, such as `4 layers, hidden 128`.
    fn describe(&self) -> String;

    /// Parameters of a layer. `gradient` is the placement of the gradients of those that every rank holds whole.
    fn layer_specs(&self, gradient: &Placement) -> Vec<ParameterSpec>;

    /// Forward work of a micro-batch, and what the backward pass moves.
    fn work(&self, share: &Share) -> Work;

    /// Bytes of the activations of a micro-batch.
    fn activations(&self, share: &Share) -> Activations;

    /// Floating-point operations of a token, or of a sample of a model that knows no tokens, with `tp` tensor-parallel ranks.
    fn flops(&self, recompute: Recompute, tp: usize) -> Flops;

    /// Elements of the largest activation of a sample before it is split.
    fn largest_activation(&self) -> u128;

    /// Parameters in front of the first layer.
    fn first_specs(&self, _gradient: &Placement) -> Vec<ParameterSpec> {
        Vec::new()
    }

    /// Parameters behind the last layer.
    fn last_specs(&self, _gradient: &Placement) -> Vec<ParameterSpec> {
        Vec::new()
    }

    /// Name of the parameter that stands both in front of the layers and behind them, if one does.
    fn tied(&self) -> Option<&str> {
        None
    }

    /// Layers that pipeline stages can share.
    fn layers(&self) -> usize {
        1
    }

    /// Tokens of a sample; 1 of a model that knows none.
    fn tokens(&self) -> usize {
        1
    }

    /// Width of the residual stream, by which a machine's measured passes are told apart; `None`: none were measured.
    fn width(&self) -> Option<usize> {
        None
    }

    /// Bytes that the optimizer keeps of a parameter beside its value in fp32: of AdamW two moments.
    fn moment_bytes(&self) -> f64 {
        8.0
    }

    /// Bytes of what every rank holds and does not train.
    fn frozen_bytes(&self) -> f64 {
        0.0
    }

    /// Parameters, each counted once, without padding.
    fn parameters(&self) -> usize {
        let gradient = Placement::Replicated;
        let count = |specs: Vec<ParameterSpec>| -> usize {
            let elements = specs
                .iter()
                .map(|spec| spec.shape.iter().product::<usize>());
            elements.sum()
        };
        let mut last = self.last_specs(&gradient);
        last.retain(|spec| self.tied() != Some(spec.name.as_str()));
        let layers = self.layers() * count(self.layer_specs(&gradient));
        count(self.first_specs(&gradient)) + layers + count(last)
    }

    /// Whether the model makes sense and can be split by `layout`.
    ///
    /// # Errors
    /// The first thing that cannot work, with what would. Unless the model says otherwise it cannot be split.
    fn validate(&self, layout: &Layout, _sequence_parallel: bool) -> Result<()> {
        layout.validated()?;
        if layout.tp * layout.pp == 1 {
            return Ok(());
        }
        Err(Error::config(
            format!(
                "{} does not say how it is split, and the layout is {layout}",
                self.describe()
            ),
            "use tp 1 and pp 1, or implement more of `Planned` for it",
        ))
    }

    /// The model as one of `ranks` context-parallel ranks sees it: with its tokens of every sample.
    ///
    /// # Errors
    /// What does not divide, with what would. Unless the model says otherwise its samples cannot be shared.
    fn on_context_rank(&self, ranks: usize, _tp: usize, _exchange: Exchange) -> Result<Self> {
        if ranks == 1 {
            return Ok(self.clone());
        }
        Err(Error::config(
            format!(
                "{} does not say how {ranks} ranks share a sample",
                self.describe()
            ),
            "use no context parallelism",
        ))
    }
}

/// How the ranks of a context-parallel group see each other's keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exchange {
    /// Blocks of keys and values go around a ring beside attention; every rank has an early and a late block of the
    /// sequence, so that a causal mask leaves all of them equal work (arXiv 2310.01889).
    #[default]
    Ring,
    /// All-to-alls before and after attention, between which a rank has whole sequences of fewer heads (arXiv 2309.14509).
    Ulysses,
}

/// One rank's share of a micro-batch, and how it is computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share {
    /// Tokens, or samples of a model that knows no tokens: those of this rank's context-parallel share.
    pub tokens: usize,
    /// Tensor-parallel ranks.
    pub tp: usize,
    /// Whether activations are split along the sequence between tensor-parallel regions.
    pub sequence_parallel: bool,
    /// Context-parallel ranks.
    pub context: usize,
    /// How those see each other's keys and values.
    pub exchange: Exchange,
    /// Bytes of an element.
    pub element: f64,
    /// What is computed again in the backward pass.
    pub recompute: Recompute,
    /// Whether attention is one kernel that never writes its scores.
    pub fused_attention: bool,
    /// Whether the kernels are those of the CPU, which keep less for the backward pass: of the feed-forward block the argument of its
    /// nonlinearity alone, and queries and keys before their rotation.
    pub cpu_kernels: bool,
    /// What decides what is kept for the backward pass.
    pub program: Program,
}

impl Share {
    /// Ranks between which activations are split along the sequence.
    pub fn sequence_split(&self) -> f64 {
        if self.sequence_parallel {
            self.tp as f64
        } else {
            1.0
        }
    }
}

/// What the passes of a micro-batch do on one rank.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Work {
    /// A layer.
    pub layer: LayerWork,
    /// Bytes of the activation between two layers, those of all tensor-parallel ranks together.
    pub stream: f64,
    /// Bytes that a pass through an embedding in front of the layers moves.
    pub embedding: Option<f64>,
    /// A projection behind the layers, and its loss.
    pub head: Option<HeadWork>,
}

/// What a micro-batch's passes through a layer do on one rank.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LayerWork {
    /// Weight matrices that tokens are multiplied with, `[in, out]`.
    pub matrices: Vec<(f64, f64)>,
    /// Attention.
    pub attention: Option<AttentionWork>,
    /// Forward operations whose shapes are not said: the machine is taken to reach its highest rate in them.
    pub flops: f64,
    /// Bytes that norms, activations, residuals and the like move in a forward pass.
    pub forward_bytes: f64,
    /// The same in a backward pass.
    pub backward_bytes: f64,
    /// Kernels of a forward pass, in those of a transformer's layer.
    pub kernels: f64,
}

/// What attention does on one rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionWork {
    /// Elements of all score matrices.
    pub scores: f64,
    /// Elements of a head.
    pub head_dim: f64,
    /// Elements of the queries.
    pub queries: f64,
    /// Elements of keys and values together.
    pub key_value: f64,
}

/// A projection onto classes or a vocabulary, and the loss of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadWork {
    /// Its matrix, `[in, out]`.
    pub matrix: (f64, f64),
    /// Bytes that the loss moves in a pass.
    pub loss_bytes: f64,
}

/// Bytes of a micro-batch's activations on one rank.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Activations {
    /// What a layer hands on.
    pub handed_on: f64,
    /// What a layer keeps until its backward pass, its input included.
    pub layer: f64,
    /// What a layer's backward pass needs besides.
    pub backward: f64,
    /// Keys, values and their gradients on their way between context-parallel ranks.
    pub exchanged: f64,
    /// What a layer's gradients of weights need if they wait (zero-bubble schedules).
    pub weight: f64,
    /// What the last stage keeps of a loss whose backward pass is not the next.
    pub loss: f64,
    /// What the passes through the head need when they need most.
    pub head: f64,
}
