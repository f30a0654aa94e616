//! Linear layers split over the tensor-parallel ranks.

use burn::tensor::Tensor;

use super::maps;
use crate::comm::Group;
use crate::error::Result;
use crate::ops::activation::Activation;
use crate::ops::feed_forward::{FeedForward, feed_forward_with_sums};
use crate::ops::gradient_sum::LinearSums;
use crate::ops::linear::linear_with_sums;
use crate::parameter::{Init, Parameter, ParameterContext, ParameterSpec};
use crate::placement::Placement;

/// A linear layer whose outputs are split: `[in, out]` by columns.
#[derive(Debug, Clone)]
pub struct ColumnParallelLinear {
    /// `[in, out / tp]`.
    pub weight: Parameter<2>,
    /// `[out / tp]`.
    pub bias: Option<Parameter<1>>,
    tp: Group,
    sequence_parallel: bool,
}

crate::module!(ColumnParallelLinear { weight, bias });

/// A linear layer whose inputs are split: `[in, out]` by rows.
#[derive(Debug, Clone)]
pub struct RowParallelLinear {
    /// `[in / tp, out]`.
    pub weight: Parameter<2>,
    /// `[out]`, on every rank.
    pub bias: Option<Parameter<1>>,
    tp: Group,
    sequence_parallel: bool,
}

crate::module!(RowParallelLinear { weight, bias });

/// What both kinds are made from.
#[derive(Debug, Clone)]
pub struct LinearConfig {
    /// Global name; `.weight` and `.bias` are added.
    pub name: String,
    /// Input features.
    pub input: usize,
    /// Output features: the parts that are split one by one, side by side (one for a plain layer).
    pub outputs: Vec<usize>,
    /// Standard deviation of the first weights.
    pub deviation: f64,
    /// Whether there is a bias.
    pub bias: bool,
}

impl LinearConfig {
    fn spec(
        &self,
        what: &str,
        shape: Vec<usize>,
        placement: Placement,
        init: Init,
    ) -> ParameterSpec {
        ParameterSpec {
            name: format!("{}.{what}", self.name),
            decay: shape.len() > 1,
            shape,
            gradient: placement.clone(),
            placement,
            init,
        }
    }

    /// The parameters of a column-parallel layer.
    pub fn column(&self) -> AffineSpecs {
        let output = self.outputs.iter().sum();
        let placement = |dim| Placement::Sharded {
            dim,
            parts: self.outputs.clone(),
            multiple: 1,
        };
        let weight = self.spec(
            "weight",
            vec![self.input, output],
            placement(1),
            Init::Normal(self.deviation),
        );
        let bias = || self.spec("bias", vec![output], placement(0), Init::Constant(0.0));
        AffineSpecs {
            weight,
            bias: self.bias.then(bias),
        }
    }

    /// The parameters of a row-parallel layer; `gradient` is that of replicated parameters.
    pub fn row(&self, gradient: &Placement) -> AffineSpecs {
        let output = self.outputs.iter().sum();
        let weight = self.spec(
            "weight",
            vec![self.input, output],
            Placement::sharded(0, self.input),
            Init::Normal(self.deviation),
        );
        let bias = || ParameterSpec {
            gradient: gradient.clone(),
            ..self.spec(
                "bias",
                vec![output],
                Placement::Replicated,
                Init::Constant(0.0),
            )
        };
        AffineSpecs {
            weight,
            bias: self.bias.then(bias),
        }
    }
}

/// The parameters of a linear layer or of a norm.
#[derive(Debug, Clone, PartialEq)]
pub struct AffineSpecs {
    /// What multiplies.
    pub weight: ParameterSpec,
    /// What is added, if anything is.
    pub bias: Option<ParameterSpec>,
}

impl AffineSpecs {
    /// Both, weight first.
    pub fn list(self) -> impl Iterator<Item = ParameterSpec> {
        [Some(self.weight), self.bias].into_iter().flatten()
    }
}

impl ColumnParallelLinear {
    /// Makes the layer of a [`LinearConfig::column`].
    pub fn init(specs: AffineSpecs, context: &ParameterContext) -> Self {
        let bias = specs.bias;
        Self {
            weight: Parameter::init(specs.weight, context),
            bias: bias.map(|bias| Parameter::init(bias, context)),
            tp: context.tp.clone(),
            sequence_parallel: context.sequence_parallel,
        }
    }

