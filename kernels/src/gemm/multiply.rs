//! From shared memory through fragments into the accumulator.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use super::plan::Plan;
use super::stage::swizzle;
use super::tile::Role;
use crate::matrix::lanes::lane_part;
use crate::matrix::product::product;
use crate::matrix::vector::from_elements;

/// Where a lane reads its fragments in a shared tile.
#[derive(CubeType)]
pub struct Reader {
    /// Chunk at which the lane's first row begins.
    row: u32,
    /// The lane's group along K, permuted as its row is.
    group: u32,
}

/// The reader of a lane whose wave begins at row or column `wave` of the tile.
#[cube]
pub fn reader(wave: u32, lane: u32, #[comptime] role: Role, #[comptime] plan: Plan) -> Reader {
    let (operand, fragment) = comptime!((plan.operand(role), plan.fragment(role)));
    let first = wave + lane_part(lane, comptime!(role.outer(&plan.instruction)));
    let (divide, groups) = comptime!((fragment.groups.0 as u32, fragment.groups.1 as u32));
    let group = if comptime!(groups == 1) {
        0u32.into()
    } else {
        lane / divide % groups
    };
    let chunks = comptime!(fragment.chunks as u32);
    Reader {
        row: first * comptime!(operand.row() as u32),
        group: (group * chunks) ^ swizzle(first, operand),
    }
}

/// Reads the chunks of read `number` (along K) for all of a wave's tiles along one dimension.
#[cube]
pub fn read<E: Numeric, V: Size>(
    tile: &Shared<[Vector<E, V>]>,
    from: &Reader,
    chunks: &mut Array<Vector<E, V>>,
    #[comptime] number: usize,
    #[comptime] role: Role,
    #[comptime] plan: Plan,
) {
    let (operand, fragment) = comptime!((plan.operand(role), plan.fragment(role)));
    let (tiles, side) = comptime!(plan.tiles(role));
    let outers = comptime!(fragment.outers.len());
    #[unroll]
    for i in 0..tiles {
        #[unroll]
        for o in 0..outers {
            #[unroll]
            for c in 0..comptime!(fragment.chunks) {
                let outer = comptime!(i * side + fragment.outers[o]);
                let chunk = comptime!(number * fragment.depth / operand.chunk + c);
                let permuted = from.group ^ comptime!((chunk ^ operand.swizzle(outer)) as u32);
                let place = from.row + permuted + comptime!((outer * operand.row()) as u32);
                chunks[comptime!((i * outers + o) * fragment.chunks + c)] = tile[place as usize];
            }
        }
    }
}

/// As [`read`], where `number` is known at run time only: all lanes take the same places along K.
#[cube]
pub fn read_at<E: Numeric, V: Size>(
    tile: &Shared<[Vector<E, V>]>,
    from: &Reader,
    chunks: &mut Array<Vector<E, V>>,
    number: u32,
    #[comptime] role: Role,
    #[comptime] plan: Plan,
) {
    let (operand, fragment) = comptime!((plan.operand(role), plan.fragment(role)));
    let (tiles, side) = comptime!(plan.tiles(role));
    let outers = comptime!(fragment.outers.len());
    #[unroll]
    for c in 0..comptime!(fragment.chunks) {
        let chunk = from.group ^ (number * comptime!(fragment.chunks as u32) + c as u32);
        #[unroll]
        for i in 0..comptime!(tiles * outers) {
            let outer = comptime!(i / outers * side + fragment.outers[i % outers]);
            let permuted = chunk ^ comptime!(operand.swizzle(outer) as u32);
            let place = from.row + permuted + comptime!((outer * operand.row()) as u32);
            chunks[comptime!(i * fragment.chunks + c)] = tile[place as usize];
        }
    }
}

/// The fragment of tile `i` for step `step` of a read.
#[cube]
fn pick<E: Numeric, V: Size, N: Size>(
    chunks: &Array<Vector<E, V>>,
    #[comptime] i: usize,
    #[comptime] step: usize,
    #[comptime] role: Role,
    #[comptime] plan: Plan,
) -> Vector<E, N> {
    let (fragment, chunk) = comptime!((plan.fragment(role), plan.chunk()));
    let mut elements = Sequence::<E>::new();
    #[unroll]
    for e in 0..comptime!(fragment.elements.len()) {
        let (outer, j) = comptime!(fragment.elements[e]);
        let along = comptime!(step * fragment.along_k + j);
        let first = comptime!((i * fragment.outers.len() + outer) * fragment.chunks);
        let from = chunks[comptime!(first + along / chunk)];
        elements.push(from.extract(comptime!(along % chunk)));
    }
    from_elements::<E, N>(&elements)
}

/// The products of step `step` of a read, for all of a wave's tiles; accumulators are row-major.
#[cube]
pub fn multiply<E: Numeric, V: Size, NA: Size, NB: Size, ND: Size>(
    a: &Array<Vector<E, V>>,
    b: &Array<Vector<E, V>>,
    sums: &mut Array<Vector<f32, ND>>,
    #[comptime] step: usize,
    #[comptime] plan: Plan,
) {
    let (rows, columns) = comptime!(plan.tiling.tiles);
    #[unroll]
    for i in 0..rows {
        let left = pick::<E, V, NA>(a, i, step, Role::Rows, plan);
        #[unroll]
        for j in 0..columns {
            let right = pick::<E, V, NB>(b, j, step, Role::Columns, plan);
            let at = comptime!(i * columns + j);
            sums[at] = product::<E, f32, NA, NB, ND>(left, right, sums[at], plan.instruction);
        }
    }
}
