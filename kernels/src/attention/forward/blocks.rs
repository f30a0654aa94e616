//! The forward pass in [`blocks`](super::super::blocks): a workgroup owns queries and passes over the keys.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use super::super::blocks::{
    Blocks, Memory, Quad, Rows, accumulate, first_row, join, multiply, of_lane, write, zeros,
};
use super::super::plan::Plan;
use super::super::problem::Geometry;
use super::super::score::{
    Sequence as Entry, Site, UNSEEN, bias, bias_base, key_base, keys_seen_below, query_base, site,
    visible, words,
};
use super::softmax::LOWEST;
use super::state::Inputs;
use crate::gemm::product::{Place, own_place};
use crate::matrix::lanes::Join;
use crate::matrix::math::{LN_2, LOG2_E, exp2, log2, reciprocal};
use crate::matrix::vector::from_elements;

/// Where a workgroup is: what does not change from block to block.
#[derive(CubeType)]
struct Here {
    sequence: Entry,
    own: Place,
    /// The first query.
    first: u32,
    bias1: u32,
    bias2: u32,
    site: Site,
}

/// What is known of a lane's queries so far, a vector a run. Exponents are to base 2.
#[derive(CubeType)]
struct State {
    /// The greatest score, the same in all lanes that share the query.
    most: Array<Quad>,
    /// The sum of the lane's probabilities.
    sums: Array<Quad>,
    /// O, not yet normalized.
    output: Array<Quad>,
}

/// O and the log-sum-exp of the queries of `sequence` from `first` on.
#[cube]
pub(super) fn attend<
    E: Numeric,
    NA: Size,
    NB: Size,
    ND: Size,
    WQ: Size,
    WK: Size,
    WV: Size,
    WO: Size,
    W: Size,
>(
    q: &[Vector<E, WQ>],
    inputs: &Inputs<'_, E, WK, WV>,
    o: &mut [Vector<E, WO>],
    lse: &mut [f32],
    sequence: Entry,
    first: u32,
    samples: &[u32],
    geometry: &Geometry,
    #[comptime] plan: Plan,
) {
    let (blocks, variant) = comptime!((plan.blocks(), plan.variant));
    let (head, kv_head) = (CUBE_POS_Y, CUBE_POS_Y / geometry.group);
    let queries = Rows {
        base: query_base(&sequence, head, &geometry.q, variant),
        stride: geometry.q.row,
        count: sequence.queries,
    };
    let keys = Rows {
        base: key_base(&sequence, kv_head, &geometry.k, variant),
        stride: geometry.k.row,
        count: sequence.keys,
    };
    let values = Rows {
        base: key_base(&sequence, kv_head, &geometry.v, variant),
        stride: geometry.v.row,
        count: sequence.keys,
    };
    let here = Here {
        own: own_place(blocks.scores),
        first,
        bias1: bias_base(sequence.batch, head, &geometry.bias1),
        bias2: bias_base(sequence.batch, head, &geometry.bias2),
        site: site(samples, sequence.batch, head, geometry, variant),
        sequence,
    };
    let mut memory = Memory::<E, W>::new(blocks);
    let mut state = State {
        most: same(LOWEST, blocks),
        sums: same(0.0, blocks),
        output: zeros(blocks),
    };
    let end = first + comptime!(blocks.owned() as u32);
    let seen = keys_seen_below(&here.sequence, end, comptime!(variant.causal));
    let streamed = comptime!(blocks.streamed() as u32);
    for block in 0..seen.div_ceil(streamed) {
        let at = block * streamed;
        let products = multiply::<E, WQ, WK, W, NA, NB, ND>(
            q,
            inputs.k,
            &queries,
            &keys,
            first,
            at,
            &mut memory,
            &here.own,
            blocks,
        );
        probabilities(
            &products,
            &mut memory,
            &mut state,
            inputs,
            &here,
            geometry,
            at,
            comptime!(plan.clone()),
        );
        accumulate(
            inputs.v,
            &values,
            at,
            &mut memory,
            &here.own,
            &mut state.output,
            blocks,
        );
    }
    finish(o, lse, &mut state, &mut memory, &here, geometry, plan);
}

/// A number for each of the lane's queries.
#[cube]
fn same(number: f32, #[comptime] blocks: Blocks) -> Array<Quad> {
    let mut all = Array::<Quad>::new(comptime!(blocks.runs().0));
    #[unroll]
    for i in 0..comptime!(blocks.runs().0) {
        all[i] = Quad::new(number);
    }
    all
}

