//! The passes for dQ, dK and dV in [`blocks`](super::super::blocks): each computes P, then dS where it needs it, of the owned rows
//! and a block of streamed rows in shared memory, and adds the streamed rows by them.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use super::super::blocks::{
    Blocks, Memory, Quad, Rows, accumulate, first_row, join, multiply, of_lane, write, zeros,
};
use super::super::problem::Geometry;
use super::super::score::{self, UNSEEN, visible};
use super::ends::{GradientStrides, key_rows, query_rows};
use super::kernels::{key_stages, query_stages};
use super::plan::{Form, Plan};
use super::score::{Place, biases, rows_are_queries, words};
use crate::gemm::product::{Place as Lane, own_place};
use crate::matrix::lanes::Join;
use crate::matrix::math::{LOG2_E, exp2};
use crate::matrix::vector::from_elements;

/// What the kernels read.
#[derive(CubeType)]
pub(super) struct Inputs<'a, E: Numeric, V: Size> {
    pub(super) q: &'a [Vector<E, V>],
    pub(super) k: &'a [Vector<E, V>],
    pub(super) v: &'a [Vector<E, V>],
    pub(super) o_gradient: &'a [Vector<E, V>],
    pub(super) statistics: &'a [Vector<f32, Const<2>>],
    pub(super) bias1: &'a [E],
    pub(super) bias2: &'a [E],
    pub(super) samples: &'a [u32],
}

/// What the kernels read.
#[cube]
pub(super) fn inputs<'a, E: Numeric, V: Size>(
    q: &'a [Vector<E, V>],
    k: &'a [Vector<E, V>],
    v: &'a [Vector<E, V>],
    o_gradient: &'a [Vector<E, V>],
    statistics: &'a [Vector<f32, Const<2>>],
    bias1: &'a [E],
    bias2: &'a [E],
    samples: &'a [u32],
) -> Inputs<'a, E, V> {
    Inputs::<'a, E, V> {
        q,
        k,
        v,
        o_gradient,
        statistics,
        bias1,
        bias2,
        samples,
    }
}

/// Where a workgroup is: what does not change from block to block.
#[derive(CubeType)]
struct Here {
    place: Place,
    own: Lane,
    /// The first owned row.
    first: u32,
    /// Rows of the statistics.
    statistics: Rows,
    /// Terms of the owned rows' exponents, a vector a run.
    terms: Array<Quad>,
    /// The owned rows' negated sums of dO O.
    deltas: Array<Quad>,
}

/// What becomes of dropout in the values of P that lie in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Dropped {
    /// They are as V was multiplied by them.
    Applied,
    /// Those that were dropped are negative.
    Marked,
}

/// dQ of the queries from `first` on.
#[cube]
pub(super) fn query<E: Float, V: Size, W: Size, NA: Size, NB: Size, ND: Size>(
    inputs: &Inputs<'_, E, V>,
    q_gradient: &mut [Vector<E, V>],
    sequence: &score::Sequence,
    first: u32,
    geometry: &Geometry,
    gradient: &GradientStrides,
    #[comptime] plan: Plan,
) {
    let (head, kv_head) = (CUBE_POS_Y, CUBE_POS_Y / geometry.group);
    let blocks = comptime!(plan.blocks());
    let here = of_queries(inputs, sequence, head, first, geometry, plan);
    let q = query_rows(sequence, head, &geometry.q, plan);
    let g = query_rows(sequence, head, &gradient.o, plan);
    let k = key_rows(sequence, kv_head, &geometry.k, plan);
    let v = key_rows(sequence, kv_head, &geometry.v, plan);
    let mut memory = Memory::<E, W>::new(blocks);
    let mut sums = zeros(blocks);
    let stages = key_stages(sequence, first, plan);
    for block in stages.from..stages.to {
        let at = block * comptime!(blocks.streamed() as u32);
        let s = multiply::<E, V, V, W, NA, NB, ND>(
            inputs.q,
            inputs.k,
            &q,
            &k,
            first,
            at,
            &mut memory,
            &here.own,
            blocks,
        );
        probabilities(
            &s,
            &mut memory,
            inputs,
            &here,
            geometry,
            at,
            Dropped::Marked,
            plan,
        );
        let dp = multiply::<E, V, V, W, NA, NB, ND>(
            inputs.o_gradient,
            inputs.v,
            &g,
            &v,
            first,
            at,
            &mut memory,
            &here.own,
            blocks,
        );
        score_gradient(&dp, &mut memory, inputs, &here, geometry, at, plan);
        sync_cube();
        accumulate(inputs.k, &k, at, &mut memory, &here.own, &mut sums, blocks);
    }
    let to = query_rows(sequence, head, &gradient.q, plan);
    let factor = geometry.scale * comptime!(plan.lowering());
    write(
        &sums,
        q_gradient,
        &to,
        first,
        &all(factor, blocks),
        &here.own,
        blocks,
    );
}

