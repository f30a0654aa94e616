//! What a pass over blocks consists of.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use super::layout::{Blocks, QUAD};
use crate::gemm::accumulate::accumulate_in;
use crate::gemm::product::{Factors, Place};
use crate::gemm::side;
use crate::gemm::stage::Matrix;
use crate::gemm::tile::Role;
use crate::matrix::lanes::Join;
use crate::matrix::vector::from_elements;

/// Four numbers.
pub(crate) type Quad = Vector<f32, Const<4>>;

/// Rows of one tensor and one head.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Rows {
    /// Element at which row 0 begins.
    pub(crate) base: u32,
    /// Elements between rows.
    pub(crate) stride: u32,
    /// Rows that exist.
    pub(crate) count: u32,
}

/// A workgroup's shared memory.
#[derive(CubeType)]
pub(crate) struct Memory<E: Numeric, W: Size> {
    owned: Shared<[Vector<E, W>]>,
    streamed: Shared<[Vector<E, W>]>,
    /// Values of the pairs of a block: for each streamed row one after the other those of the owned rows.
    pub(crate) values: Shared<[Quad]>,
}

#[cube]
impl<E: Numeric, W: Size> Memory<E, W> {
    pub(crate) fn new(#[comptime] blocks: Blocks) -> Memory<E, W> {
        Memory::<E, W> {
            owned: side::memory::<E, W>(Role::Rows, blocks.scores),
            streamed: side::memory::<E, W>(Role::Columns, blocks.scores),
            values: Shared::<[Quad]>::new_slice(comptime!(blocks.values())),
        }
    }
}

/// Where the values of a lane's run `i` of owned rows and its streamed row `j` lie, the latter possibly known at run time only;
/// the run's first row and the streamed row, counted from the block's first.
#[cube]
pub(crate) fn of_lane(
    own: &Place,
    #[comptime] i: usize,
    j: u32,
    #[comptime] blocks: Blocks,
) -> (u32, u32, u32) {
    let n = comptime!(blocks.scores.instruction.n as u32);
    let row = first_row(own, i, blocks);
    let column = own.column + j * n + own.lane % n;
    let at = column * comptime!(blocks.pitch() as u32) + row / comptime!(QUAD as u32);
    (at, row, column)
}

/// The first row of a lane's run `i`, counted from the workgroup's first.
#[cube]
pub(crate) fn first_row(own: &Place, #[comptime] i: usize, #[comptime] blocks: Blocks) -> u32 {
    let (m, n) = comptime!((
        blocks.scores.instruction.m as u32,
        blocks.scores.instruction.n as u32
    ));
    own.row + comptime!(i as u32 * m) + own.lane / n * comptime!(QUAD as u32)
}

/// The products of the owned rows from `row` on with the streamed rows from `column` on, those of a run of owned rows as a vector:
/// `runs().1` streamed rows for each. Ends with a barrier, and has one before the first write to shared memory's values.
#[cube]
pub(crate) fn multiply<E: Numeric, VA: Size, VB: Size, W: Size, NA: Size, NB: Size, ND: Size>(
    owned: &[Vector<E, VA>],
    streamed: &[Vector<E, VB>],
    owned_rows: &Rows,
    streamed_rows: &Rows,
    row: u32,
    column: u32,
    memory: &mut Memory<E, W>,
    own: &Place,
    #[comptime] blocks: Blocks,
) -> Array<Vector<f32, ND>> {
    let count = comptime!(blocks.runs().0 * blocks.runs().1);
    let mut sums = Array::<Vector<f32, ND>>::new(count);
    #[unroll]
    for i in 0..count {
        sums[i] = Vector::<f32, ND>::zero();
    }
    let factors = Factors {
        row,
        column,
        first: 0u32.runtime(),
        count: comptime!(blocks.scores.depth_tiles(blocks.head_dim) as u32).runtime(),
        a: matrix(owned_rows, blocks),
        b: matrix(streamed_rows, blocks),
    };
    let mut none = Array::<f32>::new(1usize);
    accumulate_in::<E, VA, VB, W, NA, NB, ND>(
        owned,
        streamed,
        &factors,
        own,
        memory.owned.clone(),
        memory.streamed.clone(),
        &mut sums,
        &mut none,
        blocks.scores,
    );
    sums
}

/// What the lanes that share owned rows have of each, joined: the same in all of them. Overwrites values.
#[cube]
pub(crate) fn join<E: Numeric, W: Size>(
    rows: &Array<Quad>,
    memory: &mut Memory<E, W>,
    own: &Place,
    #[comptime] how: Join,
    #[comptime] blocks: Blocks,
) -> Array<Quad> {
    let runs = comptime!(blocks.runs().0);
    #[unroll]
    for i in 0..runs {
        let (place, _, _) = of_lane(own, i, 0u32, blocks);
        memory.values[place as usize] = rows[i];
    }
    sync_cube();
    let (n, columns) = comptime!((
        blocks.scores.instruction.n as u32,
        blocks.scores.wave_tile().1 as u32
    ));
    let mut joined = Array::<Quad>::new(runs);
    #[unroll]
    for i in 0..runs {
        joined[i] = memory.values[(first_row(own, i, blocks) / comptime!(QUAD as u32)) as usize];
    }
    for lane in 1..comptime!(blocks.sharing() as u32) {
        let line = (lane / n * columns + lane % n) * comptime!(blocks.pitch() as u32);
        #[unroll]
        for i in 0..runs {
            let at = line + first_row(own, i, blocks) / comptime!(QUAD as u32);
            let other = memory.values[at as usize];
            joined[i] = match how {
                Join::Sum => joined[i] + other,
                Join::Max => max(joined[i], other),
            };
        }
    }
    sync_cube();
    joined
}

