//! AdamW (arXiv 1711.05101) over a flat run of parameters.

use burn::tensor::{DType, Device, Tensor};

use super::backends;
pub use super::problem::adamw::{AdamWRun, AdamWState, AdamWStep};
use super::shape::{expect, expect_type};
use crate::error::{Error, Result};

/// One AdamW step, in place where nobody else holds the tensors. Gives the new state, and its parameters in the type
/// `weights`, with which the model computes.
///
/// # Errors
/// Those of [`adamw_of_all`].
pub fn adamw(
    state: AdamWState,
    gradient: Tensor<1>,
    step: &AdamWStep,
    weights: DType,
) -> Result<(AdamWState, Tensor<1>)> {
    let run = AdamWRun {
        state,
        gradient,
        step: *step,
        weights,
    };
    let done = adamw_of_all(vec![run])?.pop();
    done.ok_or_else(|| Error::Internal("AdamW gave nothing for a run".into()))
}

/// [`adamw`] of several runs on one device, on the CPU in one pass over the memory of all.
///
/// # Errors
/// Gradient or moments of another length or type than the parameters, or on another device; kernels that are required
/// refuse it.
pub fn adamw_of_all(runs: Vec<AdamWRun>) -> Result<Vec<(AdamWState, Tensor<1>)>> {
    runs.iter().try_for_each(check)?;
    let Some(first) = runs.first() else {
        return Ok(Vec::new());
    };
    let backend = backends::of(&first.gradient.device());
    let mut all = Vec::new();
    for outcome in backend.adamw(runs) {
        all.push(match outcome {
            Ok(done) => done,
            Err(run) => {
                backend.refusal()?;
                let state = reference(run.state, run.gradient, &run.step);
                let weights = state.parameters.clone().cast(run.weights);
                (state, weights)
            }
        });
    }
    Ok(all)
}

/// Whether many short runs take no longer than a long one, so that nothing is to be joined for [`adamw_of_all`].
pub(crate) fn takes_short_runs(device: Device) -> bool {
    backends::of(&device).takes_short_runs()
}

/// Fails unless all is of the parameters' kind: a run that is shorter would be updated in part.
fn check(run: &AdamWRun) -> Result<()> {
    let (state, gradient) = (&run.state, &run.gradient);
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

    #[test]
    fn all_runs_at_once_are_as_each_by_itself() {
        let place = Place::new(&Device::flex(), DType::F32);
        let run = |n: usize, dtype: DType, weights: DType| {
            let of = |seed| place.constant([n], seed).cast(dtype);
            AdamWRun {
                state: AdamWState {
                    parameters: of(1),
                    first: of(2),
                    second: of(3).abs(),
                },
                gradient: of(4),
                step: AdamWStep {
                    learning_rate: 1e-2,
                    weight_decay: n as f64 * 1e-5,
                    beta1: 0.9,
                    beta2: 0.95,
                    epsilon: 1e-8,
                    step: 3,
                    gradient_scale: 0.5,
                },
                weights,
            }
        };
        let (f32, f64) = (DType::F32, DType::F64);
        let runs = [
            run(1, f32, f32),
            run(50_000, f32, DType::BF16),
            run(7, f64, f64),
            run(300, f32, DType::F16),
            run(40_000, f32, f32),
        ];
        let together = adamw_of_all(runs.to_vec()).unwrap();
        for (run, (state, weights)) in runs.into_iter().zip(together) {
            let dtype = run.weights;
            let (alone, own) = adamw(run.state, run.gradient, &run.step, dtype).unwrap();
            let rounded = state.parameters.clone().cast(dtype);
            assert_eq!(weights.clone().into_data(), rounded.into_data());
            for (a, b) in [
                (weights, own),
                (state.parameters, alone.parameters),
                (state.first, alone.first),
                (state.second, alone.second),
            ] {
                assert_eq!(a.into_data(), b.into_data());
            }
        }
    }
}
