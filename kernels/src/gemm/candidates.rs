//! Other plans that compute the same bits.

use super::plan::Plan;
use super::problem::Shape;
use super::tile::Tiling;
use crate::matrix::instruction::{Target, Unit};

/// Waves, and tiles of each, along the rows and the columns of C.
type Division = ((usize, usize), (usize, usize));

impl Plan {
    /// This plan, and others that differ from it only in how C is divided among waves and workgroups, at most six in all.
    ///
    /// Each gives the same bits: an element of C is one accumulator's, which adds the same products in the same order,
    /// whatever tile it belongs to. What decides that order stays: the instruction, the depth of a tile of K (the last tile
    /// comes first) and with it where K is split.
    pub fn candidates(&self, shape: &Shape) -> Vec<Self> {
        let mut all = vec![*self];
        for &(waves, tiles) in self.divisions() {
            let tiling = Tiling {
                waves,
                tiles,
                ..self.tiling
            };
            let plan = Self { tiling, ..*self };
            if !all.contains(&plan) && plan.check().is_ok() && !plan.idles(shape) {
                all.push(plan);
            }
        }
        all
    }

    /// Whether half of a workgroup has nothing to do.
    fn idles(&self, shape: &Shape) -> bool {
        let (rows, columns) = self.result_tile();
        rows / 2 >= shape.m || columns / 2 >= shape.n
    }

    /// How the target's units may share C without spilling registers.
    fn divisions(&self) -> &'static [Division] {
        match self.instruction.unit {
            Unit::Fma if self.target == Target::Cuda => &[
                ((8, 1), (2, 2)),
                ((4, 1), (4, 2)),
                ((4, 1), (4, 4)),
                ((8, 1), (4, 2)),
            ],
            Unit::Mfma { .. } => &[
                ((2, 2), (1, 1)),
                ((2, 2), (2, 1)),
                ((2, 2), (1, 2)),
                ((2, 2), (2, 2)),
                ((4, 2), (2, 2)),
                ((2, 4), (2, 2)),
            ],
            Unit::Wmma { .. } => &[
                ((2, 2), (1, 2)),
                ((2, 2), (2, 2)),
                ((4, 2), (2, 2)),
                ((2, 4), (2, 2)),
                ((4, 4), (2, 2)),
            ],
            Unit::Mma => &[
                ((2, 2), (4, 2)),
                ((2, 2), (8, 2)),
                ((2, 2), (4, 4)),
                ((4, 2), (4, 4)),
            ],
            Unit::Fma if self.loops() => &[
                ((2, 1), (1, 4)),
                ((2, 1), (2, 4)),
                ((4, 1), (2, 4)),
                ((2, 1), (2, 8)),
                ((4, 1), (2, 8)),
                ((4, 2), (2, 8)),
            ],
            Unit::Fma => &[
                ((4, 1), (2, 2)),
                ((4, 1), (4, 2)),
                ((8, 1), (2, 2)),
                ((4, 1), (4, 4)),
                ((8, 1), (4, 2)),
            ],
        }
    }
}
