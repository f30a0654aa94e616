//! The pass over the streamed rows, for the columns that a workgroup owns.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use super::super::bias::Form;
use super::super::problem::Geometry;
use super::super::score::UNSEEN;
use super::layout::Lane;
use super::pairs::Pairs;
use super::plan::{Plan, Role};
use super::products::{accumulate, multiply};
use super::score::{
    Columns, Place, biases, kept, probabilities, rows_are_queries, score_gradient, used,
};
use super::tiles::{Rows, Tiles, fetch, held, store};
use crate::matrix::hint::hold_loads;
use crate::matrix::instruction::{Target, Unit};
use crate::matrix::vector::from_elements;

/// What a workgroup's columns are multiplied by, as fragments of B.
#[derive(CubeType)]
pub(super) struct Own<E: Numeric, NB: Size> {
    /// x: S = X x.
    pub(super) x: Array<Vector<E, NB>>,
    /// y: dP = Y y.
    pub(super) y: Array<Vector<E, NB>>,
}

/// The sums that a lane keeps, in tiles of D.
#[derive(CubeType)]
pub(super) struct Sums<ND: Size> {
    /// X^T dS, a D per `m` elements of the head dimension; dS itself, where pairs are owned.
    pub(super) x: Array<Vector<f32, ND>>,
    /// Y^T P, where keys are owned.
    pub(super) y: Array<Vector<f32, ND>>,
    /// dS summed over the rows, for each of the lane's columns, where keys are owned.
    pub(super) column: Array<f32>,
}

/// Tiles of D that [`Sums`] has of X and Y.
fn sums(plan: Plan) -> (usize, usize) {
    let tiles = plan.own_part() / plan.instruction.m;
    match plan.role {
        Role::KeyValue => (tiles, tiles),
        Role::Query => (tiles, 1),
        Role::Pair => (plan.row_tiles * plan.tile_parts(), 1),
    }
}

#[cube]
impl<ND: Size> Sums<ND> {
    /// Nothing summed yet.
    pub(super) fn new(#[comptime] plan: Plan) -> Sums<ND> {
        let (x_tiles, y_tiles) = comptime!(sums(plan));
        let mut x = Array::<Vector<f32, ND>>::new(x_tiles);
        let mut y = Array::<Vector<f32, ND>>::new(y_tiles);
        #[unroll]
        for i in 0..x_tiles {
            x[i] = Vector::<f32, ND>::zero();
        }
        #[unroll]
        for i in 0..y_tiles {
            y[i] = Vector::<f32, ND>::zero();
        }
        let mut sums = Sums::<ND> {
            x,
            y,
            column: Array::<f32>::new(comptime!(plan.lane_columns())),
        };
        sums.clear_columns(plan);
        sums
    }

    /// Forgets the sums over the rows.
    pub(super) fn clear_columns(&mut self, #[comptime] plan: Plan) {
        #[unroll]
        for c in 0..comptime!(plan.lane_columns()) {
            self.column[c] = 0.0;
        }
    }
}

/// Where the streamed rows come from.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Stream {
    /// Rows of X.
    pub(super) x: Rows,
    /// Rows of Y.
    pub(super) y: Rows,
    /// The rows' statistics.
    pub(super) statistics: Rows,
}

/// Stages that are passed over: `from..middle`, then `middle..to`, each with or without a mask.
#[derive(CubeType)]
pub(super) struct Stages {
    /// The first.
    pub(super) from: u32,
    /// The first of the second part.
    pub(super) middle: u32,
    /// The one behind the last.
    pub(super) to: u32,
}

/// A stage of the stream on its way through the registers.
#[derive(CubeType)]
struct Stage<E: Numeric, V: Size> {
    vectors: Array<Vector<E, V>>,
    terms: Array<f32>,
}

/// Parts of a sweep that have their own text: one with a mask, one without; only one where the text is to be moderate.
fn parts(plan: Plan) -> usize {
    match plan.instruction.unit {
        Unit::Fma => 1,
        // With the longest rows, NVIDIA's compiler spills what a second text holds.
        Unit::Mma if plan.split > 1 => 1,
        _ => 2,
    }
}