/// Turns the products of the queries with the keys from `at` on into probabilities in shared memory, relative to the greatest
/// scores so far; what was accumulated, too.
#[cube]
fn probabilities<E: Numeric, ND: Size, WK: Size, WV: Size, W: Size>(
    products: &Array<Vector<f32, ND>>,
    memory: &mut Memory<E, W>,
    state: &mut State,
    inputs: &Inputs<'_, E, WK, WV>,
    here: &Here,
    geometry: &Geometry,
    at: u32,
    #[comptime] plan: Plan,
) {
    let blocks = comptime!(plan.blocks());
    let (runs, columns) = comptime!(blocks.runs());
    // The last block's values may still be read before this: the product had barriers.
    #[unroll]
    for i in 0..runs {
        #[unroll]
        for j in 0..columns {
            let (place, _, _) = of_lane(&here.own, i, comptime!(j as u32).runtime(), blocks);
            memory.values[place as usize] = Quad::cast_from(products[comptime!(i * columns + j)]);
        }
    }
    let mut most = Array::<Quad>::new(runs);
    #[unroll]
    for i in 0..runs {
        most[i] = state.most[i];
    }
    // A bit for each of the lane's pairs: what dropout keeps.
    let mut kept = 0u32;
    // A lane's own values, through shared memory: so a loop takes them, whose text is short.
    for j in 0..comptime!(columns as u32) {
        #[unroll]
        for i in 0..runs {
            let (place, row, column) = of_lane(&here.own, i, j, blocks);
            let (query, key) = (here.first + row, at + column);
            let scores = scores(
                memory.values[place as usize],
                inputs,
                here,
                geometry,
                query,
                key,
                comptime!(plan.clone()),
            );
            memory.values[place as usize] = scores;
            most[i] = max(most[i], scores);
            if comptime!(plan.variant.dropout) {
                let shift = (j * comptime!(runs as u32) + i as u32) * 4;
                kept |= keeps(here, geometry, query, key) << shift;
            }
        }
    }
    let mut scores = Array::<Quad>::new(comptime!(runs * columns));
    #[unroll]
    for i in 0..runs {
        #[unroll]
        for j in 0..columns {
            let (place, _, _) = of_lane(&here.own, i, comptime!(j as u32).runtime(), blocks);
            scores[comptime!(i * columns + j)] = memory.values[place as usize];
        }
    }
    let most = join(&most, memory, &here.own, Join::Max, blocks);
    refer(state, &most, comptime!(plan.clone()));
    store(&scores, kept, state, memory, &here.own, plan);
    sync_cube();
}

/// The scores of four queries from `query` on with `key`, to base 2: scaled, with biases, [`UNSEEN`] where the key is not seen.
#[cube]
fn scores<E: Numeric, WK: Size, WV: Size>(
    products: Quad,
    inputs: &Inputs<'_, E, WK, WV>,
    here: &Here,
    geometry: &Geometry,
    query: u32,
    key: u32,
    #[comptime] plan: Plan,
) -> Quad {
    let variant = comptime!(plan.variant);
    let scale = geometry.scale * LOG2_E;
    let mut all = Sequence::<f32>::new();
    #[unroll]
    for e in 0..4usize {
        let query = query + comptime!(e as u32);
        let mut score = products.extract(e) * scale;
        // Beyond the sequence, the bias of its last places: it is masked there.
        let row = min(query, here.sequence.queries - 1);
        let column = min(key, here.sequence.keys - 1);
        if comptime!(variant.bias[0]) {
            score += bias(inputs.bias1, here.bias1, row, column, &geometry.bias1) * LOG2_E;
        }
        if comptime!(variant.bias[1]) {
            score += bias(inputs.bias2, here.bias2, row, column, &geometry.bias2) * LOG2_E;
        }
        let seen = visible(&here.sequence, query, key, variant.causal);
        all.push(select(seen, score, f32::new(UNSEEN)));
    }
    from_elements(&all)
}

/// Which of four probabilities dropout keeps, those of the queries from `query` on and `key`: a bit each.
#[cube]
fn keeps(here: &Here, geometry: &Geometry, query: u32, key: u32) -> u32 {
    let mut bits = 0u32;
    for e in 0..4u32 {
        let words = words(&here.site, query + e, key, geometry);
        let low = select(key % 2 == 0, words.extract(0usize), words.extract(1usize));
        let high = select(key % 2 == 0, words.extract(2usize), words.extract(3usize));
        let word = select(key % 4 < 2, low, high);
        bits |= select(word >= geometry.threshold, 1u32 << e, 0u32);
    }
    bits
}

