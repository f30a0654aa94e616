//! AdamW (arXiv 1711.05101) over a flat run of parameters.

use burn::tensor::{DType, Tensor};

use super::backends;
use super::shape::{expect, expect_type};
use crate::error::{Error, Result};

/// One step's numbers, as PyTorch's `AdamW` names them.
#[derive(Debug, Clone, Copy)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decoupled weight decay; zero for parameters that do not decay.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Number of this step, from 1, for the bias corrections.
    pub step: u64,
    /// Factor on the gradient: clipping and loss scale together.
    pub gradient_scale: f64,
}

/// Parameters and moments of a run, `[n]` each.
#[derive(Debug, Clone)]
pub struct AdamWState {
    /// Parameters in full precision.
    pub parameters: Tensor<1>,
    /// First moment.
    pub first: Tensor<1>,
    /// Second moment.
    pub second: Tensor<1>,
}

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
    let (state, gradient) = match backends::adamw(state, gradient, step, weights) {
        Ok(done) => return Ok(done),
        Err(given_back) => *given_back,
    };
    super::kernels::check()?;
    let state = plain(state, gradient, step);
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

fn plain(state: AdamWState, gradient: Tensor<1>, step: &AdamWStep) -> AdamWState {
    #[cfg(feature = "flex")]
    if flex::applies(&state.parameters) {
        return flex::adamw(state, gradient, step);
    }
    reference(state, gradient, step)
}

/// The definition, on any device.
pub fn reference(state: AdamWState, gradient: Tensor<1>, s: &AdamWStep) -> AdamWState {
    let g = gradient.mul_scalar(s.gradient_scale);
    let first = state.first.mul_scalar(s.beta1) + g.clone().mul_scalar(1.0 - s.beta1);
    let second = state.second.mul_scalar(s.beta2) + (g.clone() * g).mul_scalar(1.0 - s.beta2);
    let (step_size, root_correction) = corrections(s);
    let denominator = second
        .clone()
        .sqrt()
        .div_scalar(root_correction)
        .add_scalar(s.epsilon);
    let decayed = state
        .parameters
        .mul_scalar(1.0 - s.learning_rate * s.weight_decay);
    AdamWState {
        parameters: decayed - (first.clone() / denominator).mul_scalar(step_size),
        first,
        second,
    }
}

impl AdamWStep {
    /// What is left of both moments' bias, `1 - beta^step`.
    pub(super) fn corrections(&self) -> [f64; 2] {
        let power = i32::try_from(self.step).unwrap_or(i32::MAX);
        [self.beta1, self.beta2].map(|beta| 1.0 - beta.powi(power))
    }
}

/// Learning rate over the first bias correction, and the root of the second.
fn corrections(s: &AdamWStep) -> (f64, f64) {
    let [first, second] = s.corrections();
    (s.learning_rate / first, second.sqrt())
}

/// One pass over memory instead of a dozen, in place.
#[cfg(feature = "flex")]
mod flex {
    use burn::backend::Flex;
    use burn::backend::flex::FlexTensor;
    use burn::tensor::{DType, Tensor};
    use rayon::prelude::*;

    use super::{AdamWState, AdamWStep, corrections};

    /// Elements that one task updates.
    const CHUNK: usize = 1 << 14;

    pub fn applies(x: &Tensor<1>) -> bool {
        x.dtype() == DType::F32 && x.clone().try_into_primitive::<Flex>().is_ok()
    }

    fn primitive(x: Tensor<1>) -> Option<FlexTensor> {
        let x = x.try_into_primitive::<Flex>().ok()?;
        let whole = x.as_slice::<f32>().map(<[f32]>::len) == Some(x.storage::<f32>().len());
        // `storage_mut` hands out the whole storage, so a view is made a tensor of its own first.
        Some(if whole {
            x
        } else {
            FlexTensor::from_data(x.into_data())
        })
    }

    pub fn adamw(state: AdamWState, gradient: Tensor<1>, step: &AdamWStep) -> AdamWState {
        let all = [state.parameters, state.first, state.second, gradient].map(primitive);
        let [Some(mut p), Some(mut m), Some(mut v), Some(g)] = all else {
            unreachable!("the state and the gradient are on one device");
        };
        update(
            p.storage_mut(),
            m.storage_mut(),
            v.storage_mut(),
            g.storage(),
            step,
        );
        let tensor = |x| Tensor::<1>::from_primitive::<Flex>(x);
        AdamWState {
            parameters: tensor(p),
            first: tensor(m),
            second: tensor(v),
        }
    }

    fn update(p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], s: &AdamWStep) {
        let (step_size, root_correction) = corrections(s);
        let (step_size, root) = (step_size as f32, (1.0 / root_correction) as f32);
        let (beta1, beta2) = (s.beta1 as f32, s.beta2 as f32);
        let (rest1, rest2) = ((1.0 - s.beta1) as f32, (1.0 - s.beta2) as f32);
        let (epsilon, scale) = (s.epsilon as f32, s.gradient_scale as f32);
        let keep = (1.0 - s.learning_rate * s.weight_decay) as f32;
        p.par_chunks_mut(CHUNK)
            .zip(m.par_chunks_mut(CHUNK))
            .zip(v.par_chunks_mut(CHUNK))
            .zip(g.par_chunks(CHUNK))
            .for_each(|(((p, m), v), g)| {
                for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
                    let g = g * scale;
                    *m = beta1 * *m + rest1 * g;
                    *v = beta2 * *v + rest2 * (g * g);
                    *p = keep * *p - step_size * (*m / (v.sqrt() * root + epsilon));
                }
            });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

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
        let device = Device::flex();
        let n = 40_000;
        let wave = |f: f64| {
            let values: Vec<f32> = (0..n).map(|i| (f64::from(i) * f).sin() as f32).collect();
            Tensor::<1>::from_data(TensorData::new(values, [n as usize]), &device)
        };
        let zeros = Tensor::<1>::zeros([n as usize], &device);
        let start = AdamWState {
            parameters: wave(0.1),
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
            let gradient = wave(0.3 * step as f64);
            (fast, _) = adamw(fast, gradient.clone(), &numbers, DType::F32).unwrap();
            plain = reference(plain, gradient, &numbers);
        }
        let (fast, plain) = (fast.parameters.into_data(), plain.parameters.into_data());
        for (a, b) in fast.iter::<f32>().zip(plain.iter::<f32>()) {
            assert!((a - b).abs() < 2e-6, "{a} {b}");
        }
    }
}
