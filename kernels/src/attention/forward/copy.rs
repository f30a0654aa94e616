//! The copying of tiles of K and V: from memory into registers, and from there to shared memory.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use super::tile::{Layout, Quad, place};
use crate::attention::plan::{Plan, QUAD};
use crate::matrix::instruction::Target;
use crate::matrix::load::load;
use crate::matrix::vector::from_elements;

/// Rows of one head of a tensor.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Rows {
    /// Vector where row 0 begins.
    pub base: u32,
    /// Vectors from row to row.
    pub stride: u32,
    /// The last row: what lies beyond is never read.
    pub last: u32,
}

/// How the units of a workgroup share the copying of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Copy {
    /// Elements of an access to memory.
    pub width: usize,
    /// Rows of the tensor that a unit takes at a time: 4 if the tile is transposed, else 1.
    pub rows: usize,
    /// Whether the 4 rows are two pairs, 8 apart, as NVIDIA's lane groups have them in D.
    pub in_pairs: bool,
    /// Elements of a row that a unit takes at a time.
    pub piece: usize,
    /// Pieces of a row.
    pub pieces: usize,
    /// Items, each `rows` by `piece`.
    pub items: usize,
    /// Units of the workgroup.
    pub units: usize,
    /// Elements of a row of the tensor.
    pub head_dim: usize,
    /// Bytes of an element.
    pub bytes: usize,
    /// Whether an element takes a word of its own while it waits in a register: WGSL does not take 16-bit elements in pairs.
    pub apart: bool,
}

impl Copy {
    /// Items of a unit.
    pub fn turns(&self) -> usize {
        self.items.div_ceil(self.units)
    }

    /// Accesses of a unit.
    pub fn accesses(&self) -> usize {
        self.turns() * self.rows * self.piece / self.width
    }

    /// Turn, row of the item and part of the piece of access `index`.
    fn access(&self, index: usize) -> (usize, usize, usize) {
        let parts = self.piece / self.width;
        (
            index / parts / self.rows,
            index / parts % self.rows,
            index % parts,
        )
    }

    /// How far row `row` of an item lies behind its first.
    fn row(&self, row: usize) -> usize {
        match self.in_pairs {
            true => row / 2 * 8 + row % 2,
            false => row,
        }
    }

    /// 32-bit words of an access.
    pub fn words(&self) -> usize {
        match self.apart {
            true => self.width,
            false => (self.width * self.bytes / 4).max(1),
        }
    }

    /// Whether the last turn has an item for each unit.
    fn even(&self) -> bool {
        self.items % self.units == 0
    }

    /// Elements of a row with the padding, as the tile has them.
    pub fn length(&self) -> usize {
        self.pieces * self.piece
    }

    /// Whether some pieces lie beyond the row.
    fn padded(&self) -> bool {
        self.pieces * self.piece > self.head_dim
    }
}

impl Plan {
    /// How K is copied.
    pub(crate) fn key_copy(&self) -> Copy {
        self.copy(self.keys_along_rows(), self.depth())
    }

    /// How V is copied.
    pub(crate) fn value_copy(&self) -> Copy {
        let length = self.output_tiles() * self.instruction.m;
        self.copy(!self.along_rows(), length)
    }

    fn copy(&self, transposed: bool, length: usize) -> Copy {
        let (rows, least) = match transposed {
            true => (QUAD, 1),
            false => (1, QUAD),
        };
        let mut width = self.width;
        // Narrower accesses where else some units have nothing to do.
        while width > least && self.keys / rows * (length / width) < self.units() {
            width /= 2;
        }
        let piece = width.max(least);
        // As many for each unit: the power of two divides, and what lies beyond the row is copied for nothing. In f32 that is too
        // much shared memory.
        let pieces = match self.spreads() {
            true => length / piece,
            false => (length / piece).next_power_of_two(),
        };
        Copy {
            width,
            rows,
            in_pairs: transposed && self.in_pairs(),
            piece,
            pieces,
            items: self.keys / rows * pieces,
            units: self.units(),
            head_dim: self.variant.head_dim,
            bytes: self.element.bytes(),
            apart: self.along_rows() && self.element.bytes() < 4,
        }
    }
}

/// A number below 2^24, so that the compiler takes the fast multiplication.
#[cube]
fn short(number: u32) -> u32 {
    number & 0x00ff_ffff
}

/// Element where a piece's access begins, kept within the row.
#[cube]
fn within_row(element: u32, #[comptime] copy: Copy) -> u32 {
    if comptime!(copy.padded()) {
        min(element, comptime!((copy.head_dim - copy.width) as u32))
    } else {
        element
    }
}

/// An access as 32-bit words. As elements of 16 bits, what waits in registers would be taken apart and take twice as many.
#[cube]
fn words<E: Numeric, W: Size, S: Size>(
    vector: Vector<E, W>,
    #[comptime] copy: Copy,
) -> Vector<u32, S> {
    if comptime!(copy.apart) {
        Vector::<u32, S>::reinterpret(Vector::<f32, S>::cast_from(vector))
    } else if comptime!(copy.width * copy.bytes < 4) {
        Vector::<u32, S>::new(u32::reinterpret(f32::cast_from(vector.extract(0usize))))
    } else {
        Vector::<u32, S>::reinterpret(vector)
    }
}

