//! The biases of a tile of keys: those that vary along keys only pass through shared memory, a number a key; others wait in
//! registers for their scores.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use super::softmax::query_of;
use super::state::{Inputs, Work};
use crate::attention::bias::{Form, Reads, Stand, fetch, read_bias};
use crate::attention::plan::{Plan, QUAD};
use crate::attention::problem::{BiasStrides, Geometry};
use crate::attention::score::bias;
use crate::matrix::lanes::lane_part;
use crate::matrix::math::LOG2_E;

impl Plan {
    /// Whether biases are read before their scores are there. Plain multiply-adds leave no time in which that would hide.
    fn reads_ahead(&self) -> bool {
        !self.along_rows()
    }

    /// Whether bias `number` passes through shared memory: it varies along keys only, and there is room.
    fn stages(&self, number: usize) -> bool {
        let quads = self.key_layout().len() + self.value_layout().len();
        let tiles = 2 * quads * QUAD * self.element.bytes();
        let terms = 2 * self.term_pitch() * size_of::<f32>();
        self.reads_ahead()
            && self.bias[number].is_some_and(|bias| bias.form == Form::Keys)
            && tiles + terms <= self.target.shared_memory()
    }

    /// Whether one of them does.
    pub(super) fn stages_terms(&self) -> bool {
        (0..2).any(|number| self.stages(number))
    }

    /// Numbers from one tile of terms to the next. No power of two: the compiler would join it to a lane's part by `or`, and
    /// then find no constant to leave to the address.
    fn term_pitch(&self) -> usize {
        self.units() + 4
    }

    /// How a lane reads the bias `number` of a tile, if it waits in registers.
    fn reads(&self, number: usize) -> Option<Reads> {
        let access = self.bias[number].filter(|_| self.reads_ahead() && !self.stages(number))?;
        let d = self.instruction.d;
        let place = |i: usize| {
            let (tile, element) = (i / d.elements, i % d.elements);
            let row = tile * self.instruction.m + d.row.offset(element);
            (row, self.instruction.column_of(element))
        };
        Some(Reads {
            places: (0..2 * self.pairs()).map(place).collect(),
            access,
            element: self.element,
        })
    }

    /// Words that a lane reads ahead.
    fn bias_words(&self, number: usize) -> usize {
        self.reads(number).map_or(1, |reads| reads.words())
    }
}

/// The biases of a tile of keys, on their way into its scores.
#[derive(CubeType)]
pub(super) struct Biases {
    /// Of the first bias, as they lie in memory.
    first: Array<u32>,
    /// Of the second bias.
    second: Array<u32>,
    /// What passed through shared memory, to base 2: one for each of the lane's scores.
    terms: Array<f32>,
}

/// Where a lane stands in a bias that begins at `base`.
#[cube]
fn stand(
    base: u32,
    work: &Work,
    geometry: &Geometry,
    strides: &BiasStrides,
    #[comptime] plan: Plan,
) -> Stand {
    let mut columns = Sequence::<u32>::new();
    #[unroll]
    for c in 0..comptime!(plan.columns()) {
        let query = query_of(work, c, comptime!(plan.clone()));
        columns.push(min(query, work.sequence.queries - 1) * strides.query);
    }
    Stand {
        base,
        along: strides.key,
        rows: geometry.keys,
        row: lane_part(work.lane.lane, comptime!(plan.instruction.d.row)),
        columns,
    }
}

#[cube]
impl Biases {
    /// Room for them.
    pub(super) fn new(#[comptime] plan: Plan) -> Biases {
        Biases {
            first: Array::new(comptime!(plan.bias_words(0))),
            second: Array::new(comptime!(plan.bias_words(1))),
            terms: Array::new(comptime!(2 * plan.pairs())),
        }
    }

    /// Reads those that wait in registers, of the tile of keys that begins at `first`. If `checked`, some of its keys may not
    /// exist.
    pub(super) fn fetch<E: Numeric>(
        &mut self,
        bias1: &[E],
        bias2: &[E],
        work: &Work,
        geometry: &Geometry,
        first: u32,
        #[comptime] checked: bool,
        #[comptime] plan: Plan,
    ) {
        let reads = comptime!(plan.reads(0));
        if comptime!(reads.is_some()) {
            let reads = comptime!(reads.unwrap());
            let strides = &geometry.bias1;
            let stand = stand(work.bias1, work, geometry, strides, comptime!(plan.clone()));
            fetch(bias1, &stand, first, &mut self.first, checked, reads);
        }
        let reads = comptime!(plan.reads(1));
        if comptime!(reads.is_some()) {
            let reads = comptime!(reads.unwrap());
            let strides = &geometry.bias2;
            let stand = stand(work.bias2, work, geometry, strides, comptime!(plan.clone()));
            fetch(bias2, &stand, first, &mut self.second, checked, reads);
        }
    }
}

