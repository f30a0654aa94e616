//! AdamW: one pass over memory instead of a dozen, in place.

use burn::backend::Flex;
use burn::tensor::{DType, Tensor};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::ops::backends::AdamWOutcome;
use crate::ops::problem::adamw::{AdamWState, AdamWStep};

/// Elements that one task updates.
const CHUNK: usize = 1 << 14;

/// One step of f32, in place where nobody else holds the tensors.
pub(super) fn adamw(
    state: AdamWState,
    gradient: Tensor<1>,
    step: &AdamWStep,
    weights: DType,
) -> AdamWOutcome {
    let all = [&state.parameters, &state.first, &state.second, &gradient];
    if all.into_iter().any(|x| x.dtype() != DType::F32) {
        return Err(Box::new((state, gradient)));
    }
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
    let [parameters, first, second] = [p, m, v].map(Tensor::<1>::from_primitive::<Flex>);
    let weights = parameters.clone().cast(weights);
    let state = AdamWState {
        parameters,
        first,
        second,
    };
    Ok((state, weights))
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

fn update(p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], s: &AdamWStep) {
    let [correction1, correction2] = s.corrections();
    let step_size = (s.learning_rate / correction1) as f32;
    let root = (1.0 / correction2.sqrt()) as f32;
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
