//! The online softmax of a wave's queries: a lane has one query, or two, and some of their keys.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use super::biases::{Biases, bias_of};
use super::state::{Inputs, Next, Wave, Work};
use crate::attention::plan::Plan;
use crate::attention::problem::Geometry;
use crate::attention::score::{UNSEEN, kept, visible};
use crate::matrix::instruction::Element;
use crate::matrix::lanes::{Join, coordinate, join_column};
use crate::matrix::math::{LOG2_E, exp2};
use crate::matrix::narrow::{narrow, widening};
use crate::matrix::vector::from_elements;

/// Below every score: a query whose scores are lower has seen nothing. Finite, so that nothing is subtracted from itself.
pub(super) const LOWEST: f32 = -1e30;

/// Added to every exponent: it centres what narrowing drops, and lifts f16, whose products on gfx90a lose what is below 2^-14.
pub(crate) fn lift(plan: &Plan) -> f32 {
    let range = match plan.element {
        Element::F16 => 15.0,
        _ => 0.0,
    };
    range + widening(plan.element, plan.narrowing())
}

/// What is known of each of a lane's queries so far. Exponents are to base 2.
#[derive(CubeType)]
pub(crate) struct State {
    /// The exponent that probabilities are relative to; the same in all lanes of the query.
    pub reference: Array<f32>,
    /// The greatest score that the lane has taken.
    pub most: Array<f32>,
    /// Sum of the lane's probabilities with even numbers, times 2^[`lift`].
    pub even: Array<f32>,
    /// Sum of those with odd numbers.
    pub odd: Array<f32>,
}

/// Before any key.
#[cube]
pub(crate) fn nothing_seen(#[comptime] plan: Plan) -> State {
    let columns = comptime!(plan.columns());
    let mut state = State {
        reference: Array::new(columns),
        most: Array::new(columns),
        even: Array::new(columns),
        odd: Array::new(columns),
    };
    #[unroll]
    for c in 0..columns {
        state.reference[c] = LOWEST;
        state.most[c] = LOWEST;
        state.even[c] = 0.0;
        state.odd[c] = 0.0;
    }
    state
}

/// Query of the lane's column `column`.
#[cube]
pub(crate) fn query_of(work: &Work, #[comptime] column: usize, #[comptime] plan: Plan) -> u32 {
    work.query + comptime!(plan.instruction.columns()[column] as u32)
}

/// Takes some pairs of the products of Q with the tile of keys that begins at `first` as scores to base 2: scaled, with
/// biases, [`UNSEEN`] where a key is not seen.
#[cube]
pub(crate) fn take<E: Numeric, NB: Size, ND: Size, WK: Size, WV: Size>(
    inputs: &Inputs<'_, E, WK, WV>,
    wave: &mut Wave<E, NB, ND>,
    products: &Array<Vector<f32, ND>>,
    biases: &Biases,
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
        let column = comptime!(instruction.column_of(element));
        let query = query_of(work, column, comptime!(plan.clone()));
        if comptime!(variant.bias[0] || variant.bias[1]) {
            let plan = comptime!(plan.clone());
            score += bias_of(inputs, biases, work, query, key, geometry, i, plan);
        }
        if comptime!(next == Next::Masked) {
            let seen = visible(&work.sequence, query, key, variant.causal);
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
        let column = comptime!(instruction.column_of(2 * pair % count));
        wave.state.most[column] = max(wave.state.most[column], max(even, odd));
    }
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
    let instruction = comptime!(plan.instruction);
    #[unroll]
    for i in comptime!(2 * pairs.0)..comptime!(2 * pairs.1) {
        let column = comptime!(instruction.column_of(i % instruction.d.elements));
        let offset = comptime!(lift(&plan)) - wave.state.reference[column];
        let p = exp2(wave.scores[i] + offset, comptime!(plan.target));
        probabilities[i] = p;
        if comptime!(i % 2 == 0) {
            wave.state.even[column] += p;
        } else {
            wave.state.odd[column] += p;
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

/// The greatest score of each of the lane's queries so far, of all lanes that have some of its keys.
#[cube]
pub(crate) fn greatest(state: &State, #[comptime] plan: Plan) -> Array<f32> {
    let (instruction, target) = comptime!((plan.instruction, plan.target));
    let mut most = Array::<f32>::new(comptime!(plan.columns()));
    #[unroll]
    for c in 0..comptime!(plan.columns()) {
        most[c] = join_column(state.most[c], Join::Max, instruction, target);
    }
    most
}

/// Makes `most`, the [`greatest`] scores so far, the references; leaves the factors for what was accumulated relative to those
/// before.
#[cube]
pub(crate) fn refer<E: Numeric, NB: Size, ND: Size>(
    wave: &mut Wave<E, NB, ND>,
    most: &Array<f32>,
    factors: &mut Array<f32>,
    #[comptime] plan: Plan,
) {
    #[unroll]
    for c in 0..comptime!(plan.columns()) {
        let factor = exp2(wave.state.reference[c] - most[c], comptime!(plan.target));
        wave.state.reference[c] = most[c];
        wave.state.even[c] *= factor;
        wave.state.odd[c] *= factor;
        factors[c] = factor;
    }
}

/// A number for each of the lane's columns, as D has them.
#[cube]
fn of_columns<ND: Size>(numbers: &Array<f32>, #[comptime] plan: Plan) -> Vector<f32, ND> {
    let instruction = comptime!(plan.instruction);
    if comptime!(plan.columns() == 1) {
        Vector::<f32, ND>::new(numbers[0])
    } else {
        let mut elements = Sequence::<f32>::new();
        #[unroll]
        for e in 0..comptime!(instruction.d.elements) {
            elements.push(numbers[comptime!(instruction.column_of(e))]);
        }
        from_elements::<f32, ND>(&elements)
    }
}

/// Scales some tiles of the output.
#[cube]
pub(crate) fn scale<E: Numeric, NB: Size, ND: Size>(
    wave: &mut Wave<E, NB, ND>,
    factors: &Array<f32>,
    #[comptime] tiles: (usize, usize),
    #[comptime] plan: Plan,
) {
    let factors = of_columns::<ND>(factors, plan);
    #[unroll]
    for t in comptime!(tiles.0)..comptime!(tiles.1) {
        wave.output[t] *= factors;
    }
}
