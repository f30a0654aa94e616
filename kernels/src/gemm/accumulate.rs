//! The main loop: a workgroup's tile of `A B`, summed over K.
//!
//! While a wave multiplies with one tile of K, the next one is on its way into registers; shared memory holds one tile. The
//! last reads of a tile stand before its last products, and the first reads of the next before them too, so that the matrix
//! unit is fed across both barriers.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use super::multiply::multiply;
use super::order::interleave;
use super::plan::Plan;
use super::product::{Factors, Place};
use super::side::{Side, bring, bring_edge, memory, put, side, take, take_at};
use super::stage::add_elements;
use super::tile::Role;

/// Adds to `sums` the product of some rows of A and columns of B over tiles of K, of which only the last may reach beyond K.
#[cube]
pub fn accumulate<E: Numeric, WA: Size, WB: Size, V: Size, NA: Size, NB: Size, ND: Size>(
    left: &[Vector<E, WA>],
    right: &[Vector<E, WB>],
    factors: &Factors,
    own: &Place,
    sums: &mut Array<Vector<f32, ND>>,
    operand_sums: &mut Array<f32>,
    #[comptime] plan: Plan,
) {
    let tile_a = memory::<E, V>(Role::Rows, plan);
    let tile_b = memory::<E, V>(Role::Columns, plan);
    accumulate_in::<E, WA, WB, V, NA, NB, ND>(
        left,
        right,
        factors,
        own,
        tile_a,
        tile_b,
        sums,
        operand_sums,
        plan,
    );
}

/// As [`accumulate`], in given shared memory: that of an operand's tile each. Free again at the end only if the products of a
/// tile are a loop.
#[cube]
pub fn accumulate_in<E: Numeric, WA: Size, WB: Size, V: Size, NA: Size, NB: Size, ND: Size>(
    left: &[Vector<E, WA>],
    right: &[Vector<E, WB>],
    factors: &Factors,
    own: &Place,
    tile_a: Shared<[Vector<E, V>]>,
    tile_b: Shared<[Vector<E, V>]>,
    sums: &mut Array<Vector<f32, ND>>,
    operand_sums: &mut Array<f32>,
    #[comptime] plan: Plan,
) {
    let mut a = side::<E, WA, V>(
        &factors.a,
        factors.row,
        own.row,
        own.lane,
        tile_a,
        Role::Rows,
        plan,
    );
    let mut b = side::<E, WB, V>(
        &factors.b,
        factors.column,
        own.column,
        own.lane,
        tile_b,
        Role::Columns,
        plan,
    );
    // The last tile first, so that the loop checks nothing.
    let last = (factors.first + factors.count - 1) * comptime!(plan.tiling.depth as u32);
    bring_edge(&mut a, left, &factors.a, last, Role::Rows, plan);
    bring_edge(&mut b, right, &factors.b, last, Role::Columns, plan);
    put(&mut a, Role::Rows, plan);
    put(&mut b, Role::Columns, plan);
    add_operand(&a.brought, &b.brought, operand_sums, plan);
    sync_cube();
    if comptime!(plan.loops()) {
        in_loops::<E, WA, WB, V, NA, NB, ND>(
            left,
            right,
            factors,
            &mut a,
            &mut b,
            sums,
            operand_sums,
            plan,
        );
    } else {
        pipelined::<E, WA, WB, V, NA, NB, ND>(
            left,
            right,
            factors,
            &mut a,
            &mut b,
            sums,
            operand_sums,
            plan,
        );
    }
}

/// The products of all tiles, of which the last is in shared memory: one text for the products of all places along K. The next
/// tile is on its way during those of the one before.
#[cube]
fn in_loops<E: Numeric, WA: Size, WB: Size, V: Size, NA: Size, NB: Size, ND: Size>(
    left: &[Vector<E, WA>],
    right: &[Vector<E, WB>],
    factors: &Factors,
    a: &mut Side<E, WA, V>,
    b: &mut Side<E, WB, V>,
    sums: &mut Array<Vector<f32, ND>>,
    operand_sums: &mut Array<f32>,
    #[comptime] plan: Plan,
) {
    for t in 0..factors.count {
        let more = t + 1 < factors.count;
        if more {
            let k = (factors.first + t) * comptime!(plan.tiling.depth as u32);
            bring(a, left, &factors.a, k, Role::Rows, plan);
            bring(b, right, &factors.b, k, Role::Columns, plan);
        }
        for r in 0..comptime!(plan.reads() as u32) {
            take_at(a, r, Role::Rows, plan);
            take_at(b, r, Role::Columns, plan);
            let steps = comptime!((0, plan.steps()));
            products::<E, V, NA, NB, ND>(&a.taken, &b.taken, sums, 0usize, steps, plan);
        }
        sync_cube();
        if more {
            put(a, Role::Rows, plan);
            put(b, Role::Columns, plan);
            add_operand(&a.brought, &b.brought, operand_sums, plan);
        }
        sync_cube();
    }
}

