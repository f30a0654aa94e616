//! One operand's pipeline in the main loop: global memory, registers, shared memory, fragments.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use super::multiply::{Reader, read, read_at, reader};
use super::plan::Plan;
use super::stage::{Matrix, corner, distances, fetch, fetch_edge, place};
use super::tile::Role;

/// The state of an operand.
#[derive(CubeType)]
pub struct Side<E: Numeric, W: Size, V: Size> {
    /// Where the tile begins along C.
    first: u32,
    /// For each access to global memory, its distance to the tile's corner.
    distances: Array<u32>,
    /// What the accesses brought.
    pub brought: Array<Vector<E, W>>,
    /// The tile in shared memory.
    tile: Shared<[Vector<E, V>]>,
    /// Where this lane reads in it.
    reader: Reader,
    /// The chunks of two reads: those being multiplied and, unless they are a loop, those to come.
    pub taken: Sequence<Array<Vector<E, V>>>,
}

/// Shared memory for an operand's tile.
#[cube]
pub fn memory<E: Numeric, V: Size>(
    #[comptime] role: Role,
    #[comptime] plan: Plan,
) -> Shared<[Vector<E, V>]> {
    Shared::<[Vector<E, V>]>::new_slice(comptime!(plan.operand(role).chunks()))
}

/// The side of a workgroup whose tile begins at `first` and is staged in `tile`, for a lane whose wave begins at `wave` of it.
#[cube]
pub fn side<E: Numeric, W: Size, V: Size>(
    matrix: &Matrix,
    first: u32,
    wave: u32,
    lane: u32,
    tile: Shared<[Vector<E, V>]>,
    #[comptime] role: Role,
    #[comptime] plan: Plan,
) -> Side<E, W, V> {
    let operand = comptime!(plan.operand(role));
    let mut taken = Sequence::<Array<Vector<E, V>>>::new();
    #[unroll]
    for _ in 0..comptime!(if plan.loops() { 1usize } else { 2 }) {
        taken.push(Array::<Vector<E, V>>::new(comptime!(plan.held(role))));
    }
    Side::<E, W, V> {
        first,
        distances: distances(matrix, first, operand),
        brought: Array::<Vector<E, W>>::new(comptime!(operand.turns() * operand.accesses())),
        tile,
        reader: reader(wave, lane, role, plan),
        taken,
    }
}

/// Brings the tile at `k` into registers; all of it lies within the matrix.
#[cube]
pub fn bring<E: Numeric, W: Size, V: Size>(
    side: &mut Side<E, W, V>,
    memory: &[Vector<E, W>],
    matrix: &Matrix,
    k: u32,
    #[comptime] role: Role,
    #[comptime] plan: Plan,
) {
    let operand = comptime!(plan.operand(role));
    let corner = corner(matrix, side.first, k, operand);
    fetch(
        memory,
        corner,
        &side.distances,
        &mut side.brought,
        operand,
        plan.target,
    );
}

/// As [`bring`]; what lies beyond the matrix along K is zero.
#[cube]
pub fn bring_edge<E: Numeric, W: Size, V: Size>(
    side: &mut Side<E, W, V>,
    memory: &[Vector<E, W>],
    matrix: &Matrix,
    k: u32,
    #[comptime] role: Role,
    #[comptime] plan: Plan,
) {
    let operand = comptime!(plan.operand(role));
    let corner = corner(matrix, side.first, k, operand);
    let extent = matrix.inner - k;
    fetch_edge(
        memory,
        corner,
        &side.distances,
        &mut side.brought,
        extent,
        operand,
    );
}

/// Puts what was brought into shared memory.
#[cube]
pub fn put<E: Numeric, W: Size, V: Size>(
    side: &mut Side<E, W, V>,
    #[comptime] role: Role,
    #[comptime] plan: Plan,
) {
    place(&side.brought, &mut side.tile, comptime!(plan.operand(role)));
}

/// Takes read `number` of the tile, counted on from tile to tile, into its buffer.
#[cube]
pub fn take<E: Numeric, W: Size, V: Size>(
    side: &mut Side<E, W, V>,
    #[comptime] number: usize,
    #[comptime] role: Role,
    #[comptime] plan: Plan,
) {
    let chunks = side.taken.index_mut(comptime!(number % 2));
    read(
        &side.tile,
        &side.reader,
        chunks,
        comptime!(number % plan.reads()),
        role,
        plan,
    );
}

/// Takes read `number` of the tile, known at run time only, into the first buffer.
#[cube]
pub fn take_at<E: Numeric, W: Size, V: Size>(
    side: &mut Side<E, W, V>,
    number: u32,
    #[comptime] role: Role,
    #[comptime] plan: Plan,
) {
    let chunks = side.taken.index_mut(0usize);
    read_at(&side.tile, &side.reader, chunks, number, role, plan);
}