/// Biases of keys on their way to shared memory.
#[derive(CubeType)]
pub(crate) struct Terms<E: Numeric> {
    /// Two tiles, a number a unit: the first units have those of the tile's keys. Nothing, where none are staged.
    staged: Sequence<Shared<[f32]>>,
    /// What will follow there, of each bias.
    next: Array<E>,
}

#[cube]
impl<E: Numeric> Terms<E> {
    /// Room for them.
    pub(super) fn new(#[comptime] plan: Plan) -> Terms<E> {
        let mut staged = Sequence::new();
        if comptime!(plan.stages_terms()) {
            let length = comptime!(2 * plan.term_pitch());
            staged.push(Shared::<[f32]>::new_aligned_slice(length, 16usize));
        }
        Terms::<E> {
            staged,
            next: Array::new(2usize),
        }
    }
}

/// Reads the unit's part of the tile of keys that begins at `first`.
#[cube]
pub(super) fn fetch_terms<E: Numeric, WK: Size, WV: Size>(
    inputs: &Inputs<'_, E, WK, WV>,
    work: &Work,
    geometry: &Geometry,
    first: u32,
    terms: &mut Terms<E>,
    #[comptime] plan: Plan,
) {
    let key = min(first + UNIT_POS, work.keys.last);
    if comptime!(plan.stages(0)) {
        terms.next[0] = inputs.bias1[(work.bias1 + key * geometry.bias1.key) as usize];
    }
    if comptime!(plan.stages(1)) {
        terms.next[1] = inputs.bias2[(work.bias2 + key * geometry.bias2.key) as usize];
    }
}

/// Writes what [`fetch_terms`] read to shared memory, as tile `half`.
#[cube]
pub(super) fn store_terms<E: Numeric>(terms: &mut Terms<E>, half: u32, #[comptime] plan: Plan) {
    let mut sum = f32::new(0.0);
    #[unroll]
    for i in 0..2usize {
        if comptime!(plan.stages(i)) {
            sum += f32::cast_from(terms.next[i]);
        }
    }
    let at = half * comptime!(plan.term_pitch() as u32) + UNIT_POS;
    terms.staged.index_mut(0)[at as usize] = sum * LOG2_E;
}

/// Runs of four scores, the first of them behind score `2 * pairs`.
fn quads(pairs: usize) -> usize {
    (2 * pairs).div_ceil(4)
}

/// Reads from shared memory what the lane needs of tile `half`, for some pairs of scores.
#[cube]
pub(super) fn read_terms<E: Numeric>(
    terms: &Terms<E>,
    biases: &mut Biases,
    work: &Work,
    half: u32,
    #[comptime] pairs: (usize, usize),
    #[comptime] plan: Plan,
) {
    let d = comptime!(plan.instruction.d);
    let all = comptime!(if plan.stages_terms() {
        2 * plan.pairs()
    } else {
        0
    });
    let (from, to) = comptime!((4 * quads(pairs.0), (4 * quads(pairs.1)).min(all)));
    // What is known at compile time comes last, so that it stays an offset of the address.
    let base = half * comptime!(plan.term_pitch() as u32) + lane_part(work.lane.lane, d.row);
    #[unroll]
    for i in from..to {
        let (tile, element) = comptime!((i / d.elements, i % d.elements));
        let row = comptime!((tile * plan.instruction.m + d.row.offset(element)) as u32);
        biases.terms[i] = terms.staged.index(0)[(base + row) as usize];
    }
}

/// What is added to score number `i`, of `query` and `key`, to base 2.
#[cube]
pub(super) fn bias_of<E: Numeric, WK: Size, WV: Size>(
    inputs: &Inputs<'_, E, WK, WV>,
    biases: &Biases,
    work: &Work,
    query: u32,
    key: u32,
    geometry: &Geometry,
    #[comptime] i: usize,
    #[comptime] plan: Plan,
) -> f32 {
    let mut sum = f32::new(0.0);
    if comptime!(plan.reads_ahead()) {
        if comptime!(plan.stages_terms()) {
            sum = biases.terms[i];
        }
        let reads = comptime!(plan.reads(0));
        if comptime!(reads.is_some()) {
            let value = read_bias::<E>(&biases.first, i, comptime!(reads.unwrap()));
            sum = fma(value, f32::new(LOG2_E), sum);
        }
        let reads = comptime!(plan.reads(1));
        if comptime!(reads.is_some()) {
            let value = read_bias::<E>(&biases.second, i, comptime!(reads.unwrap()));
            sum = fma(value, f32::new(LOG2_E), sum);
        }
        sum
    } else {
        // Beyond the sequence, of its last places: it is masked there.
        let query = min(query, work.sequence.queries - 1);
        let key = min(key, work.keys.last);
        if comptime!(plan.bias[0].is_some()) {
            sum += bias(inputs.bias1, work.bias1, query, key, &geometry.bias1);
        }
        if comptime!(plan.bias[1].is_some()) {
            sum += bias(inputs.bias2, work.bias2, query, key, &geometry.bias2);
        }
        sum * LOG2_E
    }
}
