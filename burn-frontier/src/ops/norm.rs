//! Layer norm (arXiv 1607.06450) and RMS norm (arXiv 1910.07467) over the last dimension, with gradients of their own:
//! one saved input instead of the composition's seven. With the residual and the dropout in front of them as one operation.

use burn::tensor::{Tensor, module};

use super::backends::{self, NormGradients};
use super::dropout::{Dropout, add_dropout, check_site, gradient};
use super::gradient::{with_gradient, with_gradients};
use super::problem::layers::NormParameters;
use super::shape::{expect, expect_type};
use crate::error::Result;

/// `(x - mean) / sqrt(var + epsilon) * weight + bias`.
///
/// # Shapes
/// x `[batch, seq, hidden]`, weight and bias `[hidden]`.
///
/// # Errors
/// Others, or parameters of another type than x.
pub fn layer_norm(
    x: Tensor<3>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    epsilon: f64,
) -> Result<Tensor<3>> {
    check("layer_norm", &x, &weight, Some(&bias))?;
    norm(x, weight, Some(bias), epsilon)
}

/// `x / sqrt(mean(x^2) + epsilon) * weight`.
///
/// # Shapes
/// x `[batch, seq, hidden]`, weight `[hidden]`.
///
/// # Errors
/// Others, or a weight of another type than x.
pub fn rms_norm(x: Tensor<3>, weight: Tensor<1>, epsilon: f64) -> Result<Tensor<3>> {
    check("rms_norm", &x, &weight, None)?;
    norm(x, weight, None, epsilon)
}

fn check(
    operation: &str,
    x: &Tensor<3>,
    weight: &Tensor<1>,
    bias: Option<&Tensor<1>>,
) -> Result<()> {
    let hidden = [x.dims()[2]];
    for (what, parameter) in [("the weight", Some(weight)), ("the bias", bias)] {
        if let Some(parameter) = parameter {
            expect(
                operation,
                what,
                parameter.dims(),
                hidden,
                "[hidden], as the last axis of x",
            )?;
            expect_type(operation, what, parameter, x.dtype())?;
        }
    }
    Ok(())
}

fn norm(
    x: Tensor<3>,
    weight: Tensor<1>,
    bias: Option<Tensor<1>>,
    epsilon: f64,
) -> Result<Tensor<3>> {
    let x0 = x.clone().without_autodiff();
    let parameters = NormParameters::new(&weight, bias.as_ref(), epsilon);
    let backend = backends::of(&x0.device());
    let (y, fused) = match backend.norm(&x0, &parameters) {
        Some((y, backward)) => (y, Some(backward)),
        None => {
            backend.refusal()?;
            (parameters.forward(x0.clone()), None)
        }
    };
    // A missing bias is a constant, and has no gradient.
    let bias = bias.map_or_else(|| x0.clone().into_dispatch(), Tensor::into_dispatch);
    Ok(with_gradient(
        [x.into_dispatch(), weight.into_dispatch(), bias],
        y,
        move |g| {
            let gradients = fused
                .and_then(|backward| backward(g.clone()))
                .unwrap_or_else(|| parameters.gradients(x0, g));
            [
                Some(gradients.x.into_dispatch()),
                Some(gradients.weight.into_dispatch()),
                gradients.bias.map(Tensor::into_dispatch),
            ]
        },
    ))
}

/// `sum = residual + dropout(x)` and its norm, a layer norm with a bias and an RMS norm without: what stands between two
/// blocks of a transformer. Gives the sum and the norm.
///
/// On a GPU one kernel reads x and the residual and writes both results, and one reads their gradients and writes those of x
/// and the residual; no mask and no intermediate is in memory.
///
/// # Shapes
/// x, residual and the results `[batch, seq, hidden]`, weight and bias `[hidden]`; `site` describes x as
/// `[sample, 1, seq, hidden]`.
///
/// # Errors
/// Other shapes, or a residual or parameters of another type than x.
pub fn add_norm(
    x: Tensor<3>,
    residual: Tensor<3>,
    site: Option<&Dropout>,
    weight: Tensor<1>,
    bias: Option<Tensor<1>>,
    epsilon: f64,
) -> Result<(Tensor<3>, Tensor<3>)> {
    check("add_norm", &x, &weight, bias.as_ref())?;
    check_site("add_norm", &x, Some(&residual), site)?;
    let parameters = NormParameters::new(&weight, bias.as_ref(), epsilon);
    let plain = [&x, &residual].map(|x| x.clone().without_autodiff());
    let backend = backends::of(&x.device());
    let Some((outputs, fused)) = backend.add_norm(plain.each_ref(), site, &parameters) else {
        drop(plain);
        let sum = add_dropout(x, residual, site)?;
        return Ok((sum.clone(), norm(sum, weight, bias, epsilon)?));
    };
    let (site, kept) = (site.cloned(), outputs[0].clone());
    let inputs = [
        x.into_dispatch(),
        residual.into_dispatch(),
        weight.into_dispatch(),
        bias.map_or_else(|| kept.clone().into_dispatch(), Tensor::into_dispatch),
    ];
    let [sum, normed] = with_gradients(inputs, outputs, move |[d_sum, g]| {
        let g = g.unwrap_or_else(|| kept.zeros_like());
        let (residual, norm) = fused(g.clone(), d_sum.clone()).unwrap_or_else(|| {
            let mut norm = parameters.gradients(kept, g);
            let residual = match d_sum {
                Some(d_sum) => norm.x + d_sum,
                None => norm.x,
            };
            norm.x = match &site {
                Some(site) => gradient(residual.clone(), site),
                None => residual.clone(),
            };
            (residual, norm)
        });
        [
            Some(norm.x.into_dispatch()),
            Some(residual.into_dispatch()),
            Some(norm.weight.into_dispatch()),
            norm.bias.map(Tensor::into_dispatch),
        ]
    });
    Ok((sum, normed))
}