/// dK and dV of the keys from `first` on; with [`Plan::key_sums`] also the sums of dS over the queries.
#[cube]
pub(super) fn key_value<E: Float, V: Size, W: Size, NA: Size, NB: Size, ND: Size>(
    inputs: &Inputs<'_, E, V>,
    k_gradient: &mut [Vector<E, V>],
    v_gradient: &mut [Vector<E, V>],
    key_sums: &mut [f32],
    sequence: &score::Sequence,
    first: u32,
    geometry: &Geometry,
    gradient: &GradientStrides,
    #[comptime] plan: Plan,
) {
    let blocks = comptime!(plan.blocks());
    let mut memory = Memory::<E, W>::new(blocks);
    let own = own_place(blocks.scores);
    // One after the other: the sums of both would take too many registers, and P is the smaller part of the work.
    let mut sums = zeros(blocks);
    for member in 0..geometry.group {
        let head = CUBE_POS_Y * geometry.group + member;
        key_pass::<E, V, W, NA, NB, ND>(
            inputs,
            &mut memory,
            &mut sums,
            key_sums,
            sequence,
            head,
            first,
            geometry,
            gradient,
            Dropped::Applied,
            plan,
        );
    }
    let to = key_rows(sequence, CUBE_POS_Y, &gradient.v, plan);
    let factor = comptime!(plan.lowering()).runtime();
    write(
        &sums,
        v_gradient,
        &to,
        first,
        &all(factor, blocks),
        &own,
        blocks,
    );
    let mut sums = zeros(blocks);
    for member in 0..geometry.group {
        let head = CUBE_POS_Y * geometry.group + member;
        key_pass::<E, V, W, NA, NB, ND>(
            inputs,
            &mut memory,
            &mut sums,
            key_sums,
            sequence,
            head,
            first,
            geometry,
            gradient,
            Dropped::Marked,
            plan,
        );
    }
    let to = key_rows(sequence, CUBE_POS_Y, &gradient.k, plan);
    let factor = geometry.scale * comptime!(plan.lowering());
    write(
        &sums,
        k_gradient,
        &to,
        first,
        &all(factor, blocks),
        &own,
        blocks,
    );
}

