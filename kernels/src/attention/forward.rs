//! The forward kernel.
//!
//! A wave has the queries of one column tile, and keeps the scores of a tile of keys in registers: S^T = K Q^T comes out of
//! the matrix unit as the operand that O^T += V^T P^T takes. While it computes the scores of one tile, it takes the
//! exponentials of the tile before; while it accumulates that, it looks for the greatest of the new scores. K and V each have
//! one tile in shared memory, which is refilled from registers while the other is read.

mod biases;
mod blocks;
mod copy;
mod products;
mod refill;
mod softmax;
mod start;
mod state;
mod steps;
mod tile;

use cubecl_core as cubecl;
use cubecl_core::ir::ElemType;
use cubecl_core::prelude::*;

use self::copy::Rows;
use self::products::{lane, queries};
use self::softmax::{lift, nothing_seen, query_of};
use self::start::begin;
use self::state::{Inputs, Next, Wave, Work, inputs};
use self::steps::{step, zeros};

use super::arguments::GEOMETRY;
use super::plan::Plan;
use super::problem::Geometry;
use super::score::{
    self, bias_base, key_base, keys_seen_below, keys_seen_by_all, query_base, sequence, site,
};
use crate::error::Result;
use crate::hip::emit::{Source, buffer, elem_type, emit};
use crate::matrix::lanes::{Join, coordinate, join_column, lane_part};
use crate::matrix::math::{LN_2, log2, reciprocal};
use crate::matrix::narrow::widening;
use crate::matrix::vector::from_elements;

/// O and the log-sum-exp of `[batch, heads, queries]`; a workgroup has [`Plan::queries`] of a head.
///
/// Grid: query blocks, heads, batch. Q, K, V and O as vectors of `WQ`, `WK`, `WV` and `WO` elements.
#[cube(launch_unchecked)]
pub(crate) fn forward<
    E: Numeric,
    NA: Size,
    NB: Size,
    ND: Size,
    NP: Size,
    WQ: Size,
    WK: Size,
    WV: Size,
    WO: Size,
    SK: Size,
    SV: Size,
>(
    q: &[Vector<E, WQ>],
    k: &[Vector<E, WK>],
    v: &[Vector<E, WV>],
    o: &mut [Vector<E, WO>],
    lse: &mut [f32],
    bias1: &[E],
    bias2: &[E],
    cumulative_queries: &[u32],
    cumulative_keys: &[u32],
    samples: &[u32],
    geometry: Geometry,
    #[comptime] plan: Plan,
    #[define(E)] _type: ElemType,
    #[define(NA, NB, ND, NP, WQ, WK, WV, WO, SK, SV)] _sizes: [usize; 10],
) {
    let (variant, block) = comptime!((plan.variant, plan.queries() as u32));
    let sequence = sequence(
        CUBE_POS_Z,
        &geometry,
        cumulative_queries,
        cumulative_keys,
        variant,
    );
    let first = position(CUBE_POS_X, CUBE_COUNT_X, comptime!(variant.causal)) * block;
    if comptime!(plan.in_blocks()) {
        if first < sequence.queries {
            let inputs = inputs::<E, WK, WV>(k, v, bias1, bias2);
            blocks::attend::<E, NA, NB, ND, WQ, WK, WV, WO, SK>(
                q, &inputs, o, lse, sequence, first, samples, &geometry, plan,
            );
        }
    } else if first < sequence.queries {
        let work = place(sequence, first, &geometry, samples, comptime!(plan.clone()));
        let mut wave = wave::<E, NB, ND>(comptime!(plan.clone()));
        let seen = keys_seen_below(&work.sequence, first + block, comptime!(variant.causal));
        let tiles = seen.div_ceil(comptime!(plan.keys as u32));
        if tiles > 0 {
            queries(
                q,
                query_base(&work.sequence, CUBE_POS_Y, &geometry.q, variant),
                geometry.q.row,
                &work,
                &mut wave.queries,
                comptime!(plan.clone()),
            );
            let clear = keys_seen_by_all(&work.sequence, first, comptime!(variant.causal))
                / comptime!(plan.keys as u32);
            let inputs = inputs::<E, WK, WV>(k, v, bias1, bias2);
            attend::<E, NA, NB, ND, NP, WK, WV, SK, SV>(
                &inputs,
                &mut wave,
                &work,
                &geometry,
                clear,
                tiles,
                comptime!(plan.clone()),
            );
        }
        finish::<E, NB, ND, WO>(o, lse, &wave, &work, &geometry, plan);
    }
}

