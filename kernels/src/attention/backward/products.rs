//! The products of staged rows with what a workgroup owns.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use super::layout::{Lane, feed};
use super::plan::{BLOCK, Plan};
use super::tiles::{rows_fragment, turned_fragment};
use crate::matrix::product::product;
use crate::matrix::spread::{gather, scatter};
use crate::matrix::vector::from_elements;

/// The product of tile `t` of the staged rows with the owned columns, one D after the other. Waves that share columns add up
/// theirs by `told`, which has room for two such products, this one at `slot`.
#[cube]
pub(super) fn multiply<E: Numeric, W: Size, NA: Size, NB: Size, ND: Size>(
    rows: &Shared<[Vector<E, W>]>,
    own: &Array<Vector<E, NB>>,
    told: &mut Shared<[f32]>,
    lane: &Lane,
    #[comptime] t: usize,
    #[comptime] slot: usize,
    #[comptime] plan: Plan,
) -> Array<Vector<f32, ND>> {
    let parts = comptime!(plan.tile_parts());
    let mut all = Array::<Vector<f32, ND>>::new(parts);
    if comptime!(plan.spreads()) {
        all[0] = multiply_spread::<E, W, NB, ND>(rows, own, lane, t, plan);
    } else {
        #[unroll]
        for part in 0..parts {
            let mut d = Vector::<f32, ND>::zero();
            #[unroll]
            for k in 0..comptime!(plan.own_part() / plan.instruction.k) {
                let a = rows_fragment::<E, W, NA>(rows, lane, comptime!(t * parts + part), k, plan);
                d = product::<E, f32, NA, NB, ND>(a, own[k], d, plan.instruction);
            }
            all[part] = d;
        }
    }
    if comptime!(plan.split > 1) {
        join(&mut all, told, slot, plan);
    }
    all
}

/// A D by multiply-adds of lanes that share columns: sums over the lane's part of the contraction, for all rows, then over
/// the lanes.
#[cube]
fn multiply_spread<E: Numeric, W: Size, NB: Size, ND: Size>(
    rows: &Shared<[Vector<E, W>]>,
    own: &Array<Vector<E, NB>>,
    lane: &Lane,
    #[comptime] t: usize,
    #[comptime] plan: Plan,
) -> Vector<f32, ND> {
    let (m, groups) = comptime!((plan.instruction.m, plan.groups()));
    let pitch = comptime!((plan.row_pitch() / BLOCK) as u32);
    let mut sums = Array::<f32>::new(m);
    #[unroll]
    for r in 0..m {
        sums[r] = 0.0;
    }
    let first = (lane.row + comptime!((t * m) as u32)) * pitch
        + lane.part
        + own_first(plan) / comptime!(BLOCK as u32);
    #[unroll]
    for chunk in 0..comptime!(plan.own_part() / (BLOCK * groups)) {
        #[unroll]
        for r in 0..m {
            let vector =
                rows[(first + comptime!(r as u32 * pitch + (chunk * groups) as u32)) as usize];
            #[unroll]
            for e in 0..comptime!(BLOCK) {
                let a = f32::cast_from(vector.extract(e));
                let b = f32::cast_from(own[comptime!(chunk * BLOCK + e)].extract(0usize));
                sums[r] = fma(a, b, sums[r]);
            }
        }
    }
    let sums = scatter(&sums, plan.instruction, plan.target);
    let mut elements = Sequence::<f32>::new();
    #[unroll]
    for e in 0..ND::value().comptime() {
        elements.push(sums[e]);
    }
    from_elements(&elements)
}

/// Adds the sums of the wave that has the other part of the head dimension: what both then have is the same, bit for bit.
///
/// The barrier of one slot stands between the reads of the other and the next writes to it.
#[cube]
fn join<ND: Size>(
    all: &mut Array<Vector<f32, ND>>,
    told: &mut Shared<[f32]>,
    #[comptime] slot: usize,
    #[comptime] plan: Plan,
) {
    let (units, count) = comptime!((plan.units(), plan.instruction.d.elements));
    let first = comptime!(slot * plan.tile_elements() * units);
    #[unroll]
    for part in 0..comptime!(plan.tile_parts()) {
        #[unroll]
        for e in 0..count {
            let at = UNIT_POS + comptime!((first + (part * count + e) * units) as u32);
            told[at as usize] = all[part].extract(e);
        }
    }
    sync_cube();
    let other = UNIT_POS ^ comptime!(plan.instruction.lanes as u32);
    #[unroll]
    for part in 0..comptime!(plan.tile_parts()) {
        let mut elements = Sequence::<f32>::new();
        #[unroll]
        for e in 0..count {
            let at = other + comptime!((first + (part * count + e) * units) as u32);
            elements.push(all[part].extract(e) + told[at as usize]);
        }
        all[part] = from_elements(&elements);
    }
}

/// The first element of the head dimension, filled up, that the wave has.
#[cube]
pub(super) fn own_first(#[comptime] plan: Plan) -> u32 {
    if comptime!(plan.split > 1) {
        let wave = UNIT_POS / comptime!(plan.instruction.lanes as u32);
        wave % comptime!(plan.split as u32) * comptime!(plan.own_part() as u32)
    } else {
        0u32.runtime()
    }
}

/// Adds the product of tile `t` of the staged rows, turned, with `values`, which are what the lanes hold of that tile.
#[cube]
pub(super) fn accumulate<E: Numeric, W: Size, NA: Size, NB: Size, ND: Size, P: Size>(
    turned: &Shared<[Vector<E, W>]>,
    sums: &mut Array<Vector<f32, ND>>,
    values: &Array<f32>,
    lane: &Lane,
    #[comptime] t: usize,
    #[comptime] plan: Plan,
) {
    let instruction = comptime!(plan.instruction);
    if comptime!(plan.spreads()) {
        let column = gather(values, instruction, plan.target);
        // `multiply` has read the same rows, from the same places, which the compiler would hold in registers until now.
        sync_plane();
        let pitch = comptime!((plan.row_pitch() / BLOCK) as u32);
        let first = (lane.row + comptime!((t * instruction.m) as u32)) * pitch
            + lane.part
            + own_first(plan) / comptime!(BLOCK as u32);
        #[unroll]
        for dt in 0..comptime!(plan.own_part() / instruction.m) {
            #[unroll]
            for r in 0..comptime!(instruction.m) {
                let at = first + comptime!(r as u32 * pitch + (dt * plan.groups()) as u32);
                let a = Vector::<E, NA>::cast_from(turned[at as usize]);
                let b = Vector::<E, NB>::new(E::cast_from(column[r]));
                sums[dt] = product::<E, f32, NA, NB, ND>(a, b, sums[dt], instruction);
            }
        }
    } else {
        let fragments = feed::<E, NB, P>(values, plan);
        #[unroll]
        for dt in 0..comptime!(plan.own_part() / instruction.m) {
            #[unroll]
            for k in 0..comptime!(plan.tile_rows() / instruction.k) {
                let a = turned_fragment::<E, W, NA>(turned, lane, dt, t, k, plan);
                sums[dt] = product::<E, f32, NA, NB, ND>(a, fragments[k], sums[dt], instruction);
            }
        }
    }
}
