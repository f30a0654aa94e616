//! Layer norm (arXiv 1607.06450) and RMS norm (arXiv 1910.07467) over the last dimension, with gradients of their own:
//! one saved input instead of the composition's seven.

use burn::tensor::{Tensor, module};

use super::backends;
use super::gradient::with_gradient;

/// `(x - mean) / sqrt(var + epsilon) * weight + bias`.
///
/// # Shapes
/// x `[batch, seq, hidden]`, weight and bias `[hidden]`.
pub fn layer_norm(x: Tensor<3>, weight: Tensor<1>, bias: Tensor<1>, epsilon: f64) -> Tensor<3> {
    let (x0, w0) = (
        x.clone().without_autodiff(),
        weight.clone().without_autodiff(),
    );
    let b0 = bias.clone().without_autodiff();
    let (y, fused) = match backends::norm(&x0, &w0, Some(&b0), epsilon) {
        Some((y, backward)) => (y, Some(backward)),
        None => (
            module::layer_norm(x0.clone(), w0.clone(), Some(b0), epsilon),
            None,
        ),
    };
    let inputs = [
        x.into_dispatch(),
        weight.into_dispatch(),
        bias.into_dispatch(),
    ];
    with_gradient(inputs, y, move |g| {
        if let Some(fused) = fused.and_then(|backward| backward(g.clone())) {
            let bias = fused.bias.map(Tensor::into_dispatch);
            return [
                Some(fused.x.into_dispatch()),
                Some(fused.weight.into_dispatch()),
                bias,
            ];
        }
        let centered = x0.clone() - x0.mean_dim(2);
        let deviation = (centered.clone() * centered.clone())
            .mean_dim(2)
            .add_scalar(epsilon)
            .sqrt();
        let normal = centered / deviation.clone();
        let d_bias = sum_tokens(g.clone());
        let d_weight = sum_tokens(g.clone() * normal.clone());
        let g = g * w0.unsqueeze();
        let along = (g.clone() * normal.clone()).mean_dim(2);
        let d_x = (g.clone() - g.mean_dim(2) - normal * along) / deviation;
        [
            Some(d_x.into_dispatch()),
            Some(d_weight.into_dispatch()),
            Some(d_bias.into_dispatch()),
        ]
    })
}

/// `x / sqrt(mean(x^2) + epsilon) * weight`.
///
/// # Shapes
/// x `[batch, seq, hidden]`, weight `[hidden]`.
pub fn rms_norm(x: Tensor<3>, weight: Tensor<1>, epsilon: f64) -> Tensor<3> {
    let (x0, w0) = (
        x.clone().without_autodiff(),
        weight.clone().without_autodiff(),
    );
    let root = move |x: Tensor<3>| (x.clone() * x).mean_dim(2).add_scalar(epsilon).sqrt();
    let (y, fused) = match backends::norm(&x0, &w0, None, epsilon) {
        Some((y, backward)) => (y, Some(backward)),
        None => (x0.clone() / root(x0.clone()) * w0.clone().unsqueeze(), None),
    };
    with_gradient([x.into_dispatch(), weight.into_dispatch()], y, move |g| {
        if let Some(fused) = fused.and_then(|backward| backward(g.clone())) {
            return [
                Some(fused.x.into_dispatch()),
                Some(fused.weight.into_dispatch()),
            ];
        }
        let deviation = root(x0.clone());
        let normal = x0 / deviation.clone();
        let d_weight = sum_tokens(g.clone() * normal.clone());
        let g = g * w0.unsqueeze();
        let along = (g.clone() * normal.clone()).mean_dim(2);
        let d_x = (g - normal * along) / deviation;
        [Some(d_x.into_dispatch()), Some(d_weight.into_dispatch())]
    })
}

/// Sum over batch and sequence.
fn sum_tokens(x: Tensor<3>) -> Tensor<1> {
    let [batch, seq, hidden] = x.dims();
    x.reshape([batch * seq, hidden])
        .sum_dim(0)
        .reshape([hidden])
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{DType, Device, TensorData};

    fn values(n: usize, seed: u32) -> Vec<f64> {
        let mut s = seed;
        (0..n)
            .map(|_| {
                s = s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                f64::from(s) / 2f64.powi(31) - 1.0
            })
            .collect()
    }

    fn leaf<const D: usize>(shape: [usize; D], seed: u32) -> Tensor<D> {
        let data = TensorData::new(values(shape.iter().product(), seed), shape);
        Tensor::from_data(data, (&Device::flex(), DType::F64))
            .autodiff()
            .require_grad()
    }

    /// Plain composition, differentiated by Burn.
    fn reference(
        x: Tensor<3>,
        weight: Tensor<1>,
        bias: Option<Tensor<1>>,
        epsilon: f64,
    ) -> Tensor<3> {
        let x = if bias.is_some() {
            x.clone() - x.mean_dim(2)
        } else {
            x
        };
        let square = (x.clone() * x.clone()).mean_dim(2).add_scalar(epsilon);
        let y = x / square.sqrt() * weight.unsqueeze();
        match bias {
            Some(bias) => y + bias.unsqueeze(),
            None => y,
        }
    }

    fn gradients_agree(with_bias: bool) {
        let run = |own: bool| {
            let (x, w, b) = (leaf([2, 3, 5], 1), leaf([5], 2), leaf([5], 3));
            let y = match (own, with_bias) {
                (true, true) => layer_norm(x.clone(), w.clone(), b.clone(), 1e-5),
                (true, false) => rms_norm(x.clone(), w.clone(), 1e-5),
                (false, _) => reference(x.clone(), w.clone(), with_bias.then(|| b.clone()), 1e-5),
            };
            let g = leaf([2, 3, 5], 4);
            let gradients = (y.clone() * g).sum().backward();
            let mut all = y.into_data().try_to_vec::<f64>().unwrap();
            all.extend(
                x.grad(&gradients)
                    .unwrap()
                    .into_data()
                    .try_to_vec::<f64>()
                    .unwrap(),
            );
            all.extend(
                w.grad(&gradients)
                    .unwrap()
                    .into_data()
                    .try_to_vec::<f64>()
                    .unwrap(),
            );
            if with_bias {
                all.extend(
                    b.grad(&gradients)
                        .unwrap()
                        .into_data()
                        .try_to_vec::<f64>()
                        .unwrap(),
                );
            }
            all
        };
        for (own, plain) in run(true).iter().zip(run(false)) {
            assert!((own - plain).abs() < 1e-12, "{own} {plain}");
        }
    }

    #[test]
    fn layer_norm_equals_the_plain_composition() {
        gradients_agree(true);
    }

    #[test]
    fn rms_norm_equals_the_plain_composition() {
        gradients_agree(false);
    }
}
