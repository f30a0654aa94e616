//! The biases of pairs, a tile ahead of the scores that they are added to.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use super::super::bias::{Access, Form, Reads, Stand, fetch, read_bias};
use super::super::problem::{BiasStrides, Geometry};
use super::super::score::{Sequence, bias_base};
use super::layout::Lane;
use super::plan::{BLOCK, Plan, Role};
use super::score::{Columns, Place, rows_are_queries};
use crate::matrix::instruction::Unit;
use crate::matrix::math::LOG2_E;

impl Plan {
    /// Bias `number`, if it is one of pairs and is read before its scores are there. Plain multiply-adds leave no time in
    /// which that would hide.
    fn pairs(&self, number: usize) -> Option<Access> {
        let access = self.bias[number].filter(|bias| bias.form == Form::Pairs);
        access.filter(|_| self.instruction.unit != Unit::Fma)
    }

    /// Whether biases of pairs are read ahead.
    pub(super) fn reads_ahead(&self) -> bool {
        (0..2).any(|i| self.pairs(i).is_some())
    }

    /// Whether a workgroup reads them once: they are those whose gradient it sums, the same for all that pass by.
    pub(super) fn keeps_pairs(&self) -> bool {
        let count = (0..2).filter(|&i| self.pairs(i).is_some()).count();
        self.role == Role::Pair && count == 1
    }

    /// Whether those of a tile are read while the tile before is computed: there are registers for both, where rows are short
    /// or tiles small; on RDNA3 not beside the sums of dK and dV.
    pub(super) fn carries_pairs(&self) -> bool {
        let rdna3 = matches!(self.instruction.unit, Unit::Wmma { .. });
        let short = self.role == Role::Query || self.variant.head_dim <= 32 && !rdna3;
        self.reads_ahead() && !self.keeps_pairs() && (short || self.tile_elements() <= BLOCK)
    }

    /// How a lane reads bias `number` of a tile.
    fn reads(&self, number: usize) -> Option<Reads> {
        let places = (0..self.tile_elements()).map(|e| self.place_of(e));
        Some(Reads {
            places: places.collect(),
            access: self.pairs(number)?,
            element: self.element,
        })
    }

    fn pair_words(&self, number: usize) -> usize {
        self.reads(number).map_or(1, |reads| reads.words())
    }

    fn kept_pairs(&self) -> usize {
        match self.keeps_pairs() {
            true => self.row_tiles * self.tile_elements(),
            false => 1,
        }
    }
}

/// What a lane holds of the biases of pairs.
#[derive(CubeType)]
pub(super) struct Pairs {
    /// Those of the first bias for the next tile, as they lie in memory.
    first: Array<u32>,
    /// Those of the second bias.
    second: Array<u32>,
    /// All that the workgroup needs, to base 2, where it keeps them.
    kept: Array<f32>,
}

#[cube]
impl Pairs {
    /// Room for them.
    pub(super) fn new(#[comptime] plan: Plan) -> Pairs {
        Pairs {
            first: Array::new(comptime!(plan.pair_words(0))),
            second: Array::new(comptime!(plan.pair_words(1))),
            kept: Array::new(comptime!(plan.kept_pairs())),
        }
    }

    /// Reads those of the tile that begins at row `first`. Beyond the sequence they are any of the bias.
    pub(super) fn fetch<E: Numeric>(
        &mut self,
        bias1: &[E],
        bias2: &[E],
        geometry: &Geometry,
        place: &Place,
        columns: &Columns,
        lane: &Lane,
        first: u32,
        #[comptime] plan: Plan,
    ) {
        let reads = comptime!(plan.reads(0));
        if comptime!(reads.is_some()) {
            let reads = comptime!(reads.unwrap());
            let (base, strides) = (place.bias1, &geometry.bias1);
            let access = comptime!(reads.access);
            let stand = stand(base, strides, geometry, place, columns, lane, access, plan);
            fetch(bias1, &stand, first, &mut self.first, true, reads);
        }
        let reads = comptime!(plan.reads(1));
        if comptime!(reads.is_some()) {
            let reads = comptime!(reads.unwrap());
            let (base, strides) = (place.bias2, &geometry.bias2);
            let access = comptime!(reads.access);
            let stand = stand(base, strides, geometry, place, columns, lane, access, plan);
            fetch(bias2, &stand, first, &mut self.second, true, reads);
        }
    }

