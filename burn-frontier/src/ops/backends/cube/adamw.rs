//! AdamW and the sum of squares of a flat run of parameters by frontier-kernels: one launch for all tensors of the run.

use burn::tensor::{DType, Tensor};
use frontier_kernels::adamw::launch::{Buffers, Step, squares, update};
use frontier_kernels::adamw::{CONTROL, Plan, Table, Tensor as Run};
use frontier_kernels::matrix::instruction::{Element, Target};

use super::bridge::is_here;
use super::refusal::refused;
use super::{Buffer, accepted, taken};
use crate::comm;
use crate::comm::tensor::to_buffer;
use crate::error::{Error, Result};
use crate::ops::backends::AdamWOutcome;
use crate::ops::problem::adamw::{AdamWRun, AdamWState, AdamWStep};

const ADAMW: &str = "adamw";
const SQUARES: &str = "sum_of_squares";

/// One step in place, which writes the parameters in the model's type too.
pub(super) fn adamw(run: AdamWRun) -> AdamWOutcome {
    let state = &run.state;
    let all = [
        &state.parameters,
        &state.first,
        &state.second,
        &run.gradient,
    ];
    if !all.into_iter().all(is_here) {
        return Err(Box::new(run));
    }
    if all[..3].iter().any(|x| x.dtype() != DType::F32) {
        refused::<()>(ADAMW, "AdamW's state is not in f32");
        return Err(Box::new(run));
    }
    let AdamWRun {
        state,
        gradient,
        step,
        weights,
    } = run;
    let state = [state.parameters, state.first, state.second].map(Buffer::take);
    let ([Some(parameters), Some(first), Some(second)], Some(scaled)) =
        (state, Buffer::of(&gradient))
    else {
        unreachable!("they are on a CubeCL device");
    };
    let buffers = [parameters, first, second].map(Buffer::own);
    let written = launch(&buffers, &scaled, &step, weights);
    let [parameters, first, second] = buffers.map(Buffer::tensor::<1>);
    let state = AdamWState {
        parameters,
        first,
        second,
    };
    match written {
        Some(weights) => {
            taken(ADAMW);
            let weights = weights.map_or_else(|| state.parameters.clone(), Buffer::tensor);
            Ok((state, weights))
        }
        None => Err(Box::new(AdamWRun {
            state,
            gradient,
            step,
            weights,
        })),
    }
}

/// Updates parameters and moments; gives the weights, if they are of another type.
fn launch(
    state: &[Buffer; 3],
    gradient: &Buffer,
    step: &AdamWStep,
    weights: DType,
) -> Option<Option<Buffer>> {
    let [parameters, first, second] = state;
    let run = Flat::of(ADAMW, gradient)?;
    let weights = match weights {
        DType::F32 => None,
        other => Some(gradient.beside(parameters.shape(), other)),
    };
    let plan = run.plan(match &weights {
        Some(weights) => Some(weights.element(ADAMW)?),
        None => None,
    });
    let [correction1, correction2] = step.corrections();
    let mut control = [0.0; CONTROL];
    // Factor of the gradient, whether to skip the step, the bias corrections.
    control[..4].copy_from_slice(&[
        step.gradient_scale as f32,
        0.0,
        correction1 as f32,
        correction2 as f32,
    ]);
    let buffers = Buffers {
        gradient: gradient.argument(),
        parameters: parameters.argument(),
        first: first.argument(),
        second: second.argument(),
        weights: weights.as_ref().map(Buffer::argument),
    };
    let numbers = Step {
        learning_rate: step.learning_rate,
        weight_decay: step.weight_decay,
        beta1: step.beta1,
        beta2: step.beta2,
        epsilon: step.epsilon,
    };
    let control = gradient.with_values(&control, DType::F32).argument();
    let client = gradient.client();
    let done = update(client, &plan, &run.table, control, buffers, &numbers);
    accepted(ADAMW, done)?;
    Some(weights)
}

/// The sum of squares of a run, in f32.
pub(super) fn sum_of_squares(x: &Tensor<1>) -> Option<Result<f64>> {
    let x = Buffer::of(x)?;
    let run = Flat::of(SQUARES, &x)?;
    let square = x.beside([1], DType::F32);
    let (client, plan) = (x.client(), run.plan(None));
    let done = squares(client, &plan, &run.table, x.argument(), square.argument());
    accepted(SQUARES, done)?;
    taken(SQUARES);
    Some(match to_buffer(square.tensor::<1>()) {
        Ok(comm::Buffer::F32(sum)) => Ok(sum.iter().copied().map(f64::from).sum()),
        Ok(other) => Err(Error::Internal(format!(
            "a sum in f32 came as {}",
            other.dtype()
        ))),
        Err(error) => Err(error),
    })
}

