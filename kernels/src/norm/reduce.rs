//! The second stage of the gradients of weight and bias: the workgroups' parts added up, always in the same order.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

/// Columns of a workgroup: a cache line of floats.
pub(super) const COLUMNS: u32 = 32;
/// Units that share a column.
const SLICES: u32 = 8;
/// Parts that a unit reads at a time.
const AHEAD: u32 = 4;
/// Units of a workgroup.
pub(super) const UNITS: u32 = COLUMNS * SLICES;

/// `out[column] = sum of partials[group][column]` over `groups` rows of `width`.
#[cube(launch_unchecked)]
pub(crate) fn norm_reduce(partials: &[f32], out: &mut [f32], groups: u32, width: u32) {
    let mut shared = Shared::<[f32]>::new_slice(comptime!(UNITS as usize));
    let column = CUBE_POS_X * COLUMNS + UNIT_POS % COLUMNS;
    let slice = UNIT_POS / COLUMNS;
    let mut sum = 0.0f32;
    for step in 0..groups.div_ceil(comptime!(SLICES * AHEAD)) {
        // Several loads are under way before the first is added.
        let mut ahead = Array::<f32>::new(comptime!(AHEAD as usize));
        #[unroll]
        for i in 0..AHEAD {
            let group = (step * AHEAD + i) * SLICES + slice;
            ahead[i as usize] = 0.0;
            if group < groups && column < width {
                ahead[i as usize] = partials[(group * width + column) as usize];
            }
        }
        #[unroll]
        for i in 0..AHEAD {
            sum += ahead[i as usize];
        }
    }
    shared[UNIT_POS as usize] = sum;
    sync_cube();
    if slice == 0 && column < width {
        #[unroll]
        for other in 1..SLICES {
            sum += shared[(other * COLUMNS + UNIT_POS) as usize];
        }
        out[column as usize] = sum;
    }
}
