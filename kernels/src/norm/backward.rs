//! The backward kernel: one pass over memory gives the gradient of the input, and each workgroup's part of those of weight
//! and bias.

use cubecl_core as cubecl;
use cubecl_core::ir::ElemType;
use cubecl_core::prelude::*;

use super::opaque::opaque;
use super::{Kind, Plan};
use crate::dropout::elements::{Site, drop_elements};
use crate::matrix::lanes::Join;
use crate::rows::{join_row, vector_sum};

/// Of `y = norm(s)`, `s = dropout(x) + residual`: the gradient of x from those of y and, if given, of s. `d_residual` is the
/// gradient of s, where that is not the one of x.
///
/// `partials` `[groups, 1 or 2, hidden]` gets the gradients of weight and bias, each workgroup's rows added up.
#[cube(launch_unchecked)]
pub(crate) fn norm_backward<E: Float, N: Size>(
    dy: &[Vector<E, N>],
    s: &[Vector<E, N>],
    stats: &[f32],
    weight: &[Vector<E, N>],
    samples: ComptimeOption<&[u32]>,
    d_sum: ComptimeOption<&[Vector<E, N>]>,
    dx: &mut [Vector<E, N>],
    mut d_residual: ComptimeOption<&mut [Vector<E, N>]>,
    partials: &mut [Vector<f32, N>],
    rows: u32,
    groups: u32,
    site: Site,
    #[comptime] plan: Plan,
    #[define(E)] _type: ElemType,
    #[define(N)] _width: usize,
) {
    let layout = comptime!(plan.backward);
    let resident = comptime!(plan.backward_in_registers());
    let (vectors, chunks) = comptime!((layout.vectors(), layout.chunks()));
    let hidden = comptime!(layout.columns as f32);
    let mut shared = Shared::<[f32]>::new_slice(comptime!(layout.shared(plan.target)));
    let unit = UNIT_POS % layout.row_units;
    let slot = UNIT_POS / layout.row_units;
    let per_workgroup = comptime!(layout.per_workgroup());

    let mut held = Array::<Vector<E, N>>::new(comptime!(plan.backward_held()));
    let mut sums = zeros::<N>(comptime!(plan.backward_held()));
    let own_partials = CUBE_POS_X * comptime!(plan.parts() * vectors);
    for step in 0..(rows - CUBE_POS_X * per_workgroup).div_ceil(groups * per_workgroup) {
        let own = (step * groups + CUBE_POS_X) * per_workgroup + slot;
        // Units beyond the last row repeat it, and add nothing.
        let index = min(own, rows - 1);
        let (mean, rstd) = saved(stats, index, plan.problem.kind);
        // Addresses are computed anew in each pass over the row: kept from row to row, they would take most registers.
        let row = Row {
            present: own < rows,
            mean,
            rstd,
            base: opaque::<u32>(index * vectors, plan.target),
            unit: opaque::<u32>(unit, plan.target),
        };
        let (along, across) = read_row::<E, N>(
            dy,
            s,
            weight,
            &row,
            &mut held,
            &mut sums,
            partials,
            own_partials,
            step,
            plan,
        );
        let along = join_row(along, &mut shared, layout, Join::Sum, plan.target) / hidden;
        let mut flat = 0.0f32;
        if comptime!(plan.problem.kind == Kind::Layer) {
            flat = join_row(across, &mut shared, layout, Join::Sum, plan.target) / hidden;
        }
        let row = Row {
            base: opaque::<u32>(row.base, plan.target),
            unit: opaque::<u32>(row.unit, plan.target),
            present: row.present,
            mean,
            rstd,
        };
        #[unroll(resident)]
        for c in 0..chunks {
            let at = c * layout.row_units + row.unit;
            if at < vectors && row.present {
                let place = (row.base + at) as usize;
                let (d, value) = again::<E, N>(&held, dy, s, c, place, resident);
                let scaled = Vector::cast_from(d) * Vector::cast_from(weight[at as usize]);
                let normal = normalised(value, &row);
                let mut gradient =
                    (scaled - Vector::new(flat) - normal * Vector::new(along)) * Vector::new(rstd);
                #[comptime]
                if let ComptimeOption::Some(d_sum) = d_sum {
                    gradient += Vector::cast_from(d_sum[place]);
                }
                #[comptime]
                if let ComptimeOption::Some(d_residual) = d_residual.as_mut() {
                    d_residual[place] = Vector::cast_from(gradient);
                }
                #[comptime]
                if let ComptimeOption::Some(samples) = samples {
                    gradient = drop_elements::<N>(gradient, index, at, samples, &site);
                }
                dx[place] = Vector::cast_from(gradient);
            }
        }
    }
    if comptime!(resident) {
        write_partials::<N>(partials, &sums, own_partials, unit, slot, plan);
    }
}

/// A row that a unit works on.
#[derive(CubeType, Clone, Copy)]
struct Row {
    /// Whether it is there: behind the last one, it is the last one once more.
    present: bool,
    mean: f32,
    rstd: f32,
    /// Its first vector.
    base: u32,
    /// The unit's place among those that share it.
    unit: u32,
}

