//! The forward kernel: one pass over memory, the row in registers between its statistics and its normalisation.

use cubecl_core as cubecl;
use cubecl_core::ir::ElemType;
use cubecl_core::prelude::*;

use super::{Kind, Plan};
use crate::dropout::elements::{Site, drop_elements};
use crate::matrix::lanes::Join;
use crate::matrix::math::inverse_sqrt;
use crate::rows::{join_row, vector_sum, workgroup};

/// `y = norm(s)` with `s = dropout(x) + residual`; writes s as `sum` if it is not x, and the statistics of each row.
// The outer condition is comptime.
#[allow(clippy::collapsible_if)]
#[cube(launch_unchecked)]
pub(crate) fn norm_forward<E: Float, N: Size>(
    x: &[Vector<E, N>],
    residual: ComptimeOption<&[Vector<E, N>]>,
    samples: ComptimeOption<&[u32]>,
    weight: &[Vector<E, N>],
    bias: ComptimeOption<&[Vector<E, N>]>,
    y: &mut [Vector<E, N>],
    mut sum: ComptimeOption<&mut [Vector<E, N>]>,
    stats: &mut [f32],
    rows: u32,
    epsilon: f32,
    site: Site,
    #[comptime] plan: Plan,
    #[define(E)] _type: ElemType,
    #[define(N)] _width: usize,
) {
    let layout = comptime!(plan.forward);
    let resident = comptime!(plan.forward_in_registers());
    let hidden = comptime!(layout.columns as f32);
    let (vectors, chunks) = comptime!((layout.vectors(), layout.chunks()));
    let mut shared = Shared::<[f32]>::new_slice(comptime!(layout.shared(plan.target)));
    let unit = UNIT_POS % layout.row_units;
    let own = workgroup() * comptime!(layout.per_workgroup()) + UNIT_POS / layout.row_units;
    // Units beyond the last row repeat it without stores, since all of a wave must take part in its exchanges.
    let (row, present) = (min(own, rows - 1), own < rows);
    let base = row * vectors;

    let mut held =
        Array::<Vector<E, N>>::new(comptime!(if resident { chunks as usize } else { 1 }));
    let mut total = Vector::<f32, N>::zero();
    #[unroll(resident)]
    for c in 0..chunks {
        let at = c * layout.row_units + unit;
        if at < vectors {
            let value = input::<E, N>(x, residual, samples, row, at, &site, plan);
            total += Vector::cast_from(value);
            if comptime!(resident) {
                held[c as usize] = value;
            }
            #[comptime]
            if let ComptimeOption::Some(sum) = sum.as_mut() {
                if present {
                    sum[(base + at) as usize] = value;
                }
            }
        }
    }
    let mut mean = 0.0f32;
    if comptime!(plan.problem.kind == Kind::Layer) {
        let total = vector_sum(total);
        mean = join_row(total, &mut shared, layout, Join::Sum, plan.target) / hidden;
    }
    let squares = squares::<E, N>(&held, x, sum.as_ref(), base, unit, mean, plan);
    let squares = join_row(squares, &mut shared, layout, Join::Sum, plan.target);
    let rstd = inverse_sqrt(squares / hidden + epsilon, plan.target);
    #[unroll(resident)]
    for c in 0..chunks {
        let at = c * layout.row_units + unit;
        if at < vectors {
            let value = again::<E, N>(&held, x, sum.as_ref(), c, base + at, resident);
            let deviation = Vector::<f32, N>::cast_from(value) - Vector::new(mean);
            let normal = deviation * Vector::new(rstd);
            let mut scaled = normal * Vector::cast_from(weight[at as usize]);
            #[comptime]
            if let ComptimeOption::Some(bias) = bias {
                scaled += Vector::cast_from(bias[at as usize]);
            }
            if present {
                y[(base + at) as usize] = Vector::cast_from(scaled);
            }
        }
    }
    if unit == 0 && present {
        save(stats, row, mean, rstd, plan.problem.kind);
    }
}

/// The unit's part of the sum of squared deviations from `mean`.
#[cube]
fn squares<E: Float, N: Size>(
    held: &Array<Vector<E, N>>,
    x: &[Vector<E, N>],
    sum: ComptimeOption<&&mut [Vector<E, N>]>,
    base: u32,
    unit: u32,
    mean: f32,
    #[comptime] plan: Plan,
) -> f32 {
    let layout = comptime!(plan.forward);
    let resident = comptime!(plan.forward_in_registers());
    let mut squares = Vector::<f32, N>::zero();
    #[unroll(resident)]
    for c in 0..comptime!(layout.chunks()) {
        let at = c * layout.row_units + unit;
        if at < comptime!(layout.vectors()) {
            let value = again::<E, N>(held, x, sum, c, base + at, resident);
            let deviation = Vector::<f32, N>::cast_from(value) - Vector::new(mean);
            squares += deviation * deviation;
        }
    }
    vector_sum(squares)
}

/// A vector of the row that was read before: from registers, or from memory where the row is too long for them.
#[cube]
fn again<E: Float, N: Size>(
    held: &Array<Vector<E, N>>,
    x: &[Vector<E, N>],
    sum: ComptimeOption<&&mut [Vector<E, N>]>,
    chunk: u32,
    index: u32,
    #[comptime] resident: bool,
) -> Vector<E, N> {
    if comptime!(resident) {
        held[chunk as usize]
    } else {
        #[comptime]
        match sum {
            ComptimeOption::Some(sum) => sum[index as usize],
            ComptimeOption::None => x[index as usize],
        }
    }
}

/// Writes the statistics of a row: mean and 1 / deviation, or the latter alone.
#[cube]
fn save(stats: &mut [f32], row: u32, mean: f32, rstd: f32, #[comptime] kind: Kind) {
    match kind {
        Kind::Layer => {
            stats[(2 * row) as usize] = mean;
            stats[(2 * row + 1) as usize] = rstd;
        }
        Kind::Rms => stats[row as usize] = rstd,
    }
}

/// Vector `at` of row `row` of `dropout(x) + residual`.
#[cube]
fn input<E: Float, N: Size>(
    x: &[Vector<E, N>],
    residual: ComptimeOption<&[Vector<E, N>]>,
    samples: ComptimeOption<&[u32]>,
    row: u32,
    at: u32,
    site: &Site,
    #[comptime] plan: Plan,
) -> Vector<E, N> {
    let vectors = comptime!(plan.forward.vectors());
    let index = (row * vectors + at) as usize;
    let value = x[index];
    if comptime!(plan.fused()) {
        let mut sum = Vector::<f32, N>::cast_from(value);
        #[comptime]
        if let ComptimeOption::Some(samples) = samples {
            sum = drop_elements::<N>(sum, row, at, samples, site);
        }
        #[comptime]
        if let ComptimeOption::Some(residual) = residual {
            sum += Vector::cast_from(residual[index]);
        }
        Vector::cast_from(sum)
    } else {
        value
    }
}