/// The block of queries of workgroup `index` of `count`: with a causal mask, those with the longest rows begin first.
#[cube]
fn position(index: u32, count: u32, #[comptime] causal: bool) -> u32 {
    if comptime!(causal) {
        count - 1 - index
    } else {
        index
    }
}

/// A wave that has seen nothing.
#[cube]
fn wave<E: Numeric, NB: Size, ND: Size>(#[comptime] plan: Plan) -> Wave<E, NB, ND> {
    Wave::<E, NB, ND> {
        queries: Array::new(comptime!(plan.depth() / plan.instruction.k)),
        scores: Array::new(comptime!(plan.score_tiles() * plan.instruction.d.elements)),
        output: zeros::<ND>(comptime!(plan.output_tiles())),
        state: nothing_seen(plan),
    }
}

/// Where the workgroup that begins at query `first` stands.
#[cube]
fn place(
    sequence: score::Sequence,
    first: u32,
    geometry: &Geometry,
    samples: &[u32],
    #[comptime] plan: Plan,
) -> Work {
    let (variant, instruction) = comptime!((plan.variant, plan.instruction));
    let lane = lane(comptime!(plan.clone()));
    let wave = UNIT_POS / comptime!(instruction.lanes as u32);
    let (head, kv_head) = (CUBE_POS_Y, CUBE_POS_Y / geometry.group);
    let key_width = comptime!(plan.key_copy().width as u32);
    let value_width = comptime!(plan.value_copy().width as u32);
    let last = max(sequence.keys, 1u32) - 1;
    Work {
        query: first
            + wave * comptime!(instruction.n as u32)
            + lane_part(lane.lane, instruction.d.column),
        lane,
        keys: Rows {
            base: key_base(&sequence, kv_head, &geometry.k, variant) / key_width,
            stride: geometry.k.row / key_width,
            last,
        },
        values: Rows {
            base: key_base(&sequence, kv_head, &geometry.v, variant) / value_width,
            stride: geometry.v.row / value_width,
            last,
        },
        bias1: bias_base(sequence.batch, head, &geometry.bias1),
        bias2: bias_base(sequence.batch, head, &geometry.bias2),
        site: site(samples, sequence.batch, head, geometry, variant),
        sequence,
    }
}

/// Walks over `tiles` tiles of keys, of which every query sees all keys of the first `clear`.
#[cube]
fn attend<
    E: Numeric,
    NA: Size,
    NB: Size,
    ND: Size,
    NP: Size,
    WK: Size,
    WV: Size,
    SK: Size,
    SV: Size,
>(
    inputs: &Inputs<'_, E, WK, WV>,
    wave: &mut Wave<E, NB, ND>,
    work: &Work,
    geometry: &Geometry,
    clear: u32,
    tiles: u32,
    #[comptime] plan: Plan,
) {
    let mut memory = begin::<E, NA, NB, ND, WK, WV, SK, SV>(
        inputs,
        wave,
        work,
        geometry,
        comptime!(plan.clone()),
    );
    // A step prepares the scores of the tile after its own.
    if comptime!(plan.along_rows()) {
        // One text for all steps, so that it is moderate; the last prepares scores that are masked.
        for tile in 0..tiles {
            step::<E, NA, NB, ND, NP, WK, WV, SK, SV>(
                inputs,
                &mut memory,
                wave,
                work,
                geometry,
                tile,
                Next::Masked,
                comptime!(plan.clone()),
            );
        }
    } else {
        let plain = max(clear, 1u32) - 1;
        for tile in 0..plain {
            step::<E, NA, NB, ND, NP, WK, WV, SK, SV>(
                inputs,
                &mut memory,
                wave,
                work,
                geometry,
                tile,
                Next::Seen,
                comptime!(plan.clone()),
            );
        }
        for tile in plain..tiles - 1 {
            step::<E, NA, NB, ND, NP, WK, WV, SK, SV>(
                inputs,
                &mut memory,
                wave,
                work,
                geometry,
                tile,
                Next::Masked,
                comptime!(plan.clone()),
            );
        }
        step::<E, NA, NB, ND, NP, WK, WV, SK, SV>(
            inputs,
            &mut memory,
            wave,
            work,
            geometry,
            tiles - 1,
            Next::None,
            comptime!(plan.clone()),
        );
    }
}