/// Reads the row's gradient and input into `held`, and adds to the sums over rows. Gives the unit's sums over the row of
/// `g normal` and of `g`, where `g` is the gradient of the normalised row.
#[cube]
fn read_row<E: Float, N: Size>(
    dy: &[Vector<E, N>],
    s: &[Vector<E, N>],
    weight: &[Vector<E, N>],
    row: &Row,
    held: &mut Array<Vector<E, N>>,
    sums: &mut Array<Vector<f32, N>>,
    partials: &mut [Vector<f32, N>],
    own_partials: u32,
    step: u32,
    #[comptime] plan: Plan,
) -> (f32, f32) {
    let layout = comptime!(plan.backward);
    let vectors = comptime!(layout.vectors());
    let resident = comptime!(plan.backward_in_registers());
    let mut along = Vector::<f32, N>::zero();
    let mut across = Vector::<f32, N>::zero();
    #[unroll(resident)]
    for c in 0..comptime!(layout.chunks()) {
        let at = c * layout.row_units + row.unit;
        if at < vectors {
            let mut d = dy[(row.base + at) as usize];
            if comptime!(layout.per_workgroup() > 1) {
                d = select(row.present, d, Vector::zero());
            }
            let value = s[(row.base + at) as usize];
            if comptime!(resident) {
                held[(2 * c) as usize] = packed::<E, N>(d, plan);
                held[(2 * c + 1) as usize] = packed::<E, N>(value, plan);
            }
            let d = Vector::<f32, N>::cast_from(d);
            let normal = normalised(value, row);
            let scaled = d * Vector::cast_from(weight[at as usize]);
            along += scaled * normal;
            across += scaled;
            if comptime!(resident) {
                sums[(2 * c) as usize] += d * normal;
                sums[(2 * c + 1) as usize] += d;
            } else {
                add_partial(partials, own_partials + at, step, d * normal);
                if comptime!(plan.problem.kind == Kind::Layer) {
                    add_partial(partials, own_partials + vectors + at, step, d);
                }
            }
        }
    }
    (vector_sum(along), vector_sum(across))
}

/// Vectors of dy and s that were read before: from registers, or from memory where the row is too long for them.
#[cube]
fn again<E: Float, N: Size>(
    held: &Array<Vector<E, N>>,
    dy: &[Vector<E, N>],
    s: &[Vector<E, N>],
    chunk: u32,
    place: usize,
    #[comptime] resident: bool,
) -> (Vector<E, N>, Vector<E, N>) {
    if comptime!(resident) {
        (held[(2 * chunk) as usize], held[(2 * chunk + 1) as usize])
    } else {
        (dy[place], s[place])
    }
}

/// A vector that waits in as few registers as it takes.
#[cube]
fn packed<E: Float, N: Size>(value: Vector<E, N>, #[comptime] plan: Plan) -> Vector<E, N> {
    if comptime!(plan.backward.vector * plan.element.bytes() >= 4) {
        opaque::<Vector<E, N>>(value, plan.target)
    } else {
        value
    }
}

#[cube]
fn zeros<N: Size>(#[comptime] count: usize) -> Array<Vector<f32, N>> {
    let mut array = Array::<Vector<f32, N>>::new(count);
    #[unroll]
    for i in 0..count {
        array[i] = Vector::zero();
    }
    array
}

/// Mean and 1 / deviation of a row.
#[cube]
fn saved(stats: &[f32], row: u32, #[comptime] kind: Kind) -> (f32, f32) {
    match kind {
        Kind::Layer => (stats[(2 * row) as usize], stats[(2 * row + 1) as usize]),
        Kind::Rms => (0.0f32, stats[row as usize]),
    }
}

#[cube]
fn normalised<E: Float, N: Size>(value: Vector<E, N>, row: &Row) -> Vector<f32, N> {
    (Vector::cast_from(value) - Vector::new(row.mean)) * Vector::new(row.rstd)
}

/// Adds in memory what registers have no room for.
#[cube]
fn add_partial<N: Size>(
    partials: &mut [Vector<f32, N>],
    at: u32,
    step: u32,
    value: Vector<f32, N>,
) {
    let mut sum = value;
    if step > 0 {
        sum += partials[at as usize];
    }
    partials[at as usize] = sum;
}

/// Writes a workgroup's sums, those of rows that it works on at a time added up in the order of their slots.
#[cube]
fn write_partials<N: Size>(
    partials: &mut [Vector<f32, N>],
    sums: &Array<Vector<f32, N>>,
    own: u32,
    unit: u32,
    slot: u32,
    #[comptime] plan: Plan,
) {
    let layout = comptime!(plan.backward);
    let (vectors, slots, parts) =
        comptime!((layout.vectors(), layout.per_workgroup(), plan.parts()));
    let mut joined = Shared::<[Vector<f32, N>]>::new_slice(comptime!(plan.joined()));
    #[unroll]
    for turn in 0..slots {
        if slot == turn {
            #[unroll]
            for i in 0..comptime!(layout.chunks() * parts) {
                let (c, part) = comptime!((i / parts, i % parts));
                let at = comptime!(c * layout.row_units) + unit;
                if at < vectors {
                    let mut sum = sums[comptime!((2 * c + part) as usize)];
                    let place = (part * vectors + at) as usize;
                    if comptime!(turn > 0) {
                        sum += joined[place];
                    }
                    if comptime!(turn + 1 < slots) {
                        joined[place] = sum;
                    } else {
                        partials[own as usize + place] = sum;
                    }
                }
            }
        }
        if comptime!(turn + 1 < slots) {
            sync_cube();
        }
    }
}
