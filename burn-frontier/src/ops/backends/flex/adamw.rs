//! AdamW: one pass over the memory of all runs, in place.

use burn::backend::Flex;
use burn::tensor::{DType, Tensor, TensorData};
use burn_flex::FlexTensor;
use frontier_kernels_cpu::element::Element;
use frontier_kernels_cpu::math::vectorised;
use half::bf16;
use rayon::prelude::*;

use super::PARALLEL;
use crate::ops::backends::AdamWOutcome;
use crate::ops::problem::adamw::{AdamWRun, AdamWState, AdamWStep};

/// Elements that one task updates.
const CHUNK: usize = 1 << 14;

/// One step of each run, in place where nobody else holds the tensors; runs that are not of f32 come back.
pub(super) fn adamw(runs: Vec<AdamWRun>) -> Vec<AdamWOutcome> {
    let mut all: Vec<_> = runs.into_iter().map(Run::open).collect();
    let mut tasks = Vec::new();
    let mut count = 0;
    for run in all.iter_mut().flatten() {
        count += run.gradient.storage::<f32>().len();
        run.add_tasks(&mut tasks);
    }
    if count < PARALLEL {
        tasks.into_iter().for_each(Task::perform);
    } else {
        tasks.into_par_iter().for_each(Task::perform);
    }
    let closed = all.into_iter().map(|run| run.map(Run::close));
    closed.collect()
}

/// A run's tensors, each alone in its memory.
struct Run {
    /// Parameters, first and second moment.
    state: [FlexTensor; 3],
    gradient: FlexTensor,
    /// The parameters as the model computes with them, where they are other numbers.
    rounded: Option<Vec<bf16>>,
    weights: DType,
    numbers: Numbers,
}

/// Up to [`CHUNK`] elements of a run.
struct Task<'a> {
    state: [&'a mut [f32]; 3],
    gradient: &'a [f32],
    rounded: Option<&'a mut [bf16]>,
    numbers: Numbers,
}

impl Run {
    fn open(run: AdamWRun) -> Result<Self, Box<AdamWRun>> {
        let state = &run.state;
        let all = [
            &state.parameters,
            &state.first,
            &state.second,
            &run.gradient,
        ];
        if all.into_iter().any(|x| x.dtype() != DType::F32) {
            return Err(Box::new(run));
        }
        let AdamWRun {
            state,
            gradient,
            step,
            weights,
        } = run;
        let all = [state.parameters, state.first, state.second, gradient];
        let [Some(p), Some(m), Some(v), Some(gradient)] = all.map(primitive) else {
            unreachable!("the state and the gradient are on one device");
        };
        let rounded =
            (weights == DType::BF16).then(|| vec![bf16::ZERO; gradient.storage::<f32>().len()]);
        Ok(Self {
            state: [p, m, v],
            gradient,
            rounded,
            weights,
            numbers: Numbers::new(&step),
        })
    }

    fn add_tasks<'a>(&'a mut self, tasks: &mut Vec<Task<'a>>) {
        let [p, m, v] = self
            .state
            .each_mut()
            .map(|x| x.storage_mut::<f32>().chunks_mut(CHUNK));
        let g = self.gradient.storage::<f32>().chunks(CHUNK);
        let mut rounded = self.rounded.as_mut().map(|x| x.chunks_mut(CHUNK));
        for (((p, m), v), gradient) in p.zip(m).zip(v).zip(g) {
            tasks.push(Task {
                state: [p, m, v],
                gradient,
                rounded: rounded.as_mut().and_then(Iterator::next),
                numbers: self.numbers,
            });
        }
    }

    fn close(self) -> (AdamWState, Tensor<1>) {
        let [parameters, first, second] = self.state.map(Tensor::<1>::from_primitive::<Flex>);
        let weights = match self.rounded {
            Some(rounded) => {
                let data = TensorData::new(rounded, parameters.shape());
                Tensor::from_primitive::<Flex>(FlexTensor::from_data(data))
            }
            None => parameters.clone().cast(self.weights),
        };
        let state = AdamWState {
            parameters,
            first,
            second,
        };
        (state, weights)
    }
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

/// A step's numbers, as the loop takes them.
#[derive(Clone, Copy)]
struct Numbers {
    step_size: f32,
    /// Factor on the root of the second moment.
    root: f32,
    /// Of each moment: what stays of it, and what is taken of the gradient.
    moments: [[f32; 2]; 2],
    epsilon: f32,
    /// Factor on the gradient.
    scale: f32,
    /// What decay leaves of a parameter.
    keep: f32,
}

impl Numbers {
    fn new(step: &AdamWStep) -> Self {
        let [correction1, correction2] = step.corrections();
        Self {
            step_size: (step.learning_rate / correction1) as f32,
            root: (1.0 / correction2.sqrt()) as f32,
            moments: [step.beta1, step.beta2].map(|beta| [beta as f32, (1.0 - beta) as f32]),
            epsilon: step.epsilon as f32,
            scale: step.gradient_scale as f32,
            keep: (1.0 - step.learning_rate * step.weight_decay) as f32,
        }
    }
}

impl Task<'_> {
    fn perform(self) {
        let Self {
            state: [p, m, v],
            gradient,
            mut rounded,
            numbers: n,
        } = self;
        vectorised(
            #[inline(always)]
            || {
                let [[beta1, rest1], [beta2, rest2]] = n.moments;
                let moments = m.iter_mut().zip(v.iter_mut());
                let all = p.iter_mut().zip(moments).zip(gradient);
                for ((p, (m, v)), g) in all {
                    let g = g * n.scale;
                    *m = beta1 * *m + rest1 * g;
                    *v = beta2 * *v + rest2 * (g * g);
                    *p = n.keep * *p - n.step_size * (*m / (v.sqrt() * n.root + n.epsilon));
                }
                // It is in the first-level cache.
                if let Some(rounded) = &mut rounded {
                    for (rounded, p) in rounded.iter_mut().zip(p.iter()) {
                        *rounded = Element::round(*p);
                    }
                }
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn what_nobody_else_holds_is_updated_where_it_lies() {
        let device = Device::flex();
        let ones = || Tensor::<1>::ones([100], &device);
        let place = |x: &Tensor<1>| {
            let x = x.clone().try_into_primitive::<Flex>().unwrap();
            x.storage::<f32>().as_ptr()
        };
        for held in [false, true] {
            let state = AdamWState {
                parameters: ones(),
                first: ones(),
                second: ones(),
            };
            let before = place(&state.parameters);
            let other = held.then(|| state.parameters.clone());
            let step = AdamWStep {
                learning_rate: 0.1,
                weight_decay: 0.0,
                beta1: 0.9,
                beta2: 0.9,
                epsilon: 1e-8,
                step: 1,
                gradient_scale: 1.0,
            };
            let run = AdamWRun {
                state,
                gradient: ones(),
                step,
                weights: DType::F32,
            };
            let (after, _) = adamw(vec![run]).pop().unwrap().unwrap();
            assert_eq!(place(&after.parameters) == before, !held);
            assert!(other.is_none_or(|x| x.into_data() == ones().into_data()));
        }
    }
}