impl NormParameters {
    fn new(weight: &Tensor<1>, bias: Option<&Tensor<1>>, epsilon: f64) -> Self {
        Self {
            weight: weight.clone().without_autodiff(),
            bias: bias.map(|bias| bias.clone().without_autodiff()),
            epsilon,
        }
    }

    /// The norm by Burn's own operations.
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let weight = self.weight.clone();
        match &self.bias {
            Some(bias) => module::layer_norm(x, weight, Some(bias.clone()), self.epsilon),
            None => x.clone() / self.deviation(x) * weight.unsqueeze(),
        }
    }

    /// What a row is divided by, of x without its mean.
    fn deviation(&self, x: Tensor<3>) -> Tensor<3> {
        let variance = (x.clone() * x).mean_dim(2);
        variance.add_scalar(self.epsilon).sqrt()
    }

    /// The gradients from that of the norm of x, by Burn's own operations.
    fn gradients(&self, x: Tensor<3>, g: Tensor<3>) -> NormGradients {
        let layer = self.bias.is_some();
        let centered = if layer { x.clone() - x.mean_dim(2) } else { x };
        let deviation = self.deviation(centered.clone());
        let normal = centered / deviation.clone();
        let bias = layer.then(|| sum_tokens(g.clone()));
        let weight = sum_tokens(g.clone() * normal.clone());
        let g = g * self.weight.clone().unsqueeze();
        let along = (g.clone() * normal.clone()).mean_dim(2);
        let g = if layer { g.clone() - g.mean_dim(2) } else { g };
        NormGradients {
            x: (g - normal * along) / deviation,
            weight,
            bias,
        }
    }
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
    use crate::ops::testing::Place;
    use burn::tensor::{DType, Device};

    fn leaf<const D: usize>(shape: [usize; D], seed: u32) -> Tensor<D> {
        Place::exact().leaf(shape, seed)
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
                (true, true) => layer_norm(x.clone(), w.clone(), b.clone(), 1e-5).unwrap(),
                (true, false) => rms_norm(x.clone(), w.clone(), 1e-5).unwrap(),
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
    fn add_norm_equals_the_plain_composition() {
        let site = Dropout {
            probability: 0.3,
            seed: 1,
            step: 2,
            name: "site".into(),
            samples: vec![4, 9],
            global: 1,
            start: [0, 2, 0],
            len: [1, 3, 5],
        };
        let run = |own: bool, bias: bool| {
            let leaves = [1, 2, 3].map(|seed| leaf([2, 3, 5], seed));
            let [x, residual, g] = leaves.clone();
            let (weight, b) = (leaf([5], 4), bias.then(|| leaf([5], 5)));
            let (sum, normed) = if own {
                add_norm(x, residual, Some(&site), weight.clone(), b.clone(), 1e-5).unwrap()
            } else {
                let mask = site.mask(&Device::flex(), DType::F64).reshape([2, 3, 5]);
                let sum = residual + x * mask;
                (sum.clone(), reference(sum, weight.clone(), b.clone(), 1e-5))
            };
            // The sum goes on beside what is made of its norm, as in a transformer.
            let y = sum + normed.clone() * g;
            let gradients = (y.clone() * y.clone()).sum().backward();
            let mut all = vec![y.into_data(), normed.into_data()];
            all.extend(leaves.map(|x| x.grad(&gradients).unwrap().into_data()));
            let parameters = [Some(weight), b].into_iter().flatten();
            all.extend(parameters.map(|x| x.grad(&gradients).unwrap().into_data()));
            let all = all.into_iter().map(|x| x.try_into_vec::<f64>().unwrap());
            all.collect::<Vec<_>>().concat()
        };
        for bias in [false, true] {
            for (own, plain) in run(true, bias).iter().zip(run(false, bias)) {
                assert!((own - plain).abs() < 1e-12, "{own} {plain}");
            }
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