/// Rows as a product takes them.
#[cube]
fn matrix(rows: &Rows, #[comptime] blocks: Blocks) -> Matrix {
    let width = comptime!(blocks.scores.width.0 as u32);
    Matrix {
        start: rows.base / width,
        stride: rows.stride / width,
        outer: rows.count,
        inner: comptime!(blocks.head_dim as u32).runtime(),
    }
}

/// A lane's sums before anything is added: for each of its rows its part of it.
#[cube]
pub(crate) fn zeros(#[comptime] blocks: Blocks) -> Array<Quad> {
    let count = comptime!(blocks.runs().0 * QUAD * blocks.parts());
    let mut sums = Array::<Quad>::new(count);
    #[unroll]
    for i in 0..count {
        sums[i] = Quad::zero();
    }
    sums
}

/// The lane's vector number `part` of a row, counted in vectors.
#[cube]
fn chunk(own: &Place, #[comptime] part: usize, #[comptime] blocks: Blocks) -> u32 {
    let (n, columns) = comptime!((
        blocks.scores.instruction.n as u32,
        blocks.scores.wave_tile().1 as u32
    ));
    own.column / columns * n + own.lane % n + comptime!((part * blocks.sharing()) as u32)
}

/// Adds to `sums` the streamed rows from `first` on, each times its values of the lane's owned rows.
#[cube]
pub(crate) fn accumulate<E: Numeric, V: Size, W: Size>(
    streamed: &[Vector<E, V>],
    rows: &Rows,
    first: u32,
    memory: &mut Memory<E, W>,
    own: &Place,
    sums: &mut Array<Quad>,
    #[comptime] blocks: Blocks,
) {
    let (runs, parts) = comptime!((blocks.runs().0, blocks.parts()));
    let mut chunks = Array::<u32>::new(parts);
    #[unroll]
    for part in 0..parts {
        // What is read of a vector behind the row's end is not written.
        let last = comptime!(blocks.head_dim.div_ceil(QUAD) as u32 - 1);
        chunks[part] = min(chunk(own, part, blocks), last);
    }
    for s in 0..min(comptime!(blocks.streamed() as u32), rows.count - first) {
        let begin = rows.base + (first + s) * rows.stride;
        let mut row = Array::<Quad>::new(parts);
        #[unroll]
        for part in 0..parts {
            row[part] = quad(streamed, begin, chunks[part], blocks);
        }
        let line = s * comptime!(blocks.pitch() as u32);
        #[unroll]
        for i in 0..runs {
            let row_of_lane = first_row(own, i, blocks);
            let values = memory.values[(line + row_of_lane / comptime!(QUAD as u32)) as usize];
            #[unroll]
            for e in 0..QUAD {
                let value = Quad::new(values.extract(e));
                #[unroll]
                for part in 0..parts {
                    let to = comptime!((i * QUAD + e) * parts + part);
                    sums[to] = fma(row[part], value, sums[to]);
                }
            }
        }
    }
}

/// Vector number `chunk` of the row that begins at element `begin`. What lies behind the row is whatever.
#[cube]
fn quad<E: Numeric, V: Size>(
    tensor: &[Vector<E, V>],
    begin: u32,
    chunk: u32,
    #[comptime] blocks: Blocks,
) -> Quad {
    let width = comptime!(blocks.scores.width.0 as u32);
    let mut elements = Sequence::<f32>::new();
    #[unroll]
    for access in 0..comptime!(QUAD / blocks.scores.width.0) {
        let element = chunk * comptime!(QUAD as u32) + comptime!(access as u32 * width);
        let element = min(element, comptime!(blocks.head_dim as u32 - width));
        let vector = tensor[((begin + element) / width) as usize];
        #[unroll]
        for e in 0..comptime!(blocks.scores.width.0) {
            elements.push(f32::cast_from(vector.extract(e)));
        }
    }
    from_elements::<f32, Const<4>>(&elements)
}

/// Writes the lane's sums of the owned rows from `first` on, each row times its factor; one vector of factors a run.
#[cube]
pub(crate) fn write<E: Numeric, V: Size>(
    sums: &Array<Quad>,
    to: &mut [Vector<E, V>],
    rows: &Rows,
    first: u32,
    factors: &Array<Quad>,
    own: &Place,
    #[comptime] blocks: Blocks,
) {
    let (width, parts) = comptime!((blocks.scores.width.0, blocks.parts()));
    #[unroll]
    for i in 0..comptime!(blocks.runs().0) {
        let run = first_row(own, i, blocks);
        #[unroll]
        for e in 0..QUAD {
            let row = first + run + comptime!(e as u32);
            if row < rows.count {
                let begin = rows.base + row * rows.stride;
                #[unroll]
                for part in 0..parts {
                    let sum = sums[comptime!((i * QUAD + e) * parts + part)]
                        * Quad::new(factors[i].extract(e));
                    #[unroll]
                    for access in 0..comptime!(QUAD / width) {
                        let element = chunk(own, part, blocks) * comptime!(QUAD as u32)
                            + comptime!((access * width) as u32);
                        if element < comptime!(blocks.head_dim as u32) {
                            let mut elements = Sequence::<E>::new();
                            #[unroll]
                            for w in 0..width {
                                elements
                                    .push(E::cast_from(sum.extract(comptime!(access * width + w))));
                            }
                            to[((begin + element) / comptime!(width as u32)) as usize] =
                                from_elements::<E, V>(&elements);
                        }
                    }
                }
            }
        }
    }
}
