//! The update of all parameters in one launch.

use cubecl_core as cubecl;
use cubecl_core::ir::ElemType;
use cubecl_core::prelude::*;

use super::table::{DECAYS, TILE};
use super::tile::find;
use super::{Plan, UNITS};
use crate::matrix::instruction::Target;
use crate::matrix::math::{inverse_sqrt, reciprocal, sqrt};
use crate::rows::workgroup;

/// One step's numbers.
#[derive(CubeLaunch, CubeType)]
pub(crate) struct Numbers {
    pub learning_rate: f32,
    /// `1 - learning_rate * weight_decay`.
    pub keep: f32,
    pub beta1: f32,
    pub beta2: f32,
    /// `1 - beta1`.
    pub rest1: f32,
    /// `1 - beta2`.
    pub rest2: f32,
    pub epsilon: f32,
}

/// One step of every tensor of `table`; none if `control` says so.
///
/// `control` is `[gradient scale, whether to skip, 1 - beta1^step, 1 - beta2^step, ..]`.
#[cube(launch_unchecked)]
pub(crate) fn adamw_update<G: Float, W: Float, N: Size>(
    table: &[u32],
    control: &[f32],
    gradient: &[Vector<G, N>],
    parameters: &mut [Vector<f32, N>],
    first: &mut [Vector<f32, N>],
    second: &mut [Vector<f32, N>],
    mut weights: ComptimeOption<&mut [Vector<W, N>]>,
    tensors: u32,
    tiles: u32,
    numbers: Numbers,
    #[comptime] plan: Plan,
    #[define(G, W)] _types: [ElemType; 2],
    #[define(N)] _width: usize,
) {
    let width = comptime!(plan.vector as u32);
    let number = workgroup();
    if number < tiles && control[1] == 0.0 {
        let tile = find(table, tensors, number);
        let scale = Vector::<f32, N>::new(control[0]);
        let step_size = numbers.learning_rate / control[2];
        let root = inverse_sqrt(control[3], plan.target);
        let keep = select(tile.flags & DECAYS != 0, numbers.keep, 1.0f32);
        #[unroll(plan.vector > 1)]
        for i in 0..comptime!(TILE / UNITS / width) {
            let element = tile.first + (i * UNITS + UNIT_POS) * width;
            // A tensor's last vector may reach into what fills the buffer up, but never into another tensor.
            if element < tile.end {
                let at = (element / width) as usize;
                let g = Vector::<f32, N>::cast_from(gradient[at]) * scale;
                let m = first[at] * Vector::new(numbers.beta1) + g * Vector::new(numbers.rest1);
                let v =
                    second[at] * Vector::new(numbers.beta2) + g * g * Vector::new(numbers.rest2);
                let change = change::<N>(m, v, root, numbers.epsilon, plan.target);
                let p = parameters[at] * Vector::new(keep) - change * Vector::new(step_size);
                first[at] = m;
                second[at] = v;
                parameters[at] = p;
                #[comptime]
                if let ComptimeOption::Some(weights) = weights.as_mut() {
                    weights[at] = Vector::cast_from(p);
                }
            }
        }
    }
}

/// `m / (sqrt(v) root + epsilon)`.
#[cube]
fn change<N: Size>(
    m: Vector<f32, N>,
    v: Vector<f32, N>,
    root: f32,
    epsilon: f32,
    #[comptime] target: Target,
) -> Vector<f32, N> {
    let mut change = Vector::<f32, N>::zero();
    #[unroll]
    for e in 0..m.vector_size() {
        let deviation = sqrt(v.extract(e), target) * root + epsilon;
        change.insert(e, m.extract(e) * reciprocal(deviation, target));
    }
    change
}
