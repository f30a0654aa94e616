//! The kernels of the backward pass.

use cubecl_core as cubecl;
use cubecl_core::ir::ElemType;
use cubecl_core::prelude::*;

use super::super::problem::Geometry;
use super::super::score::{self, UNSEEN, keys_seen_below, keys_seen_by_all, query_base, sequence};
use super::blocks;
use super::ends::{
    GradientStrides, column, key_columns, key_rows, own_keys, query_rows, query_stream, write,
};
use super::layout::Lane;
use super::pairs::Pairs;
use super::plan::Plan;
use super::score::{Column, Columns, Place};
use super::sweep::{Own, Stages, Stream, Sums, sweep};
use super::tiles::{Tiles, own_fragments};
use crate::matrix::lanes::{Join, exchange, join_column};
use crate::matrix::math::LOG2_E;
use crate::matrix::vector::from_elements;

/// A query whose log-sum-exp is less has no gradients: it sees nothing, or only keys masked by a number such as -1e9, beside
/// which f32 keeps no difference of scores, so that recomputed probabilities could be anything up to infinity.
const LEAST_LSE: f32 = -1e6;

/// What the other kernels need of each query: its log-sum-exp negated and to base 2 ([`UNSEEN`] below [`LEAST_LSE`], so that it
/// has no probabilities), and the negated sum of dO O.
#[cube(launch_unchecked)]
pub(super) fn statistics<E: Numeric, V: Size>(
    o: &[Vector<E, V>],
    o_gradient: &[Vector<E, V>],
    lse: &[f32],
    cumulative_queries: &[u32],
    cumulative_keys: &[u32],
    statistics: &mut [Vector<f32, Const<2>>],
    geometry: Geometry,
    gradient: GradientStrides,
    #[comptime] plan: Plan,
    #[define(E)] _element: ElemType,
    #[define(V)] _width: usize,
) {
    let lanes = comptime!(plan.statistics_lanes() as u32);
    let width = comptime!(plan.width as u32);
    let sequence = sequence(
        CUBE_POS_Z,
        &geometry,
        cumulative_queries,
        cumulative_keys,
        plan.variant,
    );
    let query = CUBE_POS_X * comptime!(plan.units() as u32 / lanes) + UNIT_POS / lanes;
    let row = min(query, max(sequence.queries, 1u32) - 1);
    let of = query_base(&sequence, CUBE_POS_Y, &geometry.o, plan.variant) + row * geometry.o.row;
    let with = query_base(&sequence, CUBE_POS_Y, &gradient.o, plan.variant) + row * gradient.o.row;
    let mut sum = f32::new(0.0);
    for step in 0..comptime!((plan.variant.head_dim as u32).div_ceil(lanes * width)) {
        let at = (step * lanes + UNIT_POS % lanes) * width;
        if at < comptime!(plan.variant.head_dim as u32) && query < sequence.queries {
            let a = o[((of + at) / width) as usize];
            let b = o_gradient[((with + at) / width) as usize];
            #[unroll]
            for e in 0..comptime!(plan.width) {
                sum += f32::cast_from(a.extract(e)) * f32::cast_from(b.extract(e));
            }
        }
    }
    #[unroll]
    for step in 0..comptime!(lanes.ilog2()) {
        sum += exchange(sum, comptime!(1u32 << step), plan.target);
    }
    if UNIT_POS % lanes == 0 && query < sequence.queries {
        let at = query_base(&sequence, CUBE_POS_Y, &geometry.lse, plan.variant)
            + query * geometry.lse.row;
        let lse = lse[at as usize];
        let term = select(lse < LEAST_LSE, UNSEEN, plan.lift() - lse * LOG2_E);
        let mut pair = Sequence::<f32>::new();
        pair.push(term);
        pair.push(-sum);
        statistics[at as usize] = from_elements(&pair);
    }
}