/// As [`in_loops`], with the products of a tile written out, so that the matrix unit is fed across both barriers.
#[cube]
fn pipelined<E: Numeric, WA: Size, WB: Size, V: Size, NA: Size, NB: Size, ND: Size>(
    left: &[Vector<E, WA>],
    right: &[Vector<E, WB>],
    factors: &Factors,
    a: &mut Side<E, WA, V>,
    b: &mut Side<E, WB, V>,
    sums: &mut Array<Vector<f32, ND>>,
    operand_sums: &mut Array<f32>,
    #[comptime] plan: Plan,
) {
    let depth = comptime!(plan.tiling.depth as u32);
    take(a, 0usize, Role::Rows, plan);
    take(b, 0usize, Role::Columns, plan);
    for t in 0..factors.count - 1 {
        let k = (factors.first + t) * depth;
        bring(a, left, &factors.a, k, Role::Rows, plan);
        bring(b, right, &factors.b, k, Role::Columns, plan);
        turn::<E, WA, WB, V, NA, NB, ND>(a, b, sums, operand_sums, plan);
        interleave(plan);
    }
    #[unroll]
    for r in 0..comptime!(plan.reads()) {
        if comptime!(r + 1 < plan.reads()) {
            take(a, comptime!(r + 1), Role::Rows, plan);
            take(b, comptime!(r + 1), Role::Columns, plan);
        }
        products::<E, V, NA, NB, ND>(
            &a.taken,
            &b.taken,
            sums,
            r,
            comptime!((0, plan.steps())),
            plan,
        );
    }
}

/// Multiplies with the tile in shared memory, of which the first read is in registers, and puts the one that was brought in its
/// place, of which it takes the first read.
#[cube]
fn turn<E: Numeric, WA: Size, WB: Size, V: Size, NA: Size, NB: Size, ND: Size>(
    a: &mut Side<E, WA, V>,
    b: &mut Side<E, WB, V>,
    sums: &mut Array<Vector<f32, ND>>,
    operand_sums: &mut Array<f32>,
    #[comptime] plan: Plan,
) {
    let (reads, steps) = comptime!((plan.reads(), plan.steps()));
    #[unroll]
    for r in 1..reads {
        take(a, r, Role::Rows, plan);
        take(b, r, Role::Columns, plan);
        if comptime!(r + 1 < reads) {
            products::<E, V, NA, NB, ND>(
                &a.taken,
                &b.taken,
                sums,
                comptime!(r - 1),
                comptime!((0, steps)),
                plan,
            );
        }
    }
    let before_last = comptime!(reads - 2);
    products::<E, V, NA, NB, ND>(
        &a.taken,
        &b.taken,
        sums,
        before_last,
        comptime!((0, steps / 2)),
        plan,
    );
    // All of the tile is in registers.
    sync_cube();
    put(a, Role::Rows, plan);
    put(b, Role::Columns, plan);
    add_operand(&a.brought, &b.brought, operand_sums, plan);
    products::<E, V, NA, NB, ND>(
        &a.taken,
        &b.taken,
        sums,
        before_last,
        comptime!((steps / 2, steps)),
        plan,
    );
    sync_cube();
    take(a, reads, Role::Rows, plan);
    take(b, reads, Role::Columns, plan);
    products::<E, V, NA, NB, ND>(
        &a.taken,
        &b.taken,
        sums,
        comptime!(reads - 1),
        comptime!((0, steps)),
        plan,
    );
}

/// Adds what was brought of the operand of [`Plan::sums_of`], if there is one, to its sums.
#[cube]
fn add_operand<E: Numeric, WA: Size, WB: Size>(
    a: &Array<Vector<E, WA>>,
    b: &Array<Vector<E, WB>>,
    sums: &mut Array<f32>,
    #[comptime] plan: Plan,
) {
    if comptime!(plan.sums_of == Some(Role::Rows)) {
        add_elements(a, sums, comptime!(plan.operand(Role::Rows)));
    }
    if comptime!(plan.sums_of == Some(Role::Columns)) {
        add_elements(b, sums, comptime!(plan.operand(Role::Columns)));
    }
}

/// The products of some steps (`from`, `to`) of a read.
#[cube]
fn products<E: Numeric, V: Size, NA: Size, NB: Size, ND: Size>(
    a: &Sequence<Array<Vector<E, V>>>,
    b: &Sequence<Array<Vector<E, V>>>,
    sums: &mut Array<Vector<f32, ND>>,
    #[comptime] read: usize,
    #[comptime] steps: (usize, usize),
    #[comptime] plan: Plan,
) {
    let (from, to) = steps;
    #[unroll]
    for step in from..to {
        multiply::<E, V, NA, NB, ND>(
            a.index(comptime!(read % 2)),
            b.index(comptime!(read % 2)),
            sums,
            step,
            plan,
        );
    }
}
