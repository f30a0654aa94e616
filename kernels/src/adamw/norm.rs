//! The global norm of the gradient in two stages, always added up in the same order, and what follows from it for a step.

use cubecl_core as cubecl;
use cubecl_core::ir::ElemType;
use cubecl_core::prelude::*;

use super::table::{COUNTS, TILE};
use super::tile::find;
use super::{Plan, UNITS};
use crate::matrix::instruction::Target;
use crate::matrix::lanes::{Join, join_workgroup};
use crate::matrix::math::{reciprocal, sqrt};

/// `partials[workgroup]` = the sum of squares over the workgroup's tiles, of tensors that count.
#[cube(launch_unchecked)]
pub(crate) fn adamw_squares<G: Float, N: Size>(
    table: &[u32],
    gradient: &[Vector<G, N>],
    partials: &mut [f32],
    tensors: u32,
    tiles: u32,
    groups: u32,
    #[comptime] plan: Plan,
    #[define(G)] _type: ElemType,
    #[define(N)] _width: usize,
) {
    let width = comptime!(plan.vector as u32);
    let mut shared = Shared::<[f32]>::new_slice(comptime!(plan.shared()));
    let mut sum = Vector::<f32, N>::zero();
    for number in range_stepped(CUBE_POS_X, tiles, groups) {
        let tile = find(table, tensors, number);
        let end = select(tile.flags & COUNTS != 0, tile.end, tile.first);
        #[unroll(plan.vector > 1)]
        for i in 0..comptime!(TILE / UNITS / width) {
            let element = tile.first + (i * UNITS + UNIT_POS) * width;
            if element < end {
                let g = Vector::<f32, N>::cast_from(gradient[(element / width) as usize]);
                #[unroll]
                for e in 0..g.vector_size() {
                    let x = select(element + (e as u32) < end, g.extract(e), 0.0f32);
                    sum.insert(e, sum.extract(e) + x * x);
                }
            }
        }
    }
    let mut total = sum.extract(0usize);
    #[unroll]
    for e in 1..sum.vector_size() {
        total += sum.extract(e);
    }
    let total = join_workgroup(total, &mut shared, UNITS, Join::Sum, plan.target);
    if UNIT_POS == 0 {
        partials[CUBE_POS_X as usize] = total;
    }
}

/// `square[0] = sum of partials`, by one workgroup.
#[cube(launch_unchecked)]
pub(crate) fn adamw_total(
    partials: &[f32],
    square: &mut [f32],
    groups: u32,
    #[comptime] plan: Plan,
) {
    let mut shared = Shared::<[f32]>::new_slice(comptime!(plan.shared()));
    let mut sum = 0.0f32;
    for i in range_stepped(UNIT_POS, groups, UNITS) {
        sum += partials[i as usize];
    }
    let sum = join_workgroup(sum, &mut shared, UNITS, Join::Sum, plan.target);
    if UNIT_POS == 0 {
        square[0] = sum;
    }
}

/// Prepares `control` for a step from the square of the gradient's norm, in which the loss is still scaled: the gradient's
/// factor, whether to skip, and the bias corrections, which count only the steps that are not skipped.
///
/// `control` is `[factor, skip, 1 - beta1^step, 1 - beta2^step, norm]`. Launched as one unit.
#[cube(launch_unchecked)]
pub(crate) fn adamw_control(
    square: &[f32],
    control: &mut [f32],
    inverse_scale: f32,
    largest_norm: f32,
    rest1: f32,
    rest2: f32,
    #[comptime] target: Target,
) {
    let square = square[0];
    let norm = sqrt(square, target) * inverse_scale;
    control[4] = norm;
    // False for NaN too.
    if square <= f32::MAX {
        let clip = min(largest_norm * reciprocal(norm + 1e-6f32, target), 1.0f32);
        control[0] = inverse_scale * clip;
        control[1] = 0.0f32;
        // 1 - beta^(t + 1) = (1 - beta^t) + beta^t (1 - beta), which is exact where the power would cancel.
        let (first, second) = (control[2], control[3]);
        control[2] = first + (1.0f32 - first) * rest1;
        control[3] = second + (1.0f32 - second) * rest2;
    } else {
        control[1] = 1.0f32;
    }
}