    /// `x W + b`, this rank's columns.
    ///
    /// # Shapes
    /// x `[batch, seq, in]` (`seq / tp` under sequence parallelism); gives `[batch, seq, out / tp]`.
    ///
    /// # Communication
    /// Over tp: backward all-reduce of x's gradient; under sequence parallelism all-gather of x, reduce-scatter of its gradient.
    ///
    /// # Errors
    /// Another width, or another type than the weight's.
    pub fn forward(&self, x: Tensor<3>) -> Result<Tensor<3>> {
        let (weight, bias) = (self.weight.value.clone(), value(&self.bias));
        linear_with_sums(self.enter(x), weight, bias, &sums(&self.weight, &self.bias))
    }

    /// What every rank multiplies with its columns.
    fn enter(&self, x: Tensor<3>) -> Tensor<3> {
        if self.sequence_parallel {
            maps::gather_from_sp(x, &self.tp)
        } else {
            maps::copy_to_tp(x, &self.tp)
        }
    }
}

impl RowParallelLinear {
    /// Makes the layer of a [`LinearConfig::row`].
    pub fn init(specs: AffineSpecs, context: &ParameterContext) -> Self {
        let bias = specs.bias;
        Self {
            weight: Parameter::init(specs.weight, context),
            bias: bias.map(|bias| Parameter::init(bias, context)),
            tp: context.tp.clone(),
            sequence_parallel: context.sequence_parallel,
        }
    }

    /// `x W + b`, summed over the ranks' rows.
    ///
    /// # Shapes
    /// x `[batch, seq, in / tp]`; gives `[batch, seq, out]` (`seq / tp` under sequence parallelism).
    ///
    /// # Communication
    /// Over tp: forward all-reduce of the output; under sequence parallelism reduce-scatter, and all-gather of the gradient.
    ///
    /// # Errors
    /// Another width, or another type than the weight's.
    pub fn forward(&self, x: Tensor<3>) -> Result<Tensor<3>> {
        let (weight, bias) = (self.weight.value.clone(), self.early_bias());
        let y = linear_with_sums(x, weight, bias, &sums(&self.weight, &self.bias))?;
        Ok(self.leave(y))
    }

    /// The bias, where nothing is added between the product and it.
    fn early_bias(&self) -> Option<Tensor<1>> {
        value(&self.bias).filter(|_| self.tp.size() == 1)
    }

    /// The output from the ranks' products.
    fn leave(&self, y: Tensor<3>) -> Tensor<3> {
        let y = if self.sequence_parallel {
            maps::reduce_scatter_to_sp(y, &self.tp)
        } else {
            maps::reduce_from_tp(y, &self.tp)
        };
        match value(&self.bias).filter(|_| self.tp.size() > 1) {
            Some(bias) => y + bias.unsqueeze(),
            None => y,
        }
    }
}

/// A column-parallel layer, a nonlinearity and a row-parallel layer as one operation (arXiv 1909.08053, figure 3a).
///
/// # Shapes
/// x and the result `[batch, seq, hidden]` (`seq / tp` under sequence parallelism).
///
/// # Communication
/// Of [`ColumnParallelLinear::forward`] and [`RowParallelLinear::forward`].
///
/// # Errors
/// Shapes or types that do not fit.
pub fn feed_forward(
    x: Tensor<3>,
    up: &ColumnParallelLinear,
    activation: Activation,
    down: &RowParallelLinear,
) -> Result<Tensor<3>> {
    let layers = FeedForward {
        up: up.weight.value.clone(),
        up_bias: value(&up.bias),
        activation,
        down: down.weight.value.clone(),
        down_bias: down.early_bias(),
    };
    let sums = [sums(&up.weight, &up.bias), sums(&down.weight, &down.bias)];
    let y = feed_forward_with_sums(up.enter(x), layers, &sums)?;
    Ok(down.leave(y))
}

/// Where a layer's backward pass may add its parameters' gradients.
fn sums(weight: &Parameter<2>, bias: &Option<Parameter<1>>) -> LinearSums {
    LinearSums {
        weight: weight.sum.clone(),
        bias: bias.as_ref().and_then(|bias| bias.sum.clone()),
    }
}

fn value(bias: &Option<Parameter<1>>) -> Option<Tensor<1>> {
    bias.as_ref().map(|bias| bias.value.clone())
}
