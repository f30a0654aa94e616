//! Tiles of K and V in shared memory, and the fragments that are read from there.
//!
//! A tile lies in shared memory as lines of quads (4 elements). Reads are 16 bytes wide and free of bank conflicts: 16-byte
//! chunks of a line are exchanged by its number, or lines are padded to an odd number of chunks.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use crate::attention::plan::{Plan, QUAD};
use crate::matrix::vector::from_elements;

/// Four elements.
pub(crate) type Quad<E> = Vector<E, Const<4>>;

/// How a tile lies in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Layout {
    /// Lines.
    pub lines: usize,
    /// Quads of a line.
    pub quads: usize,
    /// Quads of a chunk.
    pub unit: usize,
    /// Lane groups that take turns in reading the chunks of a line.
    pub groups: usize,
    /// Whether they are neighbouring lanes (NVIDIA), so that eight lanes read four chunks of two lines at a time.
    pub neighbours: bool,
    /// Whether all lanes read the same line at a time, where nothing has to be exchanged.
    pub alike: bool,
}

impl Layout {
    /// Chunks of a line among which the line's number exchanges them, at most the eight that LDS serves at a time; none
    /// where a line has another number of chunks.
    fn exchanged(&self) -> Option<usize> {
        let chunks = self.quads.div_ceil(self.unit);
        let some = chunks.min(8);
        (chunks % some == 0 && some.is_power_of_two() && !self.alike).then_some(some)
    }

    /// Quads from one line to the next.
    fn stride(&self) -> usize {
        match self.exchanged() {
            Some(_) => self.quads.next_multiple_of(self.unit),
            None => (self.quads.div_ceil(self.unit) | 1) * self.unit,
        }
    }

    /// What is joined by exclusive or with the chunks' numbers in `line`, of which the low bits count: eight neighbouring lines
    /// differ, and so do the lines that the lanes of a transposing store write at a time.
    fn mixed(&self, line: usize) -> usize {
        let exchanged = self.exchanged().unwrap_or(1);
        match self.neighbours {
            true => (line % 2 * (exchanged / 2)) ^ (line / 8),
            false => (line / (8 / exchanged)) ^ (line / 8),
        }
    }

    /// [`place`] of quad `quad` of `line`.
    fn place(&self, line: usize, quad: usize) -> usize {
        let exchanged = self.exchanged().unwrap_or(1);
        let mixed = self.mixed(line);
        let chunk = (quad / self.unit) ^ (mixed % exchanged);
        line * self.stride() + chunk * self.unit + quad % self.unit
    }

    /// Quads of the tile.
    pub fn len(&self) -> usize {
        self.lines * self.stride()
    }
}

/// Where quad `within` of `chunk` of `line` lies.
#[cube]
pub(crate) fn place(line: u32, chunk: u32, within: u32, #[comptime] layout: Layout) -> u32 {
    let (stride, unit) = comptime!((layout.stride() as u32, layout.unit as u32));
    let exchanged = comptime!(layout.exchanged().map_or(1, |chunks| chunks as u32));
    if comptime!(exchanged == 1) {
        line * stride + chunk * unit + within
    } else {
        // As in `Layout::mixed`.
        let mixed = if comptime!(layout.neighbours) {
            (line % 2 * comptime!(exchanged / 2)) ^ (line / 8)
        } else {
            (line / comptime!(8 / exchanged)) ^ (line / 8)
        };
        line * stride + (chunk ^ (mixed % exchanged)) * unit + within
    }
}

impl Plan {
    /// K in shared memory: `[keys, depth]`, or `[depth, keys]` if operands run along rows.
    pub(crate) fn key_layout(&self) -> Layout {
        let length = self.key_copy().length();
        let (lines, length) = match self.keys_along_rows() {
            true => (length, self.keys),
            false => (self.keys, length),
        };
        self.layout(lines, length)
    }

    /// V in shared memory: `[head_dim, keys]`, or `[keys, head_dim]` if operands run along rows.
    pub(crate) fn value_layout(&self) -> Layout {
        let length = self.value_copy().length();
        let (lines, length) = match self.along_rows() {
            true => (self.keys, length),
            false => (length, self.keys),
        };
        self.layout(lines, length)
    }

    fn layout(&self, lines: usize, length: usize) -> Layout {
        Layout {
            lines,
            quads: length / QUAD,
            unit: match self.in_pairs() {
                true => self.unit().min(length / QUAD / self.groups()),
                false => self.unit(),
            },
            groups: self.groups(),
            neighbours: self.in_pairs(),
            alike: self.spreads(),
        }
    }
}