/// Adds to `sums` what the rows of `stages` contribute; `masked` says which part of them needs a mask.
#[cube]
pub(super) fn sweep<E: Numeric, V: Size, W: Size, NA: Size, NB: Size, ND: Size, P: Size>(
    x: &[Vector<E, V>],
    y: &[Vector<E, V>],
    statistics: &[Vector<f32, Const<2>>],
    bias1: &[E],
    bias2: &[E],
    stream: &Stream,
    tiles: &mut Tiles<E, W>,
    own: &Own<E, NB>,
    sums: &mut Sums<ND>,
    geometry: &Geometry,
    place: &Place,
    columns: &Columns,
    pairs: &mut Pairs,
    stages: &Stages,
    #[comptime] masked: [bool; 2],
    #[comptime] plan: Plan,
) {
    let rows = comptime!(plan.rows() as u32);
    let held = comptime!(held(plan));
    let lane = Lane::new(plan.instruction);
    let mut stage = Stage::<E, V> {
        vectors: Array::new(held),
        terms: Array::new(2usize),
    };
    if stages.from < stages.to {
        fetch_stage(
            x,
            y,
            statistics,
            bias1,
            bias2,
            stream,
            geometry,
            place,
            stages.from * rows,
            &mut stage,
            plan,
        );
        if comptime!(plan.carries_pairs()) {
            let first = stages.from * rows;
            pairs.fetch(bias1, bias2, geometry, place, columns, &lane, first, plan);
        }
    }
    #[unroll]
    for part in 0..comptime!(parts(plan)) {
        let (first, last) = if comptime!(parts(plan) == 1) {
            (stages.from, stages.to)
        } else if comptime!(part == 0) {
            (stages.from, stages.middle)
        } else {
            (stages.middle, stages.to)
        };
        let masked = comptime!(match parts(plan) {
            1 => masked[0] || masked[1],
            _ => masked[part],
        });
        for at in first..last {
            sync_cube();
            store_stage(&stage, tiles, plan);
            // Before the barrier, which the compiler moves no load across: the next stage is on its way during this one.
            fetch_stage(
                x,
                y,
                statistics,
                bias1,
                bias2,
                stream,
                geometry,
                place,
                (at + 1) * rows,
                &mut stage,
                plan,
            );
            sync_cube();
            step::<E, W, NA, NB, ND, P>(
                tiles,
                own,
                sums,
                bias1,
                bias2,
                geometry,
                place,
                columns,
                pairs,
                &lane,
                at * rows,
                masked,
                plan,
            );
        }
    }
    // The tiles may be written again.
    sync_cube();
}

#[cube]
fn fetch_stage<E: Numeric, V: Size>(
    x: &[Vector<E, V>],
    y: &[Vector<E, V>],
    statistics: &[Vector<f32, Const<2>>],
    bias1: &[E],
    bias2: &[E],
    stream: &Stream,
    geometry: &Geometry,
    place: &Place,
    first: u32,
    stage: &mut Stage<E, V>,
    #[comptime] plan: Plan,
) {
    fetch(x, y, &stream.x, &stream.y, first, &mut stage.vectors, plan);
    let row = first + UNIT_POS % comptime!(plan.rows() as u32);
    if comptime!(rows_are_queries(plan)) {
        let exists = row < stream.statistics.count;
        let at = stream.statistics.base
            + min(row, stream.statistics.count - 1) * stream.statistics.stride;
        let pair = statistics[at as usize];
        // A row that does not exist has no probability left.
        stage.terms[0] = select(exists, pair.extract(0usize), f32::new(UNSEEN));
        stage.terms[1] = pair.extract(1usize);
    } else if comptime!(plan.has_bias(Form::Keys)) {
        stage.terms[0] = biases(bias1, bias2, geometry, place, 0u32, row, Form::Keys, plan);
    }
}

#[cube]
fn store_stage<E: Numeric, V: Size, W: Size>(
    stage: &Stage<E, V>,
    tiles: &mut Tiles<E, W>,
    #[comptime] plan: Plan,
) {
    let rows = comptime!(plan.rows() as u32);
    store(&stage.vectors, tiles, plan);
    if UNIT_POS < rows {
        tiles.terms[UNIT_POS as usize] = stage.terms[0];
        tiles.terms[(UNIT_POS + rows) as usize] = stage.terms[1];
    }
}

