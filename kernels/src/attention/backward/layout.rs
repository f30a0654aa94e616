//! Where rows of a tile lie, so that the elements which a lane holds of D are neighbours.
//!
//! D hands out its rows to the groups of lanes in runs. Which row of the tile stands at which row of D is ours to choose: a
//! lane of group `g` shall hold the tile's rows `g * n ..`, `n` being its number of rows. Row-wise terms, biases
//! and results are then read and written in vectors.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use super::plan::{BLOCK, Plan};
use crate::matrix::instruction::{Instruction, Unit};
use crate::matrix::lanes::lane_part;
use crate::matrix::narrow::narrow;
use crate::matrix::vector::from_elements;

impl Plan {
    /// Rows of a tile: those of D, or of as many D as a fragment of B takes rows.
    pub(super) fn tile_rows(&self) -> usize {
        tile_rows(self.instruction)
    }

    /// D of a tile.
    pub(super) fn tile_parts(&self) -> usize {
        self.tile_rows() / self.instruction.m
    }

    /// Elements of a tile that a lane holds, those of one D after the other.
    pub(super) fn tile_elements(&self) -> usize {
        self.tile_parts() * self.instruction.d.elements
    }

    /// Columns that a lane has.
    pub(super) fn lane_columns(&self) -> usize {
        self.instruction.columns().len()
    }

    /// Rows of a tile that a lane has.
    pub(super) fn lane_rows(&self) -> usize {
        lane_rows(self.instruction)
    }

    /// Which of the lane's rows and columns element `element` of a tile belongs to.
    pub(super) fn place_of(&self, element: usize) -> (usize, usize) {
        let d = self.instruction.d;
        let (part, e) = (element / d.elements, element % d.elements);
        let rows = self.lane_rows() / self.tile_parts();
        let row = part * rows + d.row.number(d.elements, e);
        (row, self.instruction.column_of(e))
    }

    /// The element of a tile at the lane's row `row` and column `column`: which D, and which element of it.
    pub(super) fn element_at(&self, row: usize, column: usize) -> (usize, usize) {
        let all = 0..self.tile_elements();
        let found = all.into_iter().find(|&e| self.place_of(e) == (row, column));
        let (element, count) = (found.unwrap_or(0), self.instruction.d.elements);
        (element / count, element % count)
    }
}

fn tile_rows(instruction: Instruction) -> usize {
    instruction.m.max(instruction.k)
}

/// Rows of a tile that a lane has, one after the other.
pub(super) fn lane_rows(instruction: Instruction) -> usize {
    tile_rows(instruction) / instruction.d.row.modulo
}

/// The row of D at which `row` of the staged rows stands, with that of its tile.
#[cube]
pub(super) fn place(row: u32, #[comptime] instruction: Instruction) -> u32 {
    let groups = comptime!(instruction.d.row.modulo as u32);
    let (m, n) = comptime!((tile_rows(instruction) as u32, lane_rows(instruction) as u32));
    let run = comptime!(instruction.run() as u32);
    if comptime!(groups == 1 || run == n) {
        row
    } else {
        let (group, element) = (row % m / n, row % n);
        row / m * m + element / run * comptime!(run * groups) + group * run + element % run
    }
}

/// [`place`] of the row `offset` behind `row`, a multiple of [`BLOCK`].
#[cube]
pub(super) fn place_behind(
    row: u32,
    #[comptime] offset: usize,
    #[comptime] instruction: Instruction,
) -> u32 {
    if comptime!(instruction.run() % BLOCK == 0) {
        place(row, instruction) + comptime!(offset as u32)
    } else {
        place(row + comptime!(offset as u32), instruction)
    }
}

/// How far the row `offset` behind a multiple of [`BLOCK`] stands behind that one's [`place`], where a lane has whole blocks.
pub(super) fn behind(offset: usize, instruction: Instruction) -> u32 {
    let (run, groups) = (instruction.run() as u32, instruction.d.row.modulo as u32);
    let offset = offset as u32;
    offset / run * (run * groups) + offset % run
}

