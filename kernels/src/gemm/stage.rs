//! An operand's way from global memory through registers into shared memory.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use super::tile::{BLOCK, Operand};
use crate::matrix::instruction::Target;
use crate::matrix::load::load;
use crate::matrix::vector::from_elements;

/// Where an operand's matrix lies, in vectors of the operand's width (`start`, `stride`) and in elements (the rest).
#[derive(CubeType)]
pub struct Matrix {
    /// The matrix's first vector.
    pub start: u32,
    /// Distance of neighbouring rows in memory.
    pub stride: u32,
    /// Extent along the rows or columns of C; of a matrix with two halves, of one.
    pub outer: u32,
    /// Extent along K.
    pub inner: u32,
}

/// The vector at which the tile begins that begins at row or column `first` of C and at `k`.
#[cube]
pub fn corner(matrix: &Matrix, first: u32, k: u32, #[comptime] operand: Operand) -> u32 {
    let width = comptime!(operand.width as u32);
    if comptime!(operand.along_k) {
        matrix.start + first * matrix.stride + k / width
    } else {
        matrix.start + k * matrix.stride + first / width
    }
}

/// For each access of this unit, the distance of its vector to the tile's corner. Accesses beyond the outer edge are drawn back
/// to the edge: what they bring belongs to elements of C that nobody writes.
#[cube]
pub fn distances(matrix: &Matrix, first: u32, #[comptime] operand: Operand) -> Array<u32> {
    let accesses = comptime!(operand.accesses());
    let width = comptime!(operand.width as u32);
    let mut distances = Array::<u32>::new(comptime!(operand.turns() * accesses));
    #[unroll]
    for turn in 0..comptime!(operand.turns()) {
        let (outer, inner) = block(turn, operand);
        let (outer, half) = halve(outer, operand);
        #[unroll]
        for i in 0..accesses {
            let (across, along) = comptime!(access(i, operand));
            distances[comptime!(turn * accesses + i)] = if comptime!(operand.along_k) {
                let row = min(outer, matrix.outer - 1 - first) + half * matrix.outer;
                row * matrix.stride + (inner + along) / width
            } else {
                let column =
                    min(outer + across, matrix.outer - width - first) + half * matrix.outer;
                (inner + along) * matrix.stride + column / width
            };
        }
    }
    distances
}

/// The place of a tile's row or column in a matrix of two halves: where in a half, and in which (0 or 1).
#[cube]
fn halve(outer: u32, #[comptime] operand: Operand) -> (u32, u32) {
    if comptime!(operand.pair.is_some()) {
        let pair = comptime!(operand.pair.unwrap_or(2) as u32);
        let inside = outer % pair;
        let half = comptime!(pair / 2);
        (outer / pair * half + inside % half, inside / half)
    } else {
        (outer, 0u32.into())
    }
}

/// This unit's block in a turn: its first row or column of the tile, and its first place along K.
#[cube]
fn block(#[comptime] turn: usize, #[comptime] operand: Operand) -> (u32, u32) {
    // Units without a block of their own read one of another's.
    let id =
        (UNIT_POS + comptime!((turn * operand.units) as u32)) % comptime!(operand.blocks() as u32);
    let chunk = comptime!(operand.chunk as u32);
    if comptime!(operand.along_k) {
        let row = comptime!(operand.row() as u32);
        (id / row, id % row * chunk)
    } else {
        let across = comptime!((operand.outer / BLOCK) as u32);
        (id % across * comptime!(BLOCK as u32), id / across * chunk)
    }
}

/// Where access `i` of a block lies in it: along the outer dimension and along K.
fn access(i: usize, operand: Operand) -> (u32, u32) {
    let (across, along) = if operand.along_k {
        (0, i * operand.width)
    } else {
        let row = BLOCK / operand.width;
        (i % row * operand.width, i / row)
    };
    (across as u32, along as u32)
}

/// Whether this unit has a block in a turn.
#[cube]
fn takes_part(#[comptime] turn: usize, #[comptime] operand: Operand) -> bool {
    if comptime!((turn + 1) * operand.units <= operand.blocks()) {
        true.into()
    } else {
        UNIT_POS < comptime!((operand.blocks() - turn * operand.units) as u32)
    }
}

/// Reads the tile at `corner`, all of which lies within the matrix along K, into registers.
#[cube]
pub fn fetch<E: Numeric, W: Size>(
    memory: &[Vector<E, W>],
    corner: u32,
    distances: &Array<u32>,
    fetched: &mut Array<Vector<E, W>>,
    #[comptime] operand: Operand,
    #[comptime] target: Target,
) {
    #[unroll]
    for i in 0..comptime!(operand.turns() * operand.accesses()) {
        fetched[i] = load(memory, corner, distances[i], target);
    }
}

