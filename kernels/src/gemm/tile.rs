//! The shape of a workgroup's work: what each wave, lane and unit takes of a tile.

use crate::matrix::instruction::Instruction;
use crate::matrix::map::{Axis, Map};

/// How a workgroup's tile of C is divided. All numbers are powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tiling {
    /// Waves along the rows and the columns of C.
    pub waves: (usize, usize),
    /// Instructions' tiles of a wave along the rows and the columns of C.
    pub tiles: (usize, usize),
    /// Extent of K that lies in shared memory.
    pub depth: usize,
}

/// Which dimension of C an operand brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// A: rows of C.
    Rows,
    /// B: columns of C.
    Columns,
}

impl Role {
    /// Where the operand's elements lie.
    const fn map(self, instruction: &Instruction) -> Map {
        match self {
            Self::Rows => instruction.a,
            Self::Columns => instruction.b,
        }
    }

    /// The operand's axis along C.
    pub const fn outer(self, instruction: &Instruction) -> Axis {
        match self {
            Self::Rows => instruction.a.row,
            Self::Columns => instruction.b.column,
        }
    }
}

/// One operand's tile, `[outer, depth]`, on its way from global memory to the matrix unit. "Outer" is a row of A or a column
/// of B; a chunk is what a lane reads at once, consecutive along K.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Operand {
    /// Rows or columns of the tile.
    pub outer: usize,
    /// Extent along K.
    pub depth: usize,
    /// Elements of a chunk.
    pub chunk: usize,
    /// Elements that an access of global memory takes.
    pub width: usize,
    /// Whether consecutive elements in global memory run along K (else along the outer dimension).
    pub along_k: bool,
    /// Units of the workgroup.
    pub units: usize,
    /// Where two sums belong to each element of C: columns of the tile in which the first half of each wave's belong to the
    /// matrix's first half, and the rest to the second.
    pub pair: Option<usize>,
}

/// Columns of the block that a unit transposes, where global memory runs along the outer dimension.
pub const BLOCK: usize = 4;

impl Operand {
    /// Chunks along K.
    pub const fn row(&self) -> usize {
        self.depth / self.chunk
    }

    /// Chunks of the tile.
    pub const fn chunks(&self) -> usize {
        self.outer * self.row()
    }

    /// Chunks that a unit writes at a time.
    pub const fn block(&self) -> usize {
        if self.along_k { 1 } else { BLOCK }
    }

    /// Blocks of chunks of the tile.
    pub const fn blocks(&self) -> usize {
        self.chunks() / self.block()
    }

    /// Blocks that a unit brings; where it is not a whole number, the last ones have none.
    pub const fn turns(&self) -> usize {
        self.blocks().div_ceil(self.units)
    }

    /// Accesses of global memory for a block.
    pub const fn accesses(&self) -> usize {
        self.block() * self.chunk / self.width
    }

    /// The permutation of a row's chunks, that rows 8 apart or 4 apart fall on different banks: the chunk's index is joined by
    /// exclusive or with this. It is linear: of `x + y` without carry it is the exclusive or of both.
    pub const fn swizzle(&self, outer: usize) -> usize {
        let (narrow, mask) = self.swizzle_parts();
        ((outer / narrow) ^ (outer / 8)) & mask
    }

    /// Rows that share a sweep over the banks, and the mask of the permutation.
    pub const fn swizzle_parts(&self) -> (usize, usize) {
        let row = self.row();
        if row >= 8 { (1, 7) } else { (8 / row, row - 1) }
    }
}

/// How a lane's chunks become an operand's fragments.
///
/// The order in which K is summed is free as long as A and B agree, so a lane group reads consecutive elements, and the
/// instruction's k-index `j` of step `s` is element `s * along_k + j` of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fragment {
    /// Distance to the lane's first row (or column) of each that it has.
    pub outers: Vec<usize>,
    /// For each element of the fragment: which of `outers`, and which of its elements along K.
    pub elements: Vec<(usize, usize)>,
    /// Elements along K that a lane has of each.
    pub along_k: usize,
    /// Chunks that a lane reads at once of each.
    pub chunks: usize,
    /// Instructions that they serve.
    pub steps: usize,
    /// Extent of K that they serve.
    pub depth: usize,
    /// Lanes that share a place along K, and the number of such groups.
    pub groups: (usize, usize),
}

impl Fragment {
    /// The fragment of `instruction` in the role of A or B, from chunks of `chunk` elements.
    pub fn of(instruction: &Instruction, role: Role, chunk: usize) -> Self {
        let (map, outer) = (role.map(instruction), role.outer(instruction));
        let inner = match role {
            Role::Rows => map.column,
            Role::Columns => map.row,
        };
        let count = map.elements;
        let along_k = inner.distinct(count).len();
        let chunks = along_k.div_ceil(chunk);
        Self {
            elements: (0..count)
                .map(|e| (outer.number(count, e), inner.number(count, e)))
                .collect(),
            outers: outer.distinct(count),
            along_k,
            chunks,
            steps: chunk * chunks / along_k,
            depth: chunk * chunks * inner.modulo,
            groups: (inner.divide, inner.modulo),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The largest tile of a width.
    fn operand(row: usize) -> Operand {
        let (outer, chunk) = (128, 8);
        Operand {
            outer,
            depth: row * chunk,
            chunk,
            width: chunk,
            along_k: true,
            units: 256,
            pair: None,
        }
    }

    #[test]
    fn the_permutation_is_linear_as_readers_assume() {
        for row in [2, 4, 8, 16] {
            let operand = operand(row);
            for (low, high) in (0..16).flat_map(|low| (0..8).map(move |i| (low, 16 * i))) {
                let both = operand.swizzle(low) ^ operand.swizzle(high);
                assert_eq!(operand.swizzle(low + high), both);
            }
        }
    }

    #[test]
    fn eight_lanes_reach_all_banks_reading_rows_and_writing_blocks() {
        let operand = operand(8);
        // The eight groups of four banks: a chunk has 16 bytes, a row 128.
        let groups = |rows: &mut dyn Iterator<Item = usize>| {
            rows.map(|row| 5 ^ operand.swizzle(row))
                .collect::<BTreeSet<_>>()
                .len()
        };
        for first in (0..128).step_by(8) {
            assert_eq!(groups(&mut (first..first + 8)), 8);
        }
        for (first, j) in (0..128)
            .step_by(32)
            .flat_map(|first| (0..BLOCK).map(move |j| (first, j)))
        {
            assert_eq!(groups(&mut (0..8).map(|lane| first + BLOCK * lane + j)), 8);
        }
    }
}