/// dK and dV; with a bias that varies along keys also the sums of dS over the queries, `[batch, heads, keys]`.
#[cube(launch_unchecked)]
pub(super) fn key_value<E: Float, V: Size, W: Size, NA: Size, NB: Size, ND: Size, P: Size>(
    q: &[Vector<E, V>],
    k: &[Vector<E, V>],
    v: &[Vector<E, V>],
    o_gradient: &[Vector<E, V>],
    statistics: &[Vector<f32, Const<2>>],
    bias1: &[E],
    bias2: &[E],
    cumulative_queries: &[u32],
    cumulative_keys: &[u32],
    samples: &[u32],
    k_gradient: &mut [Vector<E, V>],
    v_gradient: &mut [Vector<E, V>],
    key_sums: &mut [f32],
    geometry: Geometry,
    gradient: GradientStrides,
    #[comptime] plan: Plan,
    #[define(E)] _element: ElemType,
    #[define(V, W, NA, NB, ND, P)] _sizes: [usize; 6],
) {
    let sequence = sequence(
        CUBE_POS_Z,
        &geometry,
        cumulative_queries,
        cumulative_keys,
        plan.variant,
    );
    let first = CUBE_POS_X * comptime!(plan.columns() as u32);
    if comptime!(plan.in_blocks()) {
        let inputs = blocks::inputs::<E, V>(q, k, v, o_gradient, statistics, bias1, bias2, samples);
        if first < sequence.keys {
            blocks::key_value::<E, V, W, NA, NB, ND>(
                &inputs, k_gradient, v_gradient, key_sums, &sequence, first, &geometry, &gradient,
                plan,
            );
        }
    } else if first < sequence.keys {
        let lane = Lane::new(plan.instruction);
        let wave = UNIT_POS / comptime!((plan.split * plan.instruction.lanes) as u32);
        let key = first + wave * comptime!(plan.instruction.n as u32) + lane.column;
        let own = own_keys::<E, V, NB>(k, v, &sequence, CUBE_POS_Y, key, &geometry, plan);
        let mut tiles = Tiles::<E, W>::new(plan);
        let mut sums = Sums::<ND>::new(plan);
        let mut pairs = Pairs::new(plan);
        let stages = query_stages(&sequence, first, plan);
        for member in 0..geometry.group {
            let head = CUBE_POS_Y * geometry.group + member;
            let place = Place::new(&sequence, head, samples, &geometry, plan);
            let stream = query_stream(&sequence, head, &geometry, &gradient, plan);
            let columns = key_columns(bias1, bias2, &geometry, &place, key, plan);
            sums.clear_columns(plan);
            sweep::<E, V, W, NA, NB, ND, P>(
                q,
                o_gradient,
                statistics,
                bias1,
                bias2,
                &stream,
                &mut tiles,
                &own,
                &mut sums,
                &geometry,
                &place,
                &columns,
                &mut pairs,
                &stages,
                comptime!([plan.variant.causal, false]),
                plan,
            );
            if comptime!(plan.key_sums) {
                #[unroll]
                for c in 0..comptime!(plan.lane_columns()) {
                    let key = column(key, c, plan);
                    let sum = join_column(sums.column[c], Join::Sum, plan.instruction, plan.target);
                    if key < sequence.keys {
                        let heads = CUBE_COUNT_Y * geometry.group;
                        let at = (sequence.batch * heads + head) * geometry.keys + key;
                        key_sums[at as usize] = sum * comptime!((-plan.lift()).exp2());
                    }
                }
            }
        }
        #[unroll]
        for c in 0..comptime!(plan.lane_columns()) {
            let key = column(key, c, plan);
            if key < sequence.keys {
                let rows = key_rows(&sequence, CUBE_POS_Y, &gradient.k, plan);
                write(
                    &sums.x,
                    k_gradient,
                    &rows,
                    key,
                    &lane,
                    geometry.scale * comptime!(plan.lowering()),
                    c,
                    plan,
                );
                let rows = key_rows(&sequence, CUBE_POS_Y, &gradient.v, plan);
                write(
                    &sums.y,
                    v_gradient,
                    &rows,
                    key,
                    &lane,
                    comptime!(plan.lowering()).runtime(),
                    c,
                    plan,
                );
            }
        }
    }
}

/// Stages of queries that see a key from `first` on: from the first stage, those to be masked, to the last.
#[cube]
pub(super) fn query_stages(
    sequence: &score::Sequence,
    first: u32,
    #[comptime] plan: Plan,
) -> Stages {
    let rows = comptime!(plan.rows() as u32);
    let to = sequence.queries.div_ceil(rows);
    if comptime!(plan.variant.causal) {
        // Query i sees key j if i + keys >= j + queries.
        let last = first + comptime!(plan.columns() as u32 - 1);
        let from = positive(first + sequence.queries, sequence.keys) / rows;
        let full = positive(last + sequence.queries, sequence.keys).div_ceil(rows);
        let middle = min(full, to);
        Stages {
            from: min(from, middle),
            middle,
            to,
        }
    } else {
        Stages {
            from: 0u32.runtime(),
            middle: 0u32.runtime(),
            to,
        }
    }
}

/// `a - b`, or 0.
#[cube]
fn positive(a: u32, b: u32) -> u32 {
    max(a, b) - b
}

