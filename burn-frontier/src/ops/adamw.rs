//! AdamW (arXiv 1711.05101) over a flat run of parameters.

use burn::tensor::{DType, Tensor};

use super::backends;
pub use super::problem::adamw::{AdamWState, AdamWStep};
use super::shape::{expect, expect_type};
use crate::error::{Error, Result};

/// One AdamW step, in place where nobody else holds the tensors. Gives the new state, and its parameters in the type
/// `weights`, with which the model computes.
///
/// # Errors
/// Gradient or moments of another length or type than the parameters, or on another device; kernels that are required
/// refuse it.
pub fn adamw(
    state: AdamWState,
    gradient: Tensor<1>,
    step: &AdamWStep,
    weights: DType,
) -> Result<(AdamWState, Tensor<1>)> {
    check(&state, &gradient)?;
    let backend = backends::of(&gradient.device());
    let (state, gradient) = match backend.adamw(state, gradient, step, weights) {
        Ok(done) => return Ok(done),
        Err(given_back) => *given_back,
    };
    backend.refusal()?;
    let state = reference(state, gradient, step);
    let weights = state.parameters.clone().cast(weights);
    Ok((state, weights))
}

/// Fails unless all is of the parameters' kind: a run that is shorter would be updated in part.
fn check(state: &AdamWState, gradient: &Tensor<1>) -> Result<()> {
    let parameters = &state.parameters;
    let device = parameters.device().without_autodiff();
    for (what, x) in [
        ("the gradient", gradient),
        ("the first moment", &state.first),
        ("the second moment", &state.second),
    ] {
        expect(
            "adamw",
            what,
            x.dims(),
            parameters.dims(),
            "as long as the parameters",
        )?;
        expect_type("adamw", what, x, parameters.dtype())?;
        if x.device().without_autodiff() != device {
            return Err(Error::config(
                format!(
                    "adamw: {what} is on {:?}, and the parameters on {device:?}",
                    x.device()
                ),
                "move one of them",
            ));
        }
    }
    Ok(())
}

/// The definition, on any device.
pub fn reference(state: AdamWState, gradient: Tensor<1>, s: &AdamWStep) -> AdamWState {
    let g = gradient.mul_scalar(s.gradient_scale);
    let first = state.first.mul_scalar(s.beta1) + g.clone().mul_scalar(1.0 - s.beta1);
    let second = state.second.mul_scalar(s.beta2) + (g.clone() * g).mul_scalar(1.0 - s.beta2);
    let [correction1, correction2] = s.corrections();
    let denominator = second
        .clone()
        .sqrt()
        .div_scalar(correction2.sqrt())
        .add_scalar(s.epsilon);
    let decayed = state
        .parameters
        .mul_scalar(1.0 - s.learning_rate * s.weight_decay);
    AdamWState {
        parameters: decayed
            - (first.clone() / denominator).mul_scalar(s.learning_rate / correction1),
        first,
        second,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::Place;
    use burn::tensor::Device;

    #[test]
    fn a_gradient_that_is_not_the_parameters_is_refused() {
        let run = |n: usize, dtype| Tensor::<1>::ones([n], (&Device::flex(), dtype));
        let step = AdamWStep {
            learning_rate: 1e-2,
            weight_decay: 0.1,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            step: 1,
            gradient_scale: 1.0,
        };
        for (gradient, second, says) in [
            (
                run(4, DType::F32),
                run(5, DType::F32),
                "the gradient has shape [4]",
            ),
            (
                run(5, DType::F64),
                run(5, DType::F32),
                "the gradient is of F64",
            ),
            (
                run(5, DType::F32),
                run(6, DType::F32),
                "the second moment has shape [6]",
            ),
        ] {
            let state = AdamWState {
                parameters: run(5, DType::F32),
                first: run(5, DType::F32),
                second,
            };
            let error = adamw(state, gradient, &step, DType::F32)
                .unwrap_err()
                .to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn the_fast_way_equals_the_definition() {
        let place = Place::new(&Device::flex(), DType::F32);
        let n = 40_000;
        let zeros = Tensor::<1>::zeros([n], &Device::flex());
        let start = AdamWState {
            parameters: place.constant([n], 1),
            first: zeros.clone(),
            second: zeros,
        };
        let (mut fast, mut plain) = (start.clone(), start);
        for step in 1..=5 {
            let numbers = AdamWStep {
                learning_rate: 1e-2,
                weight_decay: 0.1,
                beta1: 0.9,
                beta2: 0.95,
                epsilon: 1e-8,
                step,
                gradient_scale: 0.5,
            };
            let gradient = place.constant([n], 1 + step as u32);
            (fast, _) = adamw(fast, gradient.clone(), &numbers, DType::F32).unwrap();
            plain = reference(plain, gradient, &numbers);
        }
        let (fast, plain) = (fast.parameters.into_data(), plain.parameters.into_data());
        for (a, b) in fast.iter::<f32>().zip(plain.iter::<f32>()) {
            assert!((a - b).abs() < 2e-6, "{a} {b}");
        }
    }
}
