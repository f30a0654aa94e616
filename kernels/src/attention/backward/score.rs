//! Probabilities and the gradient of the scores, element by element, from what two products leave in D.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use super::super::bias::Form;
use super::super::problem::Geometry;
use super::super::score::{Sequence, bias, bias_base, visible};
use super::layout::Lane;
use super::pairs::Pairs;
use super::plan::{Plan, Role};
use crate::matrix::math::{LOG2_E, exp2};
use crate::random::philox_block;

/// The sequence and head that a workgroup is at.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Place {
    /// The batch entry.
    pub(super) sequence: Sequence,
    /// Head of Q.
    pub(super) head: u32,
    /// Where the first bias begins.
    pub(super) bias1: u32,
    /// Where the second bias begins.
    pub(super) bias2: u32,
    /// Site of the random numbers, low word.
    pub(super) site_low: u32,
    /// Site of the random numbers, high word.
    pub(super) site_high: u32,
}

#[cube]
impl Place {
    /// Head `head` of Q in `sequence`.
    pub(super) fn new(
        sequence: &Sequence,
        head: u32,
        samples: &[u32],
        geometry: &Geometry,
        #[comptime] plan: Plan,
    ) -> Place {
        let mut low = 0u32.runtime();
        let mut high = 0u32.runtime();
        if comptime!(plan.variant.dropout) {
            let sample = samples[sequence.batch as usize];
            let head = geometry.first_head + head;
            low = sample * geometry.heads_global + head;
            high = u32::mul_hi(sample, geometry.heads_global) + select(low < head, 1u32, 0u32);
        }
        Place {
            sequence: Sequence {
                batch: sequence.batch,
                first_query: sequence.first_query,
                queries: sequence.queries,
                first_key: sequence.first_key,
                keys: sequence.keys,
            },
            head,
            bias1: bias_base(sequence.batch, head, &geometry.bias1),
            bias2: bias_base(sequence.batch, head, &geometry.bias2),
            site_low: low,
            site_high: high,
        }
    }
}

/// An owned column of a lane.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Column {
    /// Its position in the sequence.
    pub(super) position: u32,
    /// Its term of the exponent to base 2: of a query the negated log-sum-exp, of a key the biases that vary along keys.
    pub(super) term: f32,
    /// Of a query: the negated sum of dO O.
    pub(super) delta: f32,
}

/// The owned columns of a lane.
pub(super) type Columns = cubecl::prelude::Sequence<Column>;

/// Whether the streamed rows are queries.
pub(super) fn rows_are_queries(plan: Plan) -> bool {
    plan.role != Role::Query
}

/// The biases of one form at (query, key), to base 2; beyond the sequence those of its last.
#[cube]
pub(super) fn biases<E: Numeric>(
    bias1: &[E],
    bias2: &[E],
    geometry: &Geometry,
    place: &Place,
    query: u32,
    key: u32,
    #[comptime] form: Form,
    #[comptime] plan: Plan,
) -> f32 {
    let sequence = &place.sequence;
    let (query, key) = (
        min(query, sequence.queries - 1),
        min(key, sequence.keys - 1),
    );
    let mut sum = f32::new(0.0);
    if comptime!(plan.bias[0].is_some_and(|bias| bias.form == form)) {
        sum += bias(bias1, place.bias1, query, key, &geometry.bias1);
    }
    if comptime!(plan.bias[1].is_some_and(|bias| bias.form == form)) {
        sum += bias(bias2, place.bias2, query, key, &geometry.bias2);
    }
    sum * LOG2_E
}

/// P of tile `t`, times 2^[`Plan::lift`], from the product `s` = X x: the elements of one D after the other.
#[cube]
pub(super) fn probabilities<E: Numeric, ND: Size>(
    s: &Array<Vector<f32, ND>>,
    terms: &Shared<[f32]>,
    bias1: &[E],
    bias2: &[E],
    geometry: &Geometry,
    place: &Place,
    columns: &Columns,
    pairs: &Pairs,
    lane: &Lane,
    stage: u32,
    #[comptime] t: usize,
    #[comptime] masked: bool,
    #[comptime] plan: Plan,
) -> Array<f32> {
    let (n, d) = comptime!((plan.tile_elements(), plan.instruction.d.elements));
    let local = lane.first + comptime!((t * plan.tile_rows()) as u32);
    let factor = geometry.scale * LOG2_E;
    let mut p = Array::<f32>::new(n);
    #[unroll]
    for e in 0..n {
        let (r, c) = comptime!(plan.place_of(e));
        let column = columns.index(c);
        let at = local + comptime!(r as u32);
        let (query, key) = if comptime!(rows_are_queries(plan)) {
            (stage + at, column.position)
        } else {
            (column.position, stage + at)
        };
        let mut exponent = column.term;
        if comptime!(rows_are_queries(plan)) {
            exponent = terms[at as usize];
            if comptime!(plan.has_bias(Form::Keys)) {
                exponent += column.term;
            }
        } else if comptime!(plan.has_bias(Form::Keys)) {
            exponent += terms[at as usize];
        }
        if comptime!(plan.reads_ahead()) {
            exponent = pairs.add_to::<E>(exponent, t, e, plan);
        } else if comptime!(plan.has_bias(Form::Pairs)) {
            exponent += biases(bias1, bias2, geometry, place, query, key, Form::Pairs, plan);
        }
        let mut probability = exp2(
            fma(
                s[comptime!(e / d)].extract(comptime!(e % d)),
                factor,
                exponent,
            ),
            plan.target,
        );
        if masked {
            let seen = visible(&place.sequence, query, key, plan.variant.causal);
            probability = select(seen, probability, 0.0);
        }
        p[e] = probability;
    }
    p
}

