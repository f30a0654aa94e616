//! GELU (tanh form), SwiGLU and leaky ReLU.

use burn::tensor::{Tensor, activation};

use super::backends;
use super::gradient::with_gradient;
pub use super::problem::layers::Activation;
use super::problem::layers::{CUBIC, SCALE};
use crate::error::{Error, Result};

impl Activation {
    /// The nonlinearity of x, which has an even number of columns for SwiGLU.
    pub(super) fn apply(self, x: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Gelu => gelu(x),
            Self::Swiglu => gated(x),
        }
    }
}

/// GELU in its tanh form, `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))` (arXiv 1606.08415), element by element. Only x is
/// kept for the gradient.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let inner = x.clone().without_autodiff();
    let fused = backends::of(&inner.device()).gelu(inner.clone().into_dispatch());
    let y = match fused {
        Some(y) => Tensor::from_dispatch(y),
        None => {
            let gate = gelu_tanh(inner.clone()).add_scalar(1.0);
            inner.clone().mul_scalar(0.5).mul(gate)
        }
    };
    with_gradient([x.into_dispatch()], y, move |g| {
        [Some(gelu_gradient(inner, g).into_dispatch())]
    })
}

/// The gradient of [`gelu`]'s argument x.
pub(super) fn gelu_gradient<const D: usize>(x: Tensor<D>, g: Tensor<D>) -> Tensor<D> {
    let (at, from) = (x.clone().into_dispatch(), g.into_dispatch());
    let g = match backends::of(&x.device()).gelu_gradient(at, from) {
        Ok(dx) => return Tensor::from_dispatch(dx),
        Err(g) => Tensor::from_dispatch(*g),
    };
    // With t = tanh(u): dy/dx = (1 + t)/2 + x/2 (1 - t^2) du/dx, du/dx = scale (1 + 3 cubic x^2).
    let tanh = gelu_tanh(x.clone());
    let slope = (x.clone() * x.clone())
        .mul_scalar(3.0 * CUBIC * SCALE)
        .add_scalar(SCALE);
    let outer = (tanh.clone() * tanh.clone()).neg().add_scalar(1.0) * slope * x;
    g * (tanh.add_scalar(1.0) + outer).mul_scalar(0.5)
}

fn gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let inner = (x.clone() * x.clone()).mul_scalar(CUBIC).add_scalar(1.0) * x;
    inner.mul_scalar(SCALE).tanh()
}

/// `x`, and `slope x` where x is negative (leaky ReLU), element by element. Only x is kept for the gradient.
pub fn leaky_relu<const D: usize>(x: Tensor<D>, slope: f64) -> Tensor<D> {
    let inner = x.clone().without_autodiff();
    let backend = backends::of(&inner.device());
    let Some(y) = backend.leaky_relu(inner.clone().into_dispatch(), slope) else {
        return activation::leaky_relu(x, slope);
    };
    with_gradient(
        [x.into_dispatch()],
        Tensor::from_dispatch(y),
        move |g: Tensor<D>| {
            let (at, from) = (inner.into_dispatch(), g.into_dispatch());
            let dx = backend.leaky_relu_gradient(at, from, slope);
            [Some(dx.expect(
                "a gradient is where its value is, and of its type",
            ))]
        },
    )
}

/// SwiGLU, `silu(gate) * up` (arXiv 2002.05202). Only x is kept for the gradient.
///
/// # Shapes
/// x `[batch, seq, 2 * ffn]` with gate and up side by side; gives `[batch, seq, ffn]`.
///
/// # Errors
/// An odd last axis.
pub fn swiglu(x: Tensor<3>) -> Result<Tensor<3>> {
    match x.dims()[2] {
        columns if !columns.is_multiple_of(2) => Err(Error::config(
            format!("swiglu: x has {columns} columns, which are no pairs"),
            "give it the gate's columns and as many more",
        )),
        _ => Ok(gated(x)),
    }
}

/// [`swiglu`] of an even number of columns.
fn gated(x: Tensor<3>) -> Tensor<3> {
    let inner = x.clone().without_autodiff();
    let y = backends::of(&inner.device())
        .swiglu(&inner)
        .unwrap_or_else(|| {
            let (gate, up) = halves(inner.clone());
            activation::silu(gate) * up
        });
    with_gradient([x.into_dispatch()], y, move |g| {
        [Some(swiglu_gradient(inner, g).into_dispatch())]
    })
}

/// The gradient of [`swiglu`]'s argument x.
pub(super) fn swiglu_gradient(x: Tensor<3>, g: Tensor<3>) -> Tensor<3> {
    backends::of(&x.device())
        .swiglu_gradient(&x, &g)
        .unwrap_or_else(|| {
            let (gate, up) = halves(x);
            let sigmoid = activation::sigmoid(gate.clone());
            let value = gate.clone() * sigmoid.clone();
            // d silu / d gate = sigmoid (1 + gate (1 - sigmoid)).
            let slope = (gate * sigmoid.clone().neg().add_scalar(1.0)).add_scalar(1.0) * sigmoid;
            Tensor::cat(vec![g.clone() * up * slope, g * value], 2)
        })
}

/// Gate and up.
fn halves(x: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
    let ffn = x.dims()[2] / 2;
    (x.clone().narrow(2, 0, ffn), x.narrow(2, ffn, ffn))
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{DType, Device, TensorData};

    #[test]
    fn gelu_and_its_gradient_equal_the_formula_in_f64() {
        let device = Device::flex();
        let points: Vec<f64> = (-40..=40).map(|i| f64::from(i) * 0.1).collect();
        let x = Tensor::<1>::from_data(
            TensorData::new(points.clone(), [points.len()]),
            (&device, DType::F64),
        )
        .autodiff()
        .require_grad();
        let y = gelu(x.clone());
        let mut gradients = y.clone().sum().backward();
        let dx = x.grad_remove(&mut gradients).unwrap();
        let (y, dx) = (
            y.into_data().try_to_vec::<f64>().unwrap(),
            dx.into_data().try_to_vec::<f64>().unwrap(),
        );
        let formula = |x: f64| 0.5 * x * (1.0 + (SCALE * (x + CUBIC * x.powi(3))).tanh());
        for (i, &x) in points.iter().enumerate() {
            assert!((y[i] - formula(x)).abs() < 1e-14, "value at {x}");
            let slope = (formula(x + 1e-6) - formula(x - 1e-6)) / 2e-6;
            assert!((dx[i] - slope).abs() < 1e-8, "gradient at {x}");
        }
    }
}