/// dQ.
#[cube(launch_unchecked)]
pub(super) fn query<E: Float, V: Size, W: Size, NA: Size, NB: Size, ND: Size, P: Size>(
    q: &[Vector<E, V>],
    k: &[Vector<E, V>],
    v: &[Vector<E, V>],
    o_gradient: &[Vector<E, V>],
    statistics: &[Vector<f32, Const<2>>],
    bias1: &[E],
    bias2: &[E],
    cumulative_queries: &[u32],
    cumulative_keys: &[u32],
    samples: &[u32],
    q_gradient: &mut [Vector<E, V>],
    geometry: Geometry,
    gradient: GradientStrides,
    #[comptime] plan: Plan,
    #[define(E)] _element: ElemType,
    #[define(V, W, NA, NB, ND, P)] _sizes: [usize; 6],
) {
    let sequence = sequence(
        CUBE_POS_Z,
        &geometry,
        cumulative_queries,
        cumulative_keys,
        plan.variant,
    );
    let columns = comptime!(plan.columns() as u32);
    // The longest rows of a causal mask first.
    let tile = if comptime!(plan.variant.causal) {
        positive(CUBE_COUNT_X, CUBE_POS_X + 1)
    } else {
        CUBE_POS_X
    };
    let first = tile * columns;
    let (head, kv_head) = (CUBE_POS_Y, CUBE_POS_Y / geometry.group);
    if comptime!(plan.in_blocks()) {
        let inputs = blocks::inputs::<E, V>(q, k, v, o_gradient, statistics, bias1, bias2, samples);
        if first < sequence.queries {
            blocks::query::<E, V, W, NA, NB, ND>(
                &inputs, q_gradient, &sequence, first, &geometry, &gradient, plan,
            );
        }
    } else if first < sequence.queries {
        let lane = Lane::new(plan.instruction);
        let wave = UNIT_POS / comptime!((plan.split * plan.instruction.lanes) as u32);
        let query = first + wave * comptime!(plan.instruction.n as u32) + lane.column;
        let rows = query_rows(&sequence, head, &geometry.lse, plan);
        let mut columns = Columns::new();
        #[unroll]
        for c in 0..comptime!(plan.lane_columns()) {
            let query = column(query, c, plan);
            let pair = statistics[(rows.base + min(query, rows.count - 1) * rows.stride) as usize];
            columns.push(Column {
                position: query,
                term: pair.extract(0usize),
                delta: pair.extract(1usize),
            });
        }
        let own = Own::<E, NB> {
            x: own_fragments::<E, V, NB>(
                q,
                &query_rows(&sequence, head, &geometry.q, plan),
                query,
                plan,
            ),
            y: own_fragments::<E, V, NB>(
                o_gradient,
                &query_rows(&sequence, head, &gradient.o, plan),
                query,
                plan,
            ),
        };
        let mut tiles = Tiles::<E, W>::new(plan);
        let mut sums = Sums::<ND>::new(plan);
        let mut pairs = Pairs::new(plan);
        let stream = Stream {
            x: key_rows(&sequence, kv_head, &geometry.k, plan),
            y: key_rows(&sequence, kv_head, &geometry.v, plan),
            statistics: rows,
        };
        sweep::<E, V, W, NA, NB, ND, P>(
            k,
            v,
            statistics,
            bias1,
            bias2,
            &stream,
            &mut tiles,
            &own,
            &mut sums,
            &geometry,
            &Place::new(&sequence, head, samples, &geometry, plan),
            &columns,
            &mut pairs,
            &key_stages(&sequence, first, plan),
            comptime!([false, true]),
            plan,
        );
        #[unroll]
        for c in 0..comptime!(plan.lane_columns()) {
            let query = column(query, c, plan);
            if query < sequence.queries {
                let rows = query_rows(&sequence, head, &gradient.q, plan);
                write(
                    &sums.x,
                    q_gradient,
                    &rows,
                    query,
                    &lane,
                    geometry.scale * comptime!(plan.lowering()),
                    c,
                    plan,
                );
            }
        }
    }
}

/// Stages of keys that a query from `first` on sees: first those that need no mask.
#[cube]
pub(super) fn key_stages(sequence: &score::Sequence, first: u32, #[comptime] plan: Plan) -> Stages {
    let (rows, columns) = comptime!((plan.rows() as u32, plan.columns() as u32));
    let all = keys_seen_by_all(sequence, first, plan.variant.causal);
    let some = keys_seen_below(sequence, first + columns, plan.variant.causal);
    Stages {
        from: 0u32.runtime(),
        middle: all / rows,
        to: some.div_ceil(rows),
    }
}