/// Adds what the staged rows, of which `stage` is the first, contribute.
#[cube]
fn step<E: Numeric, W: Size, NA: Size, NB: Size, ND: Size, P: Size>(
    tiles: &mut Tiles<E, W>,
    own: &Own<E, NB>,
    sums: &mut Sums<ND>,
    bias1: &[E],
    bias2: &[E],
    geometry: &Geometry,
    place: &Place,
    columns: &Columns,
    pairs: &mut Pairs,
    lane: &Lane,
    stage: u32,
    #[comptime] masked: bool,
    #[comptime] plan: Plan,
) {
    if comptime!(plan.loops()) {
        for t in 0..comptime!(plan.row_tiles as u32) {
            let lane = lane.behind(within(t, plan) * comptime!(plan.tile_rows() as u32));
            tile::<E, W, NA, NB, ND, P>(
                tiles, own, sums, bias1, bias2, geometry, place, columns, pairs, &lane, stage,
                0usize, masked, plan,
            );
        }
    } else {
        // Each product runs beside the arithmetic on the one before.
        #[unroll]
        for t in 0..comptime!(plan.row_tiles) {
            tile::<E, W, NA, NB, ND, P>(
                tiles, own, sums, bias1, bias2, geometry, place, columns, pairs, lane, stage, t,
                masked, plan,
            );
        }
    }
}

/// A tile's number. NVIDIA's compiler adds constants to an index within the instruction that uses it if it sees that the sum
/// fits 32 bits; else it keeps a register for each sum.
#[cube]
fn within(t: u32, #[comptime] plan: Plan) -> u32 {
    if comptime!(plan.target == Target::Cuda) {
        t & 0xff
    } else {
        t
    }
}

/// Adds what tile `t` of the staged rows contributes.
#[cube]
fn tile<E: Numeric, W: Size, NA: Size, NB: Size, ND: Size, P: Size>(
    tiles: &mut Tiles<E, W>,
    own: &Own<E, NB>,
    sums: &mut Sums<ND>,
    bias1: &[E],
    bias2: &[E],
    geometry: &Geometry,
    place: &Place,
    columns: &Columns,
    pairs: &mut Pairs,
    lane: &Lane,
    stage: u32,
    #[comptime] t: usize,
    #[comptime] masked: bool,
    #[comptime] plan: Plan,
) {
    if comptime!(plan.reads_ahead() && !plan.keeps_pairs() && !plan.carries_pairs()) {
        let first = stage + comptime!((t * plan.tile_rows()) as u32);
        pairs.fetch(bias1, bias2, geometry, place, columns, lane, first, plan);
    }
    let s = multiply::<E, W, NA, NB, ND>(&tiles.x, &own.x, &mut tiles.told, lane, t, 0usize, plan);
    let p = probabilities::<E, ND>(
        &s,
        &tiles.terms,
        bias1,
        bias2,
        geometry,
        place,
        columns,
        &*pairs,
        lane,
        stage,
        t,
        masked,
        plan,
    );
    if comptime!(plan.carries_pairs()) {
        let next = stage + comptime!(((t + 1) * plan.tile_rows()) as u32);
        pairs.fetch(bias1, bias2, geometry, place, columns, lane, next, plan);
        // At once: the compiler would delay them to save registers, and then wait for them.
        hold_loads(plan.target);
    }
    let dp = multiply::<E, W, NA, NB, ND>(&tiles.y, &own.y, &mut tiles.told, lane, t, 1usize, plan);
    let kept = kept(geometry, place, lane, columns, stage, t, plan);
    if comptime!(plan.role == Role::KeyValue) {
        let used = used(&p, &kept, plan);
        accumulate::<E, W, NA, NB, ND, P>(&tiles.y_turned, &mut sums.y, &used, lane, t, plan);
    }
    let ds = score_gradient::<ND>(&p, &dp, &kept, &tiles.terms, columns, lane, t, plan);
    if comptime!(plan.role == Role::Pair) {
        add::<ND>(&mut sums.x, &ds, t, plan);
    } else {
        accumulate::<E, W, NA, NB, ND, P>(&tiles.x_turned, &mut sums.x, &ds, lane, t, plan);
    }
    if comptime!(plan.key_sums) {
        #[unroll]
        for e in 0..comptime!(plan.tile_elements()) {
            sums.column[comptime!(plan.place_of(e).1)] += ds[e];
        }
    }
}

#[cube]
fn add<ND: Size>(
    sums: &mut Array<Vector<f32, ND>>,
    values: &Array<f32>,
    #[comptime] t: usize,
    #[comptime] plan: Plan,
) {
    let (parts, count) = comptime!((plan.tile_parts(), plan.instruction.d.elements));
    #[unroll]
    for part in 0..parts {
        let at = comptime!(t * parts + part);
        let mut elements = Sequence::<f32>::new();
        #[unroll]
        for e in 0..count {
            elements.push(sums[at].extract(e) + values[comptime!(part * count + e)]);
        }
        sums[at] = from_elements(&elements);
    }
}