/// P as V is multiplied by it: after dropout.
#[cube]
pub(super) fn used(p: &Array<f32>, kept: &Array<f32>, #[comptime] plan: Plan) -> Array<f32> {
    let n = comptime!(plan.tile_elements());
    let mut used = Array::<f32>::new(n);
    #[unroll]
    for r in 0..n {
        used[r] = if comptime!(plan.variant.dropout) {
            p[r] * kept[r]
        } else {
            p[r]
        };
    }
    used
}

/// dS of tile `t`, before the scale, from P and the product `dp` = Y y.
#[cube]
pub(super) fn score_gradient<ND: Size>(
    p: &Array<f32>,
    dp: &Array<Vector<f32, ND>>,
    kept: &Array<f32>,
    terms: &Shared<[f32]>,
    columns: &Columns,
    lane: &Lane,
    #[comptime] t: usize,
    #[comptime] plan: Plan,
) -> Array<f32> {
    let (n, d) = comptime!((plan.tile_elements(), plan.instruction.d.elements));
    let deltas = lane.first + comptime!((plan.rows() + t * plan.tile_rows()) as u32);
    let mut ds = Array::<f32>::new(n);
    #[unroll]
    for e in 0..n {
        let (r, c) = comptime!(plan.place_of(e));
        let dp = dp[comptime!(e / d)].extract(comptime!(e % d));
        // The negated sum of dO O.
        let delta = if comptime!(rows_are_queries(plan)) {
            terms[(deltas + comptime!(r as u32)) as usize]
        } else {
            columns.index(c).delta
        };
        ds[e] = if comptime!(plan.variant.dropout) {
            p[e] * fma(dp, kept[e], delta)
        } else {
            p[e] * (dp + delta)
        };
    }
    ds
}

/// Factors of dropout of a lane's part of tile `t`: 0, or what makes up for those.
#[cube]
pub(super) fn kept(
    geometry: &Geometry,
    place: &Place,
    lane: &Lane,
    columns: &Columns,
    stage: u32,
    #[comptime] t: usize,
    #[comptime] plan: Plan,
) -> Array<f32> {
    let row = stage + lane.first + comptime!((t * plan.tile_rows()) as u32);
    let n = comptime!(plan.tile_elements());
    let mut factors = Array::<f32>::new(n);
    if comptime!(plan.variant.dropout) {
        #[unroll]
        for e in 0..n {
            let (r, c) = comptime!(plan.place_of(e));
            let column = columns.index(c).position;
            if comptime!(rows_are_queries(plan)) {
                let words = words(geometry, place, row + comptime!(r as u32), column / 4);
                let low = select(
                    column % 2 == 0,
                    words.extract(0usize),
                    words.extract(1usize),
                );
                let high = select(
                    column % 2 == 0,
                    words.extract(2usize),
                    words.extract(3usize),
                );
                let word = select(column % 4 < 2, low, high);
                factors[e] = factor(geometry, word);
            } else if comptime!(r % 4 == 0) {
                // The rows of a lane begin at a multiple of 4: a block of random words serves four of them.
                let words = words(geometry, place, column, (row + comptime!(r as u32)) / 4);
                #[unroll]
                for w in 0..4usize {
                    let (part, e) = comptime!(plan.element_at(r + w, c));
                    let at = comptime!(part * plan.instruction.d.elements + e);
                    factors[at] = factor(geometry, words.extract(w));
                }
            }
        }
    }
    factors
}

/// The random words of a block of four keys.
#[cube]
pub(super) fn words(
    geometry: &Geometry,
    place: &Place,
    query: u32,
    block: u32,
) -> Vector<u32, Const<4>> {
    philox_block(
        block,
        query,
        place.site_low,
        place.site_high,
        geometry.key_low,
        geometry.key_high,
    )
}

#[cube]
fn factor(geometry: &Geometry, word: u32) -> f32 {
    select(word >= geometry.threshold, geometry.keep_scale, 0.0)
}