/// Makes `most` the references, of what was accumulated too.
#[cube]
fn refer(state: &mut State, most: &Array<Quad>, #[comptime] plan: Plan) {
    let blocks = comptime!(plan.blocks());
    let parts = comptime!(blocks.parts());
    #[unroll]
    for i in 0..comptime!(blocks.runs().0) {
        let mut factors = Sequence::<f32>::new();
        #[unroll]
        for e in 0..4usize {
            let factor = exp2(state.most[i].extract(e) - most[i].extract(e), plan.target);
            factors.push(factor);
            #[unroll]
            for part in 0..parts {
                state.output[comptime!((i * 4 + e) * parts + part)] *= Quad::new(factor);
            }
        }
        state.most[i] = most[i];
        state.sums[i] *= from_elements::<f32, Const<4>>(&factors);
    }
}

/// Puts the lane's probabilities into shared memory, and adds them to the sums: there with those that dropout drops.
#[cube]
fn store<E: Numeric, W: Size>(
    scores: &Array<Quad>,
    kept: u32,
    state: &mut State,
    memory: &mut Memory<E, W>,
    own: &Place,
    #[comptime] plan: Plan,
) {
    let blocks = comptime!(plan.blocks());
    let (runs, columns) = comptime!(blocks.runs());
    #[unroll]
    for i in 0..runs {
        #[unroll]
        for j in 0..columns {
            let relative = scores[comptime!(i * columns + j)] - state.most[i];
            let mut all = Sequence::<f32>::new();
            let mut used = Sequence::<f32>::new();
            #[unroll]
            for e in 0..4usize {
                let p = exp2(relative.extract(e), plan.target);
                all.push(p);
                if comptime!(plan.variant.dropout) {
                    let bit = comptime!(1u32 << ((j * runs + i) * 4 + e));
                    used.push(select(kept & bit != 0, p, 0.0));
                } else {
                    used.push(p);
                }
            }
            state.sums[i] += from_elements::<f32, Const<4>>(&all);
            let (place, _, _) = of_lane(own, i, comptime!(j as u32).runtime(), blocks);
            memory.values[place as usize] = from_elements::<f32, Const<4>>(&used);
        }
    }
}

/// Writes O and the log-sum-exp. A query that has seen nothing gets zeros, and -inf.
#[cube]
fn finish<E: Numeric, W: Size, WO: Size>(
    o: &mut [Vector<E, WO>],
    lse: &mut [f32],
    state: &mut State,
    memory: &mut Memory<E, W>,
    here: &Here,
    geometry: &Geometry,
    #[comptime] plan: Plan,
) {
    let (blocks, variant) = comptime!((plan.blocks(), plan.variant));
    // The last block's values may still be read.
    sync_cube();
    let sums = join(&state.sums, memory, &here.own, Join::Sum, blocks);
    let mut factors = Array::<Quad>::new(comptime!(blocks.runs().0));
    let base = query_base(&here.sequence, CUBE_POS_Y, &geometry.lse, variant);
    let (_, _, column) = of_lane(&here.own, 0usize, 0u32, blocks);
    #[unroll]
    for i in 0..comptime!(blocks.runs().0) {
        let run = here.first + first_row(&here.own, i, blocks);
        let mut all = Sequence::<f32>::new();
        #[unroll]
        for e in 0..4usize {
            let sum = sums[i].extract(e);
            let some = sum > 0.0;
            let normal = reciprocal(sum, plan.target) * geometry.keep_scale;
            all.push(select(some, normal, 0.0));
            let query = run + comptime!(e as u32);
            if column == 0 && query < here.sequence.queries {
                let value = (state.most[i].extract(e) + log2(sum, plan.target)) * LN_2;
                // By its bits: WGSL has no infinities.
                let bits = select(some, u32::reinterpret(value), f32::NEG_INFINITY.to_bits());
                lse[(base + query * geometry.lse.row) as usize] = f32::reinterpret(bits);
            }
        }
        factors[i] = from_elements(&all);
    }
    let rows = Rows {
        base: query_base(&here.sequence, CUBE_POS_Y, &geometry.o, variant),
        stride: geometry.o.row,
        count: here.sequence.queries,
    };
    write(
        &state.output,
        o,
        &rows,
        here.first,
        &factors,
        &here.own,
        blocks,
    );
}
