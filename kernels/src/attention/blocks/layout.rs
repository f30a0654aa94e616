//! How the work is divided.

use crate::gemm;
use crate::gemm::tile::Tiling;
use crate::gemm::{Epilogue, Layout};
use crate::matrix::instruction::{Instruction, Target, Unit};

/// Elements of a vector of shared memory, and of a lane's run of rows.
pub(super) const QUAD: usize = 4;

/// How a workgroup's owned rows and the blocks of streamed rows are divided among its lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Blocks {
    /// The products of the owned rows, as rows, with those of a block, as columns.
    pub scores: gemm::Plan,
    /// Elements of a row.
    pub head_dim: usize,
}

impl Blocks {
    /// Whether an instruction is multiplied with in blocks: the one whose lanes share both operands, a step at a time.
    pub const fn take(instruction: &Instruction) -> bool {
        matches!(instruction.unit, Unit::Fma) && instruction.m > QUAD && instruction.k == 1
    }

    /// The blocks for rows of `head_dim` elements, read `width` at a time.
    pub fn new(target: Target, instruction: Instruction, width: usize, head_dim: usize) -> Self {
        // Sums of 64 elements a lane, and blocks of 2048 pairs: more would not fit in 16 KiB of shared memory.
        let (waves, tiles) = match head_dim {
            0..=64 => ((2, 1), (2, 4)),
            65..=128 => ((1, 2), (2, 4)),
            _ => ((2, 2), (1, 4)),
        };
        let scores = gemm::Plan {
            target,
            instruction,
            element: instruction.operand,
            output: instruction.operand,
            layout: Layout::Nt,
            tiling: Tiling {
                waves,
                tiles,
                depth: 16,
            },
            width: (width, width),
            epilogue: Epilogue::default(),
            sums_of: None,
            split: false,
        };
        Self { scores, head_dim }
    }

    /// Waves of a workgroup.
    pub const fn waves(&self) -> usize {
        let (rows, columns) = self.scores.tiling.waves;
        rows * columns
    }

    /// Owned rows of a workgroup.
    pub const fn owned(&self) -> usize {
        self.scores.workgroup_tile().0
    }

    /// Streamed rows of a block.
    pub const fn streamed(&self) -> usize {
        self.scores.workgroup_tile().1
    }

    /// Runs of four owned rows that a lane has, and streamed rows for each.
    pub const fn runs(&self) -> (usize, usize) {
        self.scores.tiling.tiles
    }

    /// Vectors from one streamed row's values to the next in shared memory: odd, so that lanes write to different banks.
    pub(super) const fn pitch(&self) -> usize {
        self.owned() / QUAD + 1
    }

    /// Vectors of values of a block.
    pub(super) const fn values(&self) -> usize {
        self.streamed() * self.pitch()
    }

    /// Lanes that share a row of sums.
    pub(super) const fn sharing(&self) -> usize {
        self.scores.tiling.waves.1 * self.scores.instruction.n
    }

    /// Vectors of a row of sums that a lane has.
    pub(crate) const fn parts(&self) -> usize {
        self.head_dim.div_ceil(QUAD).div_ceil(self.sharing())
    }

    /// Shared memory, bytes.
    pub const fn shared_memory(&self) -> usize {
        self.scores.shared_memory() + self.values() * QUAD * size_of::<f32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::instruction::{Element, INSTRUCTIONS};

    #[test]
    fn shared_memory_and_registers_suffice_for_every_head_dimension() {
        let target = Target::Portable;
        let f32s = INSTRUCTIONS.iter().filter(|i| i.operand == Element::F32);
        let instruction = f32s.copied().find(Blocks::take).unwrap();
        for head_dim in 1..=256 {
            let blocks = Blocks::new(target, instruction, 1, head_dim);
            let shared = blocks.shared_memory();
            assert!(shared <= target.shared_memory(), "{head_dim}: {shared}");
            let sums = blocks.runs().0 * QUAD * blocks.parts() * QUAD;
            assert!(sums <= 64, "{head_dim}: {sums}");
        }
    }
}
