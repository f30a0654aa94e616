//! The online softmax of a wave's queries: a lane has one query, and some of its keys.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use super::state::{Inputs, Next, Wave, Work};
use crate::attention::plan::Plan;
use crate::attention::problem::{Geometry, Variant};
use crate::attention::score::{UNSEEN, bias, kept, visible};
use crate::matrix::instruction::Element;
use crate::matrix::lanes::coordinate;
use crate::matrix::math::{LOG2_E, exp2};
use crate::matrix::narrow::{narrow, widening};

/// Below every score: a query whose scores are lower has seen nothing. Finite, so that nothing is subtracted from itself.
const LOWEST: f32 = -1e30;

/// Added to every exponent: it centres what narrowing drops, and lifts f16, whose products on gfx90a lose what is below 2^-14.
pub(crate) fn lift(plan: &Plan) -> f32 {
    let range = match plan.element {
        Element::F16 => 15.0,
        _ => 0.0,
    };
    range + widening(plan.element, plan.narrowing())
}

/// What is known of a lane's query so far. Exponents are to base 2.
#[derive(CubeType)]
pub(crate) struct State {
    /// The exponent that probabilities are relative to; the same in all lanes of the query.
    pub reference: f32,
    /// The greatest score that the lane has taken.
    pub most: f32,
    /// Sum of the lane's probabilities with even numbers, times 2^[`lift`].
    pub even: f32,
    /// Sum of those with odd numbers.
    pub odd: f32,
}

/// Before any key.
#[cube]
pub(crate) fn nothing_seen() -> State {
    State {
        reference: LOWEST.runtime(),
        most: LOWEST.runtime(),
        even: 0.0f32.runtime(),
        odd: 0.0f32.runtime(),
    }
}

/// Takes some pairs of the products of Q with the tile of keys that begins at `first` as scores to base 2: scaled, with
/// biases, [`UNSEEN`] where a key is not seen.
#[cube]
pub(crate) fn take<E: Numeric, NB: Size, ND: Size, WK: Size, WV: Size>(
    inputs: &Inputs<'_, E, WK, WV>,
    wave: &mut Wave<E, NB, ND>,
    products: &Array<Vector<f32, ND>>,
    work: &Work,
    geometry: &Geometry,
    first: u32,
    #[comptime] pairs: (usize, usize),
    #[comptime] next: Next,
    #[comptime] plan: Plan,
) {
    let (instruction, variant) = comptime!((plan.instruction, plan.variant));
    let count = comptime!(instruction.d.elements);
    let scale = geometry.scale * LOG2_E;
    #[unroll]
    for i in comptime!(2 * pairs.0)..comptime!(2 * pairs.1) {
        let (tile, element) = comptime!((i / count, i % count));
        let mut score = products[tile].extract(element) * scale;
        let row = comptime!((tile * instruction.m) as u32);
        let key = first + row + coordinate(work.lane.lane, element, instruction.d.row);
        if comptime!(variant.bias[0] || variant.bias[1]) {
            score += biases(inputs, work, key, geometry, variant) * LOG2_E;
        }
        if comptime!(next == Next::Masked) {
            let seen = visible(&work.sequence, work.query, key, variant.causal);
            score = select(seen, score, f32::new(UNSEEN));
        }
        wave.scores[i] = score;
    }
    #[unroll]
    for pair in comptime!(pairs.0)..comptime!(pairs.1) {
        let (even, odd) = (
            wave.scores[comptime!(2 * pair)],
            wave.scores[comptime!(2 * pair + 1)],
        );
        wave.state.most = max(wave.state.most, max(even, odd));
    }
}

/// What is added to the score of the lane's query and `key`. Beyond the sequence, of its last places: it is masked there.
#[cube]
fn biases<E: Numeric, WK: Size, WV: Size>(
    inputs: &Inputs<'_, E, WK, WV>,
    work: &Work,
    key: u32,
    geometry: &Geometry,
    #[comptime] variant: Variant,
) -> f32 {
    let query = min(work.query, work.sequence.queries - 1);
    let key = min(key, work.keys.last);
    let mut sum = 0.0f32.runtime();
    if comptime!(variant.bias[0]) {
        sum += bias(inputs.bias1, work.bias1, query, key, &geometry.bias1);
    }
    if comptime!(variant.bias[1]) {
        sum += bias(inputs.bias2, work.bias2, query, key, &geometry.bias2);
    }
    sum
}

