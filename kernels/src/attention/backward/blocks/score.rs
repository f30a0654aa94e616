//! P and dS of a block, and what they need of the rows that a workgroup owns.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use super::super::super::bias::Form;
use super::super::super::blocks::{Memory, Quad, Rows, of_lane};
use super::super::super::problem::Geometry;
use super::super::super::score::{self, UNSEEN, visible};
use super::super::ends::query_rows;
use super::super::plan::Plan;
use super::super::score::{Place, biases, rows_are_queries, words};
use super::Inputs;
use crate::gemm::product::{Place as Lane, own_place};
use crate::matrix::math::{LOG2_E, exp2};
use crate::matrix::vector::from_elements;

/// Where a workgroup is: what does not change from block to block.
#[derive(CubeType)]
pub(super) struct Here {
    pub(super) place: Place,
    pub(super) own: Lane,
    /// The first owned row.
    pub(super) first: u32,
    /// Rows of the statistics.
    pub(super) statistics: Rows,
    /// Terms of the owned rows' exponents, a vector a run.
    pub(super) terms: Array<Quad>,
    /// The owned rows' negated sums of dO O.
    pub(super) deltas: Array<Quad>,
}

/// What becomes of dropout in the values of P that lie in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Dropped {
    /// They are as V was multiplied by them.
    Applied,
    /// Those that were dropped are negative.
    Marked,
}

/// A workgroup that owns the queries of `head` from `first` on.
#[cube]
pub(super) fn of_queries<E: Float, V: Size>(
    inputs: &Inputs<'_, E, V>,
    sequence: &score::Sequence,
    head: u32,
    first: u32,
    geometry: &Geometry,
    #[comptime] plan: Plan,
) -> Here {
    let blocks = comptime!(plan.blocks());
    let own = own_place(blocks.scores);
    let statistics = query_rows(sequence, head, &geometry.lse, plan);
    let mut terms = Array::<Quad>::new(comptime!(blocks.runs().0));
    let mut deltas = Array::<Quad>::new(comptime!(blocks.runs().0));
    #[unroll]
    for i in 0..comptime!(blocks.runs().0) {
        let (_, row, _) = of_lane(&own, i, 0u32, blocks);
        let mut term = Sequence::<f32>::new();
        let mut delta = Sequence::<f32>::new();
        #[unroll]
        for e in 0..4usize {
            let query = min(first + row + comptime!(e as u32), statistics.count - 1);
            let pair = inputs.statistics[(statistics.base + query * statistics.stride) as usize];
            term.push(pair.extract(0usize));
            delta.push(pair.extract(1usize));
        }
        terms[i] = from_elements(&term);
        deltas[i] = from_elements(&delta);
    }
    Here {
        place: Place::new(sequence, head, inputs.samples, geometry, plan),
        own,
        first,
        statistics,
        terms,
        deltas,
    }
}

/// A workgroup that owns the keys from `first` on, at the queries of `head`.
#[cube]
pub(super) fn of_keys<E: Float, V: Size>(
    inputs: &Inputs<'_, E, V>,
    sequence: &score::Sequence,
    head: u32,
    first: u32,
    geometry: &Geometry,
    #[comptime] plan: Plan,
) -> Here {
    let blocks = comptime!(plan.blocks());
    let own = own_place(blocks.scores);
    let place = Place::new(sequence, head, inputs.samples, geometry, plan);
    let mut terms = Array::<Quad>::new(comptime!(blocks.runs().0));
    #[unroll]
    for i in 0..comptime!(blocks.runs().0) {
        let (_, row, _) = of_lane(&own, i, 0u32, blocks);
        let mut term = Sequence::<f32>::new();
        #[unroll]
        for e in 0..4usize {
            if comptime!(plan.has_bias(Form::Keys)) {
                let key = first + row + comptime!(e as u32);
                term.push(biases(
                    inputs.bias1,
                    inputs.bias2,
                    geometry,
                    &place,
                    0u32,
                    key,
                    Form::Keys,
                    plan,
                ));
            } else {
                term.push(f32::new(0.0));
            }
        }
        terms[i] = from_elements(&term);
    }
    Here {
        place,
        own,
        first,
        statistics: query_rows(sequence, head, &geometry.lse, plan),
        terms,
        deltas: Array::<Quad>::new(comptime!(blocks.runs().0)),
    }
}

/// Turns the products of the owned rows with the streamed rows from `at` on into P, times 2^[`Plan::lift`], in shared memory. A
/// lane's own only, through that memory itself: so a loop takes them, whose text is short.
#[cube]
pub(super) fn probabilities<E: Float, V: Size, W: Size, ND: Size>(
    products: &Array<Vector<f32, ND>>,
    memory: &mut Memory<E, W>,
    inputs: &Inputs<'_, E, V>,
    here: &Here,
    geometry: &Geometry,
    at: u32,
    #[comptime] dropped: Dropped,
    #[comptime] plan: Plan,
) {
    let blocks = comptime!(plan.blocks());
    let (runs, columns) = comptime!(blocks.runs());
    #[unroll]
    for i in 0..runs {
        #[unroll]
        for j in 0..columns {
            let (place, _, _) = of_lane(&here.own, i, comptime!(j as u32).runtime(), blocks);
            memory.values[place as usize] = Quad::cast_from(products[comptime!(i * columns + j)]);
        }
    }
    for j in 0..comptime!(columns as u32) {
        let (_, _, column) = of_lane(&here.own, 0usize, j, blocks);
        let streamed = at + column;
        let term = streamed_term(inputs, here, geometry, streamed, plan);
        #[unroll]
        for i in 0..runs {
            let (place, row, _) = of_lane(&here.own, i, j, blocks);
            let owned = here.first + row;
            memory.values[place as usize] = probabilities_of_run(
                memory.values[place as usize],
                here.terms[i],
                term,
                inputs,
                here,
                geometry,
                owned,
                streamed,
                dropped,
                plan,
            );
        }
    }
}

