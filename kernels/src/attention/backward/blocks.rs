//! The passes in [`blocks`](super::super::blocks): each computes P, then dS where it needs it, of the owned rows and a block of
//! streamed rows in shared memory, and adds the streamed rows by them.

mod score;

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use self::score::{Dropped, Here, add_rows, of_keys, of_queries, probabilities, score_gradient};
use super::super::blocks::{
    Blocks, Memory, Quad, accumulate, first_row, join, multiply, of_lane, write, zeros,
};
use super::super::problem::Geometry;
use super::super::score::{self as entries, bias_base};
use super::bias::Shared as SharedBias;
use super::ends::{GradientStrides, key_rows, query_rows};
use super::kernels::{key_stages, query_stages};
use super::plan::Plan;
use crate::gemm::product::own_place;
use crate::matrix::lanes::Join;

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

/// dQ of the queries from `first` on.
#[cube]
pub(super) fn query<E: Float, V: Size, W: Size, NA: Size, NB: Size, ND: Size>(
    inputs: &Inputs<'_, E, V>,
    q_gradient: &mut [Vector<E, V>],
    sequence: &entries::Sequence,
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
    sequence: &entries::Sequence,
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
    sequence: &entries::Sequence,
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
    let stages = query_stages(sequence, first, plan);
    let mut rows = Array::<Quad>::new(comptime!(blocks.runs().0));
    #[unroll]
    for i in 0..comptime!(blocks.runs().0) {
        rows[i] = Quad::zero();
    }
    for block in stages.from..stages.to {
        let at = block * comptime!(blocks.streamed() as u32);
        if comptime!(of_k) {
            gradient_of_block::<E, V, W, NA, NB, ND>(
                inputs, memory, &here, CUBE_POS_Y, at, geometry, gradient, plan,
            );
            if comptime!(plan.key_sums) {
                add_rows(&mut rows, memory, &here.own, plan);
            }
        } else {
            let k = key_rows(sequence, CUBE_POS_Y, &geometry.k, plan);
            let s = multiply::<E, V, V, W, NA, NB, ND>(
                inputs.k, inputs.q, &k, &q, first, at, memory, &here.own, blocks,
            );
            probabilities(&s, memory, inputs, &here, geometry, at, dropped, plan);
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

/// The gradient of a bias that varies along queries and keys: that of the keys from `first` on and the queries from `at` on, for
/// which all that share it pass by.
#[cube]
pub(super) fn pair<E: Float, V: Size, W: Size, NA: Size, NB: Size, ND: Size>(
    inputs: &Inputs<'_, E, V>,
    cumulative_queries: &[u32],
    cumulative_keys: &[u32],
    bias_gradient: &mut [f32],
    geometry: &Geometry,
    gradient: &GradientStrides,
    shared: &SharedBias,
    #[comptime] plan: Plan,
) {
    let blocks = comptime!(plan.blocks());
    let (runs, columns) = comptime!(blocks.runs());
    let groups = shared.heads / shared.members;
    let entry = CUBE_POS_Z / groups * shared.entries;
    let head = CUBE_POS_Z % groups * shared.members;
    let first = CUBE_POS_X * comptime!(plan.columns() as u32);
    let at = CUBE_POS_Y * comptime!(plan.rows() as u32);
    let mut memory = Memory::<E, W>::new(blocks);
    let own = own_place(blocks.scores);
    let mut sums = Array::<Quad>::new(comptime!(runs * columns));
    #[unroll]
    for i in 0..comptime!(runs * columns) {
        sums[i] = Quad::zero();
    }
    for batch in entry..min(entry + shared.entries, shared.batch) {
        let sequence = entries::sequence(
            batch,
            geometry,
            cumulative_queries,
            cumulative_keys,
            plan.variant,
        );
        if first < sequence.keys && at < sequence.queries {
            for head in head..head + shared.members {
                let here = of_keys(inputs, &sequence, head, first, geometry, plan);
                let kv_head = head / geometry.group;
                gradient_of_block::<E, V, W, NA, NB, ND>(
                    inputs,
                    &mut memory,
                    &here,
                    kv_head,
                    at,
                    geometry,
                    gradient,
                    plan,
                );
                #[unroll]
                for i in 0..runs {
                    #[unroll]
                    for j in 0..columns {
                        let j_runtime = comptime!(j as u32).runtime();
                        let (place, _, _) = of_lane(&own, i, j_runtime, blocks);
                        sums[comptime!(i * columns + j)] += memory.values[place as usize];
                    }
                }
            }
        }
    }
    let base = bias_base(entry, head, &shared.strides);
    #[unroll]
    for i in 0..runs {
        #[unroll]
        for j in 0..columns {
            let (_, row, column) = of_lane(&own, i, comptime!(j as u32).runtime(), blocks);
            let query = at + column;
            #[unroll]
            for e in 0..4usize {
                let key = first + row + comptime!(e as u32);
                if query < geometry.queries && key < geometry.keys {
                    let to = base + key * shared.strides.key + query * shared.strides.query;
                    bias_gradient[to as usize] = sums[comptime!(i * columns + j)].extract(e)
                        * comptime!((-plan.lift()).exp2());
                }
            }
        }
    }
}

/// dS, before the scale, of the keys that are owned and the queries from `at` on, in shared memory: a lane's own.
#[cube]
fn gradient_of_block<E: Float, V: Size, W: Size, NA: Size, NB: Size, ND: Size>(
    inputs: &Inputs<'_, E, V>,
    memory: &mut Memory<E, W>,
    here: &Here,
    kv_head: u32,
    at: u32,
    geometry: &Geometry,
    gradient: &GradientStrides,
    #[comptime] plan: Plan,
) {
    let blocks = comptime!(plan.blocks());
    let (sequence, head) = (&here.place.sequence, here.place.head);
    let q = query_rows(sequence, head, &geometry.q, plan);
    let g = query_rows(sequence, head, &gradient.o, plan);
    let k = key_rows(sequence, kv_head, &geometry.k, plan);
    let v = key_rows(sequence, kv_head, &geometry.v, plan);
    let s = multiply::<E, V, V, W, NA, NB, ND>(
        inputs.k, inputs.q, &k, &q, here.first, at, memory, &here.own, blocks,
    );
    probabilities(
        &s,
        memory,
        inputs,
        here,
        geometry,
        at,
        Dropped::Marked,
        plan,
    );
    let dp = multiply::<E, V, V, W, NA, NB, ND>(
        inputs.v,
        inputs.o_gradient,
        &v,
        &g,
        here.first,
        at,
        memory,
        &here.own,
        blocks,
    );
    score_gradient(&dp, memory, inputs, here, geometry, at, plan);
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