/// Which probabilities of the tile of keys that begins at `first` dropout keeps; nothing without dropout.
#[cube]
pub(crate) fn kept_of(
    work: &Work,
    geometry: &Geometry,
    first: u32,
    #[comptime] plan: Plan,
) -> Array<bool> {
    let (instruction, count) = comptime!((plan.instruction, plan.instruction.d.elements));
    let mut all = Array::<bool>::new(comptime!(plan.score_tiles() * count));
    if comptime!(plan.variant.dropout) {
        #[unroll]
        for t in 0..comptime!(plan.score_tiles()) {
            let first = first + comptime!((t * instruction.m) as u32);
            let keep = kept(
                &work.site,
                work.query,
                first,
                work.lane.lane,
                geometry,
                instruction,
            );
            #[unroll]
            for e in 0..count {
                all[comptime!(t * count + e)] = keep[e];
            }
        }
    }
    all
}

/// Some pairs of the lane's scores as probabilities, times 2^[`lift`]; those that dropout drops are 0, but count in the sum.
#[cube]
pub(crate) fn exponentials<E: Numeric, NB: Size, ND: Size>(
    wave: &mut Wave<E, NB, ND>,
    probabilities: &mut Array<f32>,
    keep: &Array<bool>,
    #[comptime] pairs: (usize, usize),
    #[comptime] plan: Plan,
) {
    let offset = comptime!(lift(&plan)) - wave.state.reference;
    #[unroll]
    for i in comptime!(2 * pairs.0)..comptime!(2 * pairs.1) {
        let p = exp2(wave.scores[i] + offset, comptime!(plan.target));
        probabilities[i] = p;
        if comptime!(i % 2 == 0) {
            wave.state.even += p;
        } else {
            wave.state.odd += p;
        }
        if comptime!(plan.variant.dropout) {
            probabilities[i] = select(keep[i], p, 0.0);
        }
    }
}

/// Packs the fragments of B that these pairs complete.
#[cube]
pub(crate) fn pack<E: Numeric, NB: Size, NP: Size>(
    probabilities: &Array<f32>,
    fragments: &mut Array<Vector<E, NB>>,
    #[comptime] pairs: (usize, usize),
    #[comptime] plan: Plan,
) {
    let count = comptime!(plan.instruction.b.elements);
    let (first, end) = comptime!((2 * pairs.0 / count, 2 * pairs.1 / count));
    #[unroll]
    for s in first..end {
        fragments[s] = narrow::<E, NB, NP>(
            probabilities,
            comptime!(s * count),
            comptime!(plan.element),
            comptime!(plan.narrowing()),
        );
    }
}

/// Makes `most`, the greatest score of the query so far, the reference; returns the factor for what was accumulated
/// relative to the one before.
#[cube]
pub(crate) fn refer<E: Numeric, NB: Size, ND: Size>(
    wave: &mut Wave<E, NB, ND>,
    most: f32,
    #[comptime] plan: Plan,
) -> f32 {
    let factor = exp2(wave.state.reference - most, comptime!(plan.target));
    wave.state.reference = most;
    wave.state.even *= factor;
    wave.state.odd *= factor;
    factor
}

/// Scales some tiles of the output.
#[cube]
pub(crate) fn scale<E: Numeric, NB: Size, ND: Size>(
    wave: &mut Wave<E, NB, ND>,
    factor: f32,
    #[comptime] tiles: (usize, usize),
) {
    let factors = Vector::<f32, ND>::new(factor);
    #[unroll]
    for t in comptime!(tiles.0)..comptime!(tiles.1) {
        wave.output[t] *= factors;
    }
}