/// The row of the tile that stands at row `at` of D.
#[cube]
pub(super) fn unplace(at: u32, #[comptime] instruction: Instruction) -> u32 {
    let groups = comptime!(instruction.d.row.modulo as u32);
    let n = comptime!(lane_rows(instruction) as u32);
    let run = comptime!(instruction.run() as u32);
    if comptime!(groups == 1 || run == n) {
        at
    } else {
        at / run % groups * n + at / comptime!(run * groups) * run + at % run
    }
}

/// Where one lane stands in the fragments.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Lane {
    /// Its row of A.
    pub(super) row: u32,
    /// Its part of A's columns.
    pub(super) part: u32,
    /// Its first column of B and D.
    pub(super) column: u32,
    /// The tile's first row that it holds of D.
    pub(super) first: u32,
    /// Row of D of its element 0.
    pub(super) d_row: u32,
    /// The tile's row that stands at its row of A.
    pub(super) unplaced: u32,
}

#[cube]
impl Lane {
    /// Of this unit.
    pub(super) fn new(#[comptime] instruction: Instruction) -> Lane {
        let lane = UNIT_POS % comptime!(instruction.lanes as u32);
        let inner = comptime!(instruction.a.column.scale.max(1) as u32);
        let d_row = lane_part(lane, instruction.d.row);
        let (scale, n) = comptime!((
            instruction.d.row.scale.max(1) as u32,
            lane_rows(instruction) as u32
        ));
        let row = lane_part(lane, instruction.a.row);
        Lane {
            row,
            part: lane_part(lane, instruction.a.column) / inner,
            column: lane_part(lane, instruction.b.column),
            first: d_row / scale * n,
            d_row,
            unplaced: unplace(row, instruction),
        }
    }

    /// The lane as it stands in the tile that begins `rows` behind this one, where rows stand in their own order.
    pub(super) fn behind(&self, rows: u32) -> Lane {
        Lane {
            row: self.row + rows,
            part: self.part,
            column: self.column,
            first: self.first + rows,
            d_row: self.d_row + rows,
            unplaced: self.unplaced,
        }
    }
}

/// What is left in D, as the fragments of B whose rows are the tile's rows in the order of a lane's own. `P` is half of `NB`.
#[cube]
pub(super) fn feed<E: Numeric, NB: Size, P: Size>(
    values: &Array<f32>,
    #[comptime] plan: Plan,
) -> Array<Vector<E, NB>> {
    let (instruction, target) = comptime!((plan.instruction, plan.target));
    let steps = comptime!(plan.tile_rows() / instruction.k);
    let nb = comptime!(instruction.b.elements);
    let mut fragments = Array::<Vector<E, NB>>::new(steps);
    if comptime!(matches!(instruction.unit, Unit::Wmma { .. })) {
        // Each half of the wave holds half of a column; B wants all of it in both.
        let low = UNIT_POS % 32 < 16;
        let half = comptime!(nb / 2);
        let mut whole = Array::<f32>::new(nb);
        #[unroll]
        for e in 0..half {
            let other = plane_shuffle_xor(values[e], 16);
            whole[e] = select(low, values[e], other);
            whole[comptime!(e + half)] = select(low, other, values[e]);
        }
        let mut elements = Sequence::<E>::new();
        #[unroll]
        for quad in 0..comptime!(nb / 4) {
            let quad =
                narrow::<E, Const<4>, Const<2>>(&whole, comptime!(4 * quad), plan.element, target);
            #[unroll]
            for e in 0..4usize {
                elements.push(quad.extract(e));
            }
        }
        fragments[0] = from_elements(&elements);
    } else {
        #[unroll]
        for step in 0..steps {
            fragments[step] = if comptime!(!plan.narrows()) {
                Vector::<E, NB>::cast_from(values[step])
            } else {
                narrow::<E, NB, P>(values, comptime!(step * nb), plan.element, target)
            };
        }
    }
    fragments
}
