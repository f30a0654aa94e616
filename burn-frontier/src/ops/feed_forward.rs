//! The feed-forward block of a transformer: a layer, a nonlinearity, a layer.

use burn::tensor::Tensor;

use super::activation::{self, Activation};
use super::backends::{self, FeedForwardGradients};
use super::gradient::with_gradient;
use super::gradient_sum::LinearSums;
use super::linear::{check, composition, gradients};
pub use super::problem::layers::FeedForward;
use crate::error::{Error, Result};

impl FeedForward {
    pub(super) fn without_autodiff(&self) -> Self {
        let vector = |x: &Option<Tensor<1>>| x.as_ref().map(|x| x.clone().without_autodiff());
        Self {
            up: self.up.clone().without_autodiff(),
            up_bias: vector(&self.up_bias),
            activation: self.activation,
            down: self.down.clone().without_autodiff(),
            down_bias: vector(&self.down_bias),
        }
    }

    fn check(&self, x: &Tensor<3>) -> Result<()> {
        let (hidden, dtype, operation) = (x.dims()[2], x.dtype(), "feed_forward");
        let bias = self.up_bias.as_ref();
        check(operation, "the weight up", (hidden, dtype), &self.up, bias)?;
        let columns = self.up.dims()[1];
        let ffn = match self.activation {
            Activation::Gelu => columns,
            Activation::Swiglu => columns / 2,
        };
        if self.activation == Activation::Swiglu && !columns.is_multiple_of(2) {
            return Err(Error::config(
                format!(
                    "{operation}: SwiGLU takes pairs of columns, and the weight up has {columns}"
                ),
                "give it the gate's columns and as many more",
            ));
        }
        let bias = self.down_bias.as_ref();
        check(operation, "the weight down", (ffn, dtype), &self.down, bias)
    }
}

/// `activation(x U + u) D + d`.
///
/// On a GPU bias and nonlinearity are part of the first product, and the nonlinearity's derivative is part of the product
/// that gives its gradient; the nonlinearity's argument and value are kept for the backward pass.
///
/// # Shapes
/// x `[batch, seq, hidden]`; gives `[batch, seq, out]`.
///
/// # Errors
/// Others, or parameters of another type than x.
pub fn feed_forward(x: Tensor<3>, layers: FeedForward) -> Result<Tensor<3>> {
    feed_forward_with_sums(x, layers, &Default::default())
}

/// [`feed_forward`], whose backward pass may add the gradients of the parameters to sums, those of `up` first, rather than to
/// the graph's.
///
/// # Errors
/// Those of [`feed_forward`].
pub fn feed_forward_with_sums(
    x: Tensor<3>,
    layers: FeedForward,
    sums: &[LinearSums; 2],
) -> Result<Tensor<3>> {
    let (x0, plain) = (x.clone().without_autodiff(), layers.without_autodiff());
    plain.check(&x0)?;
    let backend = backends::of(&x0.device());
    let Some((y, fused)) = backend.feed_forward(&x0, &plain, sums) else {
        backend.refusal()?;
        return Ok(by_layers(x, layers));
    };
    let constant = || x0.clone().into_dispatch();
    let inputs = [
        x.into_dispatch(),
        layers.up.into_dispatch(),
        layers.up_bias.map_or_else(constant, Tensor::into_dispatch),
        layers.down.into_dispatch(),
        layers
            .down_bias
            .map_or_else(constant, Tensor::into_dispatch),
    ];
    Ok(with_gradient(inputs, y, move |g| {
        let found = fused(g.clone()).unwrap_or_else(|| by_hand(x0, plain, g));
        [
            Some(found.x.into_dispatch()),
            found.up.0.map(Tensor::into_dispatch),
            found.up.1.map(Tensor::into_dispatch),
            found.down.0.map(Tensor::into_dispatch),
            found.down.1.map(Tensor::into_dispatch),
        ]
    }))
}

/// The definition.
fn by_layers(x: Tensor<3>, layers: FeedForward) -> Tensor<3> {
    let argument = composition(x, layers.up, layers.up_bias);
    let value = layers.activation.apply(argument);
    composition(value, layers.down, layers.down_bias)
}

/// The gradients by Burn's own operations, which compute the first layer again.
fn by_hand(x: Tensor<3>, layers: FeedForward, g: Tensor<3>) -> FeedForwardGradients {
    let (up_bias, down_bias) = (layers.up_bias.is_some(), layers.down_bias.is_some());
    let argument = composition(x.clone(), layers.up.clone(), layers.up_bias);
    let value = layers.activation.apply(argument.clone());
    let (g, down) = gradients(value, layers.down, down_bias, g);
    let g = match layers.activation {
        Activation::Gelu => activation::gelu_gradient(argument, g),
        Activation::Swiglu => activation::swiglu_gradient(argument, g),
    };
    let (x, up) = gradients(x, layers.up, up_bias, g);
    FeedForwardGradients { x, up, down }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::Place;
    use burn::tensor::TensorData;

    fn leaf<const D: usize>(x: Tensor<D>) -> Tensor<D> {
        x.autodiff().require_grad()
    }

    #[test]
    fn the_gradients_by_hand_are_those_of_the_layers() {
        for (activation, columns) in [(Activation::Gelu, 6), (Activation::Swiglu, 12)] {
            let place = Place::exact();
            let plain = FeedForward {
                up: place.constant([4, columns], 1),
                up_bias: Some(place.constant([columns], 2)),
                activation,
                down: place.constant([6, 4], 3),
                down_bias: Some(place.constant([4], 4)),
            };
            let (x, g) = (place.constant([2, 3, 4], 5), place.constant([2, 3, 4], 6));
            let own = by_hand(x.clone(), plain.clone(), g.clone());
            let tracked = FeedForward {
                up: leaf(plain.up),
                up_bias: plain.up_bias.map(leaf),
                activation,
                down: leaf(plain.down),
                down_bias: plain.down_bias.map(leaf),
            };
            let x = leaf(x);
            let y = feed_forward(x.clone(), tracked.clone()).unwrap();
            let all = (y * g).sum().backward();
            let close = |own: TensorData, expected: TensorData| {
                for (own, expected) in own.iter::<f64>().zip(expected.iter::<f64>()) {
                    assert!((own - expected).abs() < 1e-12, "{own} {expected}");
                }
            };
            close(own.x.into_data(), x.grad(&all).unwrap().into_data());
            for (own, tracked) in [(own.up.0, tracked.up), (own.down.0, tracked.down)] {
                close(
                    own.unwrap().into_data(),
                    tracked.grad(&all).unwrap().into_data(),
                );
            }
            for (own, tracked) in [(own.up.1, tracked.up_bias), (own.down.1, tracked.down_bias)] {
                let expected = tracked.unwrap().grad(&all).unwrap();
                close(own.unwrap().into_data(), expected.into_data());
            }
        }
    }
}