/// As [`fetch`], but what lies `extent` or more behind the corner along K is zero.
#[cube]
pub fn fetch_edge<E: Numeric, W: Size>(
    memory: &[Vector<E, W>],
    corner: u32,
    distances: &Array<u32>,
    fetched: &mut Array<Vector<E, W>>,
    extent: u32,
    #[comptime] operand: Operand,
) {
    let accesses = comptime!(operand.accesses());
    #[unroll]
    for turn in 0..comptime!(operand.turns()) {
        let (_, inner) = block(turn, operand);
        #[unroll]
        for i in 0..accesses {
            let at = comptime!(turn * accesses + i);
            let within = inner + comptime!(access(i, operand).1) < extent;
            fetched[at] = read_within(memory, corner + distances[at], within);
        }
    }
}

/// The vector at `index` if it lies within the matrix, else zero. A branch around the load would send the vector through
/// scratch memory, so a load from the front takes its place.
#[cube]
fn read_within<E: Numeric, W: Size>(
    memory: &[Vector<E, W>],
    index: u32,
    within: bool,
) -> Vector<E, W> {
    let vector = memory[select(within, index, 0) as usize];
    let mut kept = Sequence::<E>::new();
    #[unroll]
    for e in 0..vector.vector_size() {
        kept.push(select(within, vector.extract(e), E::from_int(0)));
    }
    from_elements::<E, W>(&kept)
}

/// Writes what [`fetch`] read into the shared tile, `[outer][chunk along K]`, the chunks of a row permuted.
#[cube]
pub fn place<E: Numeric, W: Size, V: Size>(
    fetched: &Array<Vector<E, W>>,
    tile: &mut Shared<[Vector<E, V>]>,
    #[comptime] operand: Operand,
) {
    let row = comptime!(operand.row() as u32);
    #[unroll]
    for turn in 0..comptime!(operand.turns()) {
        let (outer, inner) = block(turn, operand);
        let chunk = inner / comptime!(operand.chunk as u32);
        if takes_part(turn, operand) {
            #[unroll]
            for j in 0..comptime!(operand.block()) {
                let outer = outer + comptime!(j as u32);
                let place = outer * row + (chunk ^ swizzle(outer, operand));
                tile[place as usize] = gather::<E, W, V>(fetched, turn, j, operand);
            }
        }
    }
}

/// Chunk `j` of a block, from the vectors that were read.
#[cube]
fn gather<E: Numeric, W: Size, V: Size>(
    fetched: &Array<Vector<E, W>>,
    #[comptime] turn: usize,
    #[comptime] j: usize,
    #[comptime] operand: Operand,
) -> Vector<E, V> {
    let Operand { chunk, width, .. } = comptime!(operand);
    let first = comptime!(turn * operand.accesses());
    let mut elements = Sequence::<E>::new();
    #[unroll]
    for e in 0..chunk {
        // The element's number in the block, as the accesses run through it.
        let number = comptime!(if operand.along_k { e } else { e * BLOCK + j });
        let from = fetched[comptime!(first + number / width)];
        elements.push(from.extract(comptime!(number % width)));
    }
    from_elements::<E, V>(&elements)
}

/// Adds to each of this unit's rows or columns what [`fetch`] read of it. [`write_sums`] writes the sums.
#[cube]
pub fn add_elements<E: Numeric, W: Size>(
    fetched: &Array<Vector<E, W>>,
    sums: &mut Array<f32>,
    #[comptime] operand: Operand,
) {
    let Operand { chunk, width, .. } = comptime!(operand);
    #[unroll]
    for turn in 0..comptime!(operand.turns()) {
        #[unroll]
        for e in 0..comptime!(chunk * BLOCK) {
            let from = fetched[comptime!(turn * operand.accesses() + e / width)];
            let at = comptime!(turn * BLOCK + e % BLOCK);
            sums[at] += f32::cast_from(from.extract(comptime!(e % width)));
        }
    }
}

/// Writes this unit's sums of rows or columns to `to`, `[parts, row(), outer]`: those of rows `first..` of part `part`.
#[cube]
pub fn write_sums(
    sums: &Array<f32>,
    to: &mut [f32],
    part: u32,
    first: u32,
    outer: u32,
    #[comptime] operand: Operand,
) {
    #[unroll]
    for turn in 0..comptime!(operand.turns()) {
        let (row, inner) = block(turn, operand);
        let line = part * comptime!(operand.row() as u32) + inner / comptime!(operand.chunk as u32);
        #[unroll]
        for j in 0..BLOCK {
            let row = first + row + comptime!(j as u32);
            if row < outer && takes_part(turn, operand) {
                to[(line * outer + row) as usize] = sums[comptime!(turn * BLOCK + j)];
            }
        }
    }
}

/// [`Operand::swizzle`] of a row or column.
#[cube]
pub fn swizzle(outer: u32, #[comptime] operand: Operand) -> u32 {
    let (narrow, mask) = comptime!(operand.swizzle_parts());
    ((outer / comptime!(narrow as u32)) ^ (outer / 8)) & comptime!(mask as u32)
}