/// A flat run as one tensor of the kernels' table: what differs between tensors is equal in it.
struct Flat {
    target: Target,
    gradient: Element,
    length: usize,
    table: Table,
}

impl Flat {
    fn of(operation: &'static str, x: &Buffer) -> Option<Self> {
        let length = x.shape().num_elements();
        let table = Table::new(&[Run {
            offset: 0,
            length,
            decays: true,
            counts: true,
        }]);
        Some(Self {
            target: x.target(),
            gradient: x.element(operation)?,
            length,
            table: accepted(operation, table)?,
        })
    }

    /// The kernels that write weights of a type of their own, or none.
    fn plan(&self, weights: Option<Element>) -> Plan {
        Plan::choose(
            self.target,
            self.gradient,
            weights,
            &self.table,
            self.length,
        )
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    use burn::tensor::Device;

    use crate::ops::adamw as operation;
    use crate::ops::sum_squares;
    use crate::ops::testing::{Place, assert_close, gpu, numbers, types};

    fn step(number: u64) -> AdamWStep {
        AdamWStep {
            learning_rate: 1e-2,
            weight_decay: 0.1,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            step: number,
            gradient_scale: 0.5,
        }
    }

    fn start(n: usize, place: &Place) -> AdamWState {
        AdamWState {
            parameters: place.constant([n], 1),
            first: place.constant([n], 2).mul_scalar(0.01),
            second: place.constant([n], 3).abs().mul_scalar(0.01),
        }
    }

    #[test]
    fn adamw_on_a_gpu_is_the_kernel_and_equals_the_definition() {
        let Some(gpu) = gpu() else { return };
        for dtype in types(&gpu) {
            for n in [4096, 9001] {
                let (place, reference) =
                    (Place::new(&gpu, DType::F32), Place::reference(DType::F32));
                let (mut own, mut expected) = (start(n, &place), start(n, &reference));
                let mut weights = own.parameters.clone();
                for number in 1..=3 {
                    let seed = 10 + number as u32;
                    let done = adamw(AdamWRun {
                        state: own,
                        gradient: place.constant([n], seed),
                        step: step(number),
                        weights: dtype,
                    });
                    let Ok(done) = done else {
                        panic!("the kernel refused")
                    };
                    (own, weights) = done;
                    let gradient = reference.constant([n], seed);
                    expected = operation::reference(expected, gradient, &step(number));
                }
                let parameters = numbers(expected.parameters);
                assert_eq!(weights.dtype(), dtype);
                assert_close("weights", dtype, &numbers(weights), &parameters);
                for (what, own, expected) in [
                    ("parameters", own.parameters, parameters),
                    ("first moment", own.first, numbers(expected.first)),
                    ("second moment", own.second, numbers(expected.second)),
                ] {
                    assert_close(what, DType::F32, &numbers(own), &expected);
                }
            }
        }
    }

    #[test]
    fn a_state_that_others_hold_is_not_updated_in_place() {
        let Some(gpu) = gpu() else { return };
        let place = Place::new(&gpu, DType::F32);
        let state = start(100, &place);
        let before = numbers(state.parameters.clone());
        let gradient = place.constant([100], 5);
        let (new, _) = operation::adamw(state.clone(), gradient, &step(1), DType::F32).unwrap();
        assert_eq!(numbers(state.parameters), before);
        assert_ne!(numbers(new.parameters), before);
    }

    #[test]
    fn the_sum_of_squares_on_a_gpu_is_the_kernel_and_equals_that_of_the_cpu() {
        let Some(gpu) = gpu() else { return };
        for n in [1, 4096, 100_003] {
            let values = |device: &Device| Place::new(device, DType::F32).constant([n], 1);
            let found = sum_of_squares(&values(&gpu))
                .expect("the kernel refused")
                .unwrap();
            let expected = sum_squares::sum_of_squares(&[values(&Device::flex())]).unwrap();
            assert!(
                (found - expected).abs() <= 1e-6 * expected,
                "{found} {expected}"
            );
        }
    }
}