/// [`place`] of quad `within` of the lane's own chunk of round `round` of the line `row` behind its own, `row` a multiple of 8 or all
/// lines alike. What is known at compile time is added last, so that few places have to be computed, and the others differ from them
/// by a constant: NVIDIA's compiler would have a register for each.
#[cube]
fn own_place(
    base: u32,
    lane_row: u32,
    group: u32,
    #[comptime] row: usize,
    #[comptime] round: usize,
    #[comptime] within: usize,
    #[comptime] layout: Layout,
) -> u32 {
    let (stride, unit) = comptime!((layout.stride() as u32, layout.unit as u32));
    let exchanged = comptime!(layout.exchanged().unwrap_or(1));
    let chunk = comptime!(round * layout.groups);
    let line = base + lane_row * stride;
    if comptime!(exchanged == 1) {
        let known = comptime!((row * layout.stride() + chunk * layout.unit + within) as u32);
        (line + group * unit) + known
    } else {
        // As in `Layout::mixed`, of which the line's last bit is the lane's.
        let mixed = comptime!(((row / 8) ^ chunk) % exchanged);
        let own =
            (group ^ (lane_row % 2 * comptime!((exchanged / 2) as u32))) ^ comptime!(mixed as u32);
        let chunk = comptime!(chunk / exchanged * exchanged);
        let known = comptime!((row * layout.stride() + chunk * layout.unit + within) as u32);
        (line + own * unit) + known
    }
}

/// The fragment of A for contraction step `step`, of the rows from `row` on, of the tile that begins at quad `base`. `lane_row` and `group` are the
/// lane's row and contraction group in A's map.
#[cube]
pub(crate) fn operand<E: Numeric, N: Size>(
    tile: &Shared<[Quad<E>]>,
    base: u32,
    lane_row: u32,
    group: u32,
    #[comptime] row: usize,
    #[comptime] step: usize,
    #[comptime] along_rows: bool,
    #[comptime] layout: Layout,
) -> Vector<E, N> {
    if comptime!(along_rows) {
        // One quad, at the same place for all lanes, or those of a group.
        let place = comptime!(layout.place(step, row / QUAD) as u32);
        let at = if comptime!(layout.groups > 1) {
            (base + group) + place
        } else {
            base + place
        };
        Vector::<E, N>::cast_from(tile[at as usize])
    } else if comptime!(layout.alike) {
        // One element of each of the rows.
        let mut fragment = Sequence::<E>::new();
        #[unroll]
        for e in 0..N::value().comptime() {
            let at = own_place(
                base,
                lane_row,
                group,
                comptime!(row + e),
                comptime!(step / QUAD),
                0usize,
                layout,
            );
            fragment.push(tile[at as usize].extract(comptime!(step % QUAD)));
        }
        from_elements::<E, N>(&fragment)
    } else {
        let mut fragment = Sequence::<E>::new();
        let (unit, groups) = comptime!((layout.unit, layout.groups));
        let count = N::value().comptime();
        #[unroll]
        for e in 0..count {
            let (quad, element) = comptime!(((step * count + e) / QUAD, (step * count + e) % QUAD));
            let within = comptime!(quad % unit);
            let at = if comptime!(layout.neighbours) {
                own_place(
                    base,
                    lane_row,
                    group,
                    row,
                    comptime!(quad / unit),
                    within,
                    layout,
                )
            } else {
                let line = lane_row + row as u32;
                let chunk = comptime!((quad / unit * groups) as u32) + group;
                base + place(line, chunk, within as u32, layout)
            };
            let quad = tile[at as usize];
            fragment.push(quad.extract(element));
        }
        from_elements::<E, N>(&fragment)
    }
}

/// Quad `within` of the chunk that begins at `element` of a row, which begins at vector `begin`; zeros beyond the row, and
/// where `valid` is false.
#[cube]
pub(crate) fn load_quad<E: Numeric, W: Size>(
    tensor: &[Vector<E, W>],
    begin: u32,
    element: u32,
    valid: bool,
    #[comptime] within: usize,
    #[comptime] width: usize,
    #[comptime] head_dim: usize,
) -> Quad<E> {
    let mut quad = Quad::<E>::zero();
    #[unroll]
    for access in 0..comptime!((QUAD / width).max(1)) {
        let element = element + comptime!((within * QUAD + access * width) as u32);
        if valid && element < head_dim as u32 {
            let vector = tensor[(begin + element / width as u32) as usize];
            #[unroll]
            for e in 0..comptime!(width.min(QUAD)) {
                let from = comptime!((within * QUAD + e) % width);
                quad.insert(comptime!(access * width + e), vector.extract(from));
            }
        }
    }
    quad
}