/// The access that [`words`] took.
#[cube]
fn elements<E: Numeric, W: Size, S: Size>(
    words: Vector<u32, S>,
    #[comptime] copy: Copy,
) -> Vector<E, W> {
    if comptime!(copy.apart) {
        Vector::<E, W>::cast_from(Vector::<f32, S>::reinterpret(words))
    } else if comptime!(copy.width * copy.bytes < 4) {
        Vector::<E, W>::new(E::cast_from(f32::reinterpret(words.extract(0usize))))
    } else {
        Vector::<E, W>::reinterpret(words)
    }
}

/// The first row of item `number` of a column of pieces.
#[cube]
fn first_row(number: u32, #[comptime] copy: Copy) -> u32 {
    if comptime!(copy.in_pairs) {
        number / 4 * 16 + number % 4 * 2
    } else {
        number * comptime!(copy.rows as u32)
    }
}

/// Finds some of this unit's accesses to the tile of keys that begins at row `first`, counted from row 0. Rows beyond the last
/// one repeat it.
#[cube]
pub(crate) fn locate(
    rows: &Rows,
    first: u32,
    places: &mut Array<u32>,
    #[comptime] accesses: (usize, usize),
    #[comptime] copy: Copy,
) {
    #[unroll]
    for i in comptime!(accesses.0)..comptime!(accesses.1) {
        let (turn, row, access) = comptime!(copy.access(i));
        let item = UNIT_POS + comptime!((turn * copy.units) as u32);
        let line = first + first_row(item / comptime!(copy.pieces as u32), copy);
        let row = comptime!(copy.row(row) as u32);
        let begin = short(min(line + row, rows.last)) * short(rows.stride);
        let piece = item % comptime!(copy.pieces as u32) * comptime!(copy.piece as u32);
        let element = within_row(piece + comptime!((access * copy.width) as u32), copy);
        places[i] = begin + element / comptime!(copy.width as u32);
    }
}

/// Reads what lies at these places.
#[cube]
pub(crate) fn fetch<E: Numeric, W: Size, S: Size>(
    tensor: &[Vector<E, W>],
    rows: &Rows,
    places: &Array<u32>,
    staged: &mut Array<Vector<u32, S>>,
    #[comptime] copy: Copy,
    #[comptime] target: Target,
) {
    #[unroll]
    for i in 0..comptime!(copy.accesses()) {
        staged[i] = words(load(tensor, rows.base, places[i], target), copy);
    }
}

/// Writes to the tile that begins at quad `base` what [`fetch`] read as item `turn`.
#[allow(clippy::if_same_then_else)] // One of them is decided at compile time.
#[cube]
pub(crate) fn store<E: Numeric, W: Size, S: Size>(
    tile: &mut Shared<[Quad<E>]>,
    base: u32,
    staged: &Array<Vector<u32, S>>,
    #[comptime] turn: usize,
    #[comptime] copy: Copy,
    #[comptime] layout: Layout,
) {
    let item = UNIT_POS + comptime!((turn * copy.units) as u32);
    if comptime!(copy.even()) {
        store_item::<E, W, S>(tile, base, staged, item, turn, copy, layout);
    } else if item < comptime!(copy.items as u32) {
        store_item::<E, W, S>(tile, base, staged, item, turn, copy, layout);
    }
}

#[cube]
fn store_item<E: Numeric, W: Size, S: Size>(
    tile: &mut Shared<[Quad<E>]>,
    base: u32,
    staged: &Array<Vector<u32, S>>,
    item: u32,
    #[comptime] turn: usize,
    #[comptime] copy: Copy,
    #[comptime] layout: Layout,
) {
    let piece = item % comptime!(copy.pieces as u32);
    let line = item / comptime!(copy.pieces as u32);
    let (unit, groups) = comptime!((layout.unit as u32, layout.groups as u32));
    if comptime!(copy.rows == 1) {
        let quads = comptime!(copy.piece / QUAD);
        #[unroll]
        for q in 0..quads {
            let mut quad = Sequence::<E>::new();
            #[unroll]
            for e in 0..QUAD {
                let at = comptime!(turn * copy.piece + q * QUAD + e);
                let vector = elements::<E, W, S>(staged[comptime!(at / copy.width)], copy);
                quad.push(vector.extract(comptime!(at % copy.width)));
            }
            let quad = from_elements::<E, Const<4>>(&quad);
            let at = piece * quads as u32 + q as u32;
            tile[(base + place(line, at / unit, at % unit, layout)) as usize] = quad;
        }
    } else {
        // `line` counts runs of four rows: the lane group that reads one is its number modulo the groups.
        let turn_of_group = line / groups;
        let chunk = turn_of_group / unit * groups + line % groups;
        #[unroll]
        for e in 0..comptime!(copy.piece) {
            let mut quad = Sequence::<E>::new();
            #[unroll]
            for row in 0..QUAD {
                let vector = elements::<E, W, S>(staged[comptime!(turn * QUAD + row)], copy);
                quad.push(vector.extract(e));
            }
            let quad = from_elements::<E, Const<4>>(&quad);
            let line = piece * comptime!(copy.piece as u32) + e as u32;
            tile[(base + place(line, chunk, turn_of_group % unit, layout)) as usize] = quad;
        }
    }
}