/// Writes the lane's part of O, and the log-sum-exp. A query that has seen nothing gets zeros, and -inf.
#[cube]
fn finish<E: Numeric, NB: Size, ND: Size, WO: Size>(
    o: &mut [Vector<E, WO>],
    lse: &mut [f32],
    wave: &Wave<E, NB, ND>,
    work: &Work,
    geometry: &Geometry,
    #[comptime] plan: Plan,
) {
    let (instruction, target) = comptime!((plan.instruction, plan.target));
    #[unroll]
    for column in 0..comptime!(plan.columns()) {
        let query = query_of(work, column, comptime!(plan.clone()));
        let sum = join_column(
            wave.state.even[column] + wave.state.odd[column],
            Join::Sum,
            instruction,
            target,
        );
        let some = sum > 0.0;
        // What narrowing dropped again is in the sum only.
        let widened = comptime!(widening(plan.element, plan.narrowing()).exp2());
        let factor = select(
            some,
            reciprocal(sum, target) * widened * geometry.keep_scale,
            0.0,
        );
        if query < work.sequence.queries {
            write::<E, NB, ND, WO>(
                o,
                wave,
                work,
                geometry,
                query,
                factor,
                column,
                comptime!(plan.clone()),
            );
            if lane_part(work.lane.lane, instruction.d.row) == 0 {
                let row = query_base(
                    &work.sequence,
                    CUBE_POS_Y,
                    &geometry.lse,
                    comptime!(plan.variant),
                ) + query * geometry.lse.row;
                let reference = wave.state.reference[column];
                let value = (reference + log2(sum, target) - comptime!(lift(&plan))) * LN_2;
                // By its bits: WGSL has no infinities.
                let bits = select(some, u32::reinterpret(value), f32::NEG_INFINITY.to_bits());
                lse[row as usize] = f32::reinterpret(bits);
            }
        }
    }
}

/// Writes what the lane has of O in its column `column`, which is `query`, times `factor`.
#[cube]
fn write<E: Numeric, NB: Size, ND: Size, WO: Size>(
    o: &mut [Vector<E, WO>],
    wave: &Wave<E, NB, ND>,
    work: &Work,
    geometry: &Geometry,
    query: u32,
    factor: f32,
    #[comptime] column: usize,
    #[comptime] plan: Plan,
) {
    let (variant, instruction) = comptime!((plan.variant, plan.instruction));
    let (width, own) = comptime!((plan.output_width(), instruction.elements_of(column)));
    let row = query_base(&work.sequence, CUBE_POS_Y, &geometry.o, variant) + query * geometry.o.row;
    #[unroll]
    for t in 0..comptime!(plan.output_tiles()) {
        let tile = wave.output[t];
        #[unroll]
        for part in 0..comptime!(own.len() / width) {
            let mut vector = Sequence::<E>::new();
            #[unroll]
            for e in 0..width {
                let value = tile.extract(comptime!(own[part * width + e])) * factor;
                vector.push(E::cast_from(value));
            }
            let first = comptime!(own[part * width]);
            let d = coordinate(work.lane.lane, first, instruction.d.row)
                + comptime!((t * instruction.m) as u32);
            if d < comptime!(variant.head_dim as u32) {
                o[((row + d) / width as u32) as usize] = from_elements::<E, WO>(&vector);
            }
        }
    }
}

/// The text of the kernel of `plan`.
#[rustfmt::skip] // A line for the setting, one for the buffers, one for the rest.
pub(super) fn source(plan: &Plan) -> Result<Source> {
    let b = buffer;
    emit(plan.name(), plan.target, [plan.units() as u32, 1, 1], |s| {
        forward::Forward::new(
            s.settings, s.device, s.target,
            b(), b(), b(), b(), b(), b(), b(), b(), b(), b(),
            GEOMETRY, plan.clone(), elem_type(plan.element), plan.sizes(),
        )
    })
}
