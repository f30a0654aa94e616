//! The second stage of a split product: adds the parts of K, in order, and applies the epilogue.

use cubecl_core as cubecl;
use cubecl_core::ir::ElemType;
use cubecl_core::prelude::*;

use super::epilogue::{Results, finish};
use super::plan::Plan;

/// Units of a workgroup.
pub const UNITS: usize = 256;

/// `C = epilogue(sum of the parts)`.
///
/// Grid: `ceil(m n / UNITS)`, 1, batches. `partial` is `[parts, batches, m, columns]`, where there are two halves of `n` columns if
/// the activation takes two sums.
#[cube(launch_unchecked)]
pub fn reduce<E: Numeric, O: Numeric>(
    partial: &[f32],
    out: &mut [O],
    bias: ComptimeOption<&[E]>,
    other: ComptimeOption<&[E]>,
    mut saved: ComptimeOption<&mut [E]>,
    m: u32,
    n: u32,
    parts: u32,
    scale: f32,
    #[comptime] plan: Plan,
    #[define(E, O)] _types: [ElemType; 2],
) {
    let at = CUBE_POS_X * comptime!(UNITS as u32) + UNIT_POS;
    if at < m * n {
        let (row, column) = (at / n, at % n);
        let columns = n * comptime!(plan.columns(1) as u32);
        let first = (CUBE_POS_Z * m + row) * columns + column;
        let part = CUBE_COUNT_Z * m * columns;
        let mut sum = 0.0f32;
        let mut second = 0.0f32;
        for p in 0..parts {
            sum += partial[(p * part + first) as usize];
            if comptime!(plan.columns(1) == 2) {
                second += partial[(p * part + first + n) as usize];
            }
        }
        let results = Results {
            m,
            n,
            start: CUBE_POS_Z * m * n,
            bias: 0,
        };
        finish(
            sum,
            second,
            row,
            column,
            &results,
            scale,
            out,
            &bias,
            &other,
            &mut saved,
            plan.epilogue,
            plan.target,
        );
    }
}