    /// Reads all that the workgroup needs, whose first row is `first`.
    pub(super) fn keep<E: Numeric>(
        &mut self,
        bias1: &[E],
        bias2: &[E],
        geometry: &Geometry,
        place: &Place,
        columns: &Columns,
        lane: &Lane,
        first: u32,
        #[comptime] plan: Plan,
    ) {
        let n = comptime!(plan.tile_elements());
        #[unroll]
        for t in 0..comptime!(plan.row_tiles) {
            let first = first + comptime!((t * plan.tile_rows()) as u32);
            self.fetch(bias1, bias2, geometry, place, columns, lane, first, plan);
            #[unroll]
            for e in 0..n {
                let bias = self.add::<E>(f32::new(0.0), e, plan);
                self.kept[comptime!(t * n + e)] = bias;
            }
        }
    }

    /// `exponent` and the biases of element `e` of the tile that was fetched.
    fn add<E: Numeric>(&self, exponent: f32, #[comptime] e: usize, #[comptime] plan: Plan) -> f32 {
        let mut sum = exponent;
        let reads = comptime!(plan.reads(0));
        if comptime!(reads.is_some()) {
            let bias = read_bias::<E>(&self.first, e, comptime!(reads.unwrap()));
            sum = fma(bias, f32::new(LOG2_E), sum);
        }
        let reads = comptime!(plan.reads(1));
        if comptime!(reads.is_some()) {
            let bias = read_bias::<E>(&self.second, e, comptime!(reads.unwrap()));
            sum = fma(bias, f32::new(LOG2_E), sum);
        }
        sum
    }

    /// `exponent` and the biases of element `e` of tile `t`, which was fetched last, or kept.
    pub(super) fn add_to<E: Numeric>(
        &self,
        exponent: f32,
        #[comptime] t: usize,
        #[comptime] e: usize,
        #[comptime] plan: Plan,
    ) -> f32 {
        if comptime!(plan.keeps_pairs()) {
            exponent + self.kept[comptime!(t * plan.tile_elements() + e)]
        } else {
            self.add::<E>(exponent, e, plan)
        }
    }
}

/// Where a lane stands in the bias of pairs that begins at `base`.
#[cube]
fn stand(
    base: u32,
    strides: &BiasStrides,
    geometry: &Geometry,
    place: &Place,
    columns: &Columns,
    lane: &Lane,
    #[comptime] access: Access,
    #[comptime] plan: Plan,
) -> Stand {
    let sequence = &place.sequence;
    let mut begin = cubecl::prelude::Sequence::<u32>::new();
    #[unroll]
    for c in 0..comptime!(plan.lane_columns()) {
        let position = columns.index(c).position;
        begin.push(if comptime!(rows_are_queries(plan)) {
            min(position, sequence.keys - 1) * strides.key
        } else {
            min(position, sequence.queries - 1) * strides.query
        });
    }
    let along = if comptime!(rows_are_queries(plan)) {
        strides.query
    } else {
        strides.key
    };
    // Reads of several rows are aligned to the rows of the bias, not to those of a packed sequence.
    let rows = match comptime!((rows_are_queries(plan), access.width > 1)) {
        (true, false) => sequence.queries,
        (true, true) => geometry.queries,
        (false, false) => sequence.keys,
        (false, true) => geometry.keys,
    };
    Stand {
        base,
        along,
        rows,
        row: lane.first,
        columns: begin,
    }
}

/// The place of `head` of batch entry `batch` for a bias alone: as many queries and keys as the bias has.
#[cube]
pub(super) fn place_of_bias(batch: u32, head: u32, geometry: &Geometry) -> Place {
    Place {
        sequence: Sequence {
            batch,
            first_query: 0u32.runtime(),
            queries: geometry.queries,
            first_key: 0u32.runtime(),
            keys: geometry.keys,
        },
        head,
        bias1: bias_base(batch, head, &geometry.bias1),
        bias2: bias_base(batch, head, &geometry.bias2),
        site_low: 0u32.runtime(),
        site_high: 0u32.runtime(),
    }
}
