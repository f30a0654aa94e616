//! GELU (tanh form) and SwiGLU.

use burn::tensor::{Tensor, activation};

use super::gradient::with_gradient;

/// sqrt(2 / pi).
const SCALE: f64 = 0.797_884_560_802_865_4;
const CUBIC: f64 = 0.044_715;

/// GELU in its tanh form, `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))` (arXiv 1606.08415), element by element.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let inner = x.clone().without_autodiff();
    let tanh = gelu_tanh(inner.clone());
    let y = inner
        .clone()
        .mul_scalar(0.5)
        .mul(tanh.clone().add_scalar(1.0));
    with_gradient([x.into_dispatch()], y, move |g| {
        // With t = tanh(u): dy/dx = (1 + t)/2 + x/2 (1 - t^2) du/dx, du/dx = scale (1 + 3 cubic x^2).
        let slope = (inner.clone() * inner.clone())
            .mul_scalar(3.0 * CUBIC * SCALE)
            .add_scalar(SCALE);
        let outer = (tanh.clone() * tanh.clone()).neg().add_scalar(1.0) * slope * inner;
        [Some(
            (g * (tanh.add_scalar(1.0) + outer).mul_scalar(0.5)).into_dispatch(),
        )]
    })
}

fn gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let inner = (x.clone() * x.clone()).mul_scalar(CUBIC).add_scalar(1.0) * x;
    inner.mul_scalar(SCALE).tanh()
}

/// SwiGLU, `silu(gate) * up` (arXiv 2002.05202).
///
/// # Shapes
/// x `[batch, seq, 2 * ffn]` with gate and up side by side; gives `[batch, seq, ffn]`.
pub fn swiglu(x: Tensor<3>) -> Tensor<3> {
    let ffn = x.dims()[2] / 2;
    let gate = x.clone().narrow(2, 0, ffn);
    let up = x.narrow(2, ffn, ffn);
    activation::silu(gate) * up
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