/// The term of the exponent of a streamed row.
#[cube]
fn streamed_term<E: Float, V: Size>(
    inputs: &Inputs<'_, E, V>,
    here: &Here,
    geometry: &Geometry,
    row: u32,
    #[comptime] plan: Plan,
) -> f32 {
    if comptime!(rows_are_queries(plan)) {
        let statistics = &here.statistics;
        let at = statistics.base + min(row, statistics.count - 1) * statistics.stride;
        let term = inputs.statistics[at as usize].extract(0usize);
        // A row that does not exist has no probability left.
        select(row < statistics.count, term, f32::new(UNSEEN))
    } else if comptime!(plan.has_bias(Form::Keys)) {
        biases(
            inputs.bias1,
            inputs.bias2,
            geometry,
            &here.place,
            0u32,
            row,
            Form::Keys,
            plan,
        )
    } else {
        f32::new(0.0)
    }
}

/// P of the owned rows from `owned` on, a run, and a streamed row.
#[cube]
fn probabilities_of_run<E: Float, V: Size>(
    products: Quad,
    terms: Quad,
    term: f32,
    inputs: &Inputs<'_, E, V>,
    here: &Here,
    geometry: &Geometry,
    owned: u32,
    streamed: u32,
    #[comptime] dropped: Dropped,
    #[comptime] plan: Plan,
) -> Quad {
    let factor = geometry.scale * LOG2_E;
    let mut all = Sequence::<f32>::new();
    #[unroll]
    for e in 0..4usize {
        let row = owned + comptime!(e as u32);
        let (query, key) = if comptime!(rows_are_queries(plan)) {
            (streamed, row)
        } else {
            (row, streamed)
        };
        let mut exponent = terms.extract(e) + term;
        if comptime!(plan.has_bias(Form::Pairs)) {
            exponent += biases(
                inputs.bias1,
                inputs.bias2,
                geometry,
                &here.place,
                query,
                key,
                Form::Pairs,
                plan,
            );
        }
        let p = exp2(fma(products.extract(e), factor, exponent), plan.target);
        let seen = visible(&here.place.sequence, query, key, plan.variant.causal);
        let p = select(seen, p, 0.0);
        if comptime!(plan.variant.dropout) {
            let words = words(geometry, &here.place, query, key / 4);
            let low = select(key % 2 == 0, words.extract(0usize), words.extract(1usize));
            let high = select(key % 2 == 0, words.extract(2usize), words.extract(3usize));
            let kept = select(key % 4 < 2, low, high) >= geometry.threshold;
            if comptime!(dropped == Dropped::Applied) {
                all.push(select(kept, p * geometry.keep_scale, 0.0));
            } else {
                all.push(select(kept, p, -p));
            }
        } else {
            all.push(p);
        }
    }
    from_elements(&all)
}

/// Turns P in shared memory into dS, before the scale, by the products `dp`: a lane's own.
#[cube]
pub(super) fn score_gradient<E: Float, V: Size, W: Size, ND: Size>(
    dp: &Array<Vector<f32, ND>>,
    memory: &mut Memory<E, W>,
    inputs: &Inputs<'_, E, V>,
    here: &Here,
    geometry: &Geometry,
    at: u32,
    #[comptime] plan: Plan,
) {
    let blocks = comptime!(plan.blocks());
    let (runs, columns) = comptime!(blocks.runs());
    #[unroll]
    for j in 0..columns {
        let j_runtime = comptime!(j as u32).runtime();
        let (_, _, column) = of_lane(&here.own, 0usize, j_runtime, blocks);
        let mut delta = Quad::zero();
        if comptime!(rows_are_queries(plan)) {
            let statistics = &here.statistics;
            let row = min(at + column, statistics.count - 1);
            let pair = inputs.statistics[(statistics.base + row * statistics.stride) as usize];
            delta = Quad::new(pair.extract(1usize));
        }
        #[unroll]
        for i in 0..runs {
            let (place, _, _) = of_lane(&here.own, i, j_runtime, blocks);
            let deltas = if comptime!(rows_are_queries(plan)) {
                delta
            } else {
                here.deltas[i]
            };
            let dp = Quad::cast_from(dp[comptime!(i * columns + j)]);
            let p = memory.values[place as usize];
            memory.values[place as usize] = if comptime!(plan.variant.dropout) {
                let mut all = Sequence::<f32>::new();
                #[unroll]
                for e in 0..4usize {
                    let (p, dp) = (p.extract(e), dp.extract(e));
                    let dp = select(p > 0.0, dp * geometry.keep_scale, 0.0);
                    all.push(p.abs() * (dp + deltas.extract(e)));
                }
                from_elements(&all)
            } else {
                p * (dp + deltas)
            };
        }
    }
}

/// Adds the lane's values to those of its owned rows.
#[cube]
pub(super) fn add_rows<E: Numeric, W: Size>(
    rows: &mut Array<Quad>,
    memory: &mut Memory<E, W>,
    own: &Lane,
    #[comptime] plan: Plan,
) {
    let blocks = comptime!(plan.blocks());
    let (runs, columns) = comptime!(blocks.runs());
    for j in 0..comptime!(columns as u32) {
        #[unroll]
        for i in 0..runs {
            let (place, _, _) = of_lane(own, i, j, blocks);
            rows[i] += memory.values[place as usize];
        }
    }
}