/// Adds to `sums` what the queries of `head` contribute: to dV if dropout is applied, to dK if it is marked.
#[cube]
fn key_pass<E: Float, V: Size, W: Size, NA: Size, NB: Size, ND: Size>(
    inputs: &Inputs<'_, E, V>,
    memory: &mut Memory<E, W>,
    sums: &mut Array<Quad>,
    key_sums: &mut [f32],
    sequence: &score::Sequence,
    head: u32,
    first: u32,
    geometry: &Geometry,
    gradient: &GradientStrides,
    #[comptime] dropped: Dropped,
    #[comptime] plan: Plan,
) {
    let blocks = comptime!(plan.blocks());
    let of_k = comptime!(dropped == Dropped::Marked);
    let here = of_keys(inputs, sequence, head, first, geometry, plan);
    let q = query_rows(sequence, head, &geometry.q, plan);
    let g = query_rows(sequence, head, &gradient.o, plan);
    let k = key_rows(sequence, CUBE_POS_Y, &geometry.k, plan);
    let v = key_rows(sequence, CUBE_POS_Y, &geometry.v, plan);
    let stages = query_stages(sequence, first, plan);
    let mut rows = Array::<Quad>::new(comptime!(blocks.runs().0));
    #[unroll]
    for i in 0..comptime!(blocks.runs().0) {
        rows[i] = Quad::zero();
    }
    for block in stages.from..stages.to {
        let at = block * comptime!(blocks.streamed() as u32);
        let s = multiply::<E, V, V, W, NA, NB, ND>(
            inputs.k, inputs.q, &k, &q, first, at, memory, &here.own, blocks,
        );
        probabilities(&s, memory, inputs, &here, geometry, at, dropped, plan);
        if comptime!(of_k) {
            let dp = multiply::<E, V, V, W, NA, NB, ND>(
                inputs.v,
                inputs.o_gradient,
                &v,
                &g,
                first,
                at,
                memory,
                &here.own,
                blocks,
            );
            score_gradient(&dp, memory, inputs, &here, geometry, at, plan);
            if comptime!(plan.key_sums) {
                add_rows(&mut rows, memory, &here.own, plan);
            }
        }
        sync_cube();
        if comptime!(of_k) {
            accumulate(inputs.q, &q, at, memory, &here.own, sums, blocks);
        } else {
            accumulate(inputs.o_gradient, &g, at, memory, &here.own, sums, blocks);
        }
    }
    if comptime!(of_k && plan.key_sums) {
        write_rows(&rows, memory, key_sums, &here, geometry, plan);
    }
}

/// A workgroup that owns the queries of `head` from `first` on.
#[cube]
fn of_queries<E: Float, V: Size>(
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
fn of_keys<E: Float, V: Size>(
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
fn probabilities<E: Float, V: Size, W: Size, ND: Size>(
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
fn score_gradient<E: Float, V: Size, W: Size, ND: Size>(
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
fn add_rows<E: Numeric, W: Size>(
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

/// Writes the sums of dS over the queries, which the lanes have in parts.
#[cube]
fn write_rows<E: Numeric, W: Size>(
    rows: &Array<Quad>,
    memory: &mut Memory<E, W>,
    key_sums: &mut [f32],
    here: &Here,
    geometry: &Geometry,
    #[comptime] plan: Plan,
) {
    let blocks = comptime!(plan.blocks());
    // The last block's values may still be read.
    sync_cube();
    let joined = join(rows, memory, &here.own, Join::Sum, blocks);
    let sequence = &here.place.sequence;
    let heads = CUBE_COUNT_Y * geometry.group;
    let base = (sequence.batch * heads + here.place.head) * geometry.keys;
    let (_, _, column) = of_lane(&here.own, 0usize, 0u32, blocks);
    #[unroll]
    for i in 0..comptime!(blocks.runs().0) {
        let run = here.first + first_row(&here.own, i, blocks);
        #[unroll]
        for e in 0..4usize {
            let key = run + comptime!(e as u32);
            if column == 0 && key < sequence.keys {
                key_sums[(base + key) as usize] =
                    joined[i].extract(e) * comptime!((-plan.lift()).exp2());
            }
        }
    }
}

/// The same factor for each owned row.
#[cube]
fn all(factor: f32, #[comptime] blocks: Blocks) -> Array<Quad> {
    let mut factors = Array::<Quad>::new(comptime!(blocks.runs().0));
    #[unroll]
    for i in 0..comptime!(blocks.runs().0) {
        factors[i] = Quad::new(factor);
    }
    factors
}
