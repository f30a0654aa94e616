//! Streamed rows: from global memory to registers, to shared memory, to fragments.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

pub(super) use super::super::blocks::Rows;
use super::layout::{Lane, behind, place, place_behind};
use super::plan::{BLOCK, Plan};
use super::products::own_first;
use crate::matrix::lanes::lane_part;
use crate::matrix::vector::from_elements;

/// The staged rows of X and Y, whose products with the owned columns are the scores and the gradient of the probabilities.
#[derive(CubeType)]
pub(super) struct Tiles<E: Numeric, W: Size> {
    /// X, a row after the other.
    pub(super) x: Shared<[Vector<E, W>]>,
    /// Y, a row after the other.
    pub(super) y: Shared<[Vector<E, W>]>,
    /// X turned, where the plan has it so; else X.
    pub(super) x_turned: Shared<[Vector<E, W>]>,
    /// Y turned, where the plan has it so; else Y.
    pub(super) y_turned: Shared<[Vector<E, W>]>,
    /// A term of each row's exponent, then the delta of each row.
    pub(super) terms: Shared<[f32]>,
    /// What waves that share columns tell one another, where they do; else the terms.
    pub(super) told: Shared<[f32]>,
}

#[cube]
impl<E: Numeric, W: Size> Tiles<E, W> {
    pub(super) fn new(#[comptime] plan: Plan) -> Tiles<E, W> {
        let width = comptime!(plan.staged_width());
        let natural = comptime!(plan.rows() * plan.row_pitch() / width);
        let turned = comptime!(plan.padded() * plan.turned_pitch() / width);
        let x = Shared::<[Vector<E, W>]>::new_slice(natural);
        let y = Shared::<[Vector<E, W>]>::new_slice(natural);
        let x_turned = if comptime!(plan.turned_tensors() > 0) {
            Shared::<[Vector<E, W>]>::new_slice(turned)
        } else {
            x.clone()
        };
        let y_turned = if comptime!(plan.turned_tensors() > 1) {
            Shared::<[Vector<E, W>]>::new_slice(turned)
        } else {
            y.clone()
        };
        let terms = Shared::<[f32]>::new_slice(comptime!(2 * plan.rows()));
        let told = if comptime!(plan.told() > 0) {
            Shared::<[f32]>::new_slice(comptime!(plan.told()))
        } else {
            terms.clone()
        };
        Tiles::<E, W> {
            x,
            y,
            x_turned,
            y_turned,
            terms,
            told,
        }
    }
}

/// Rows of a block that a unit stages.
fn block_rows(plan: Plan) -> usize {
    if plan.turned() { BLOCK } else { 1 }
}

/// Blocks that a stage of one tensor consists of.
fn blocks(plan: Plan) -> usize {
    plan.rows() / block_rows(plan) * (plan.padded() / BLOCK)
}

/// Blocks of X and Y that a unit stages.
fn turns(plan: Plan) -> usize {
    (2 * blocks(plan)).div_ceil(plan.units())
}

/// Vectors of global memory that a unit holds of a block.
fn block_vectors(plan: Plan) -> usize {
    block_rows(plan) * (BLOCK / plan.width)
}

/// Vectors of global memory that a unit holds of a stage.
pub(super) fn held(plan: Plan) -> usize {
    turns(plan) * block_vectors(plan)
}

/// Which tensor the units stage in their turn `l`: X first, then Y.
enum Turn {
    X,
    Y,
    Both,
}

fn turn(plan: Plan, l: usize) -> Turn {
    let (first, end) = (l * plan.units(), (l + 1) * plan.units());
    match blocks(plan) {
        blocks if end <= blocks => Turn::X,
        blocks if first >= blocks => Turn::Y,
        _ => Turn::Both,
    }
}

/// Reads a unit's share of the stage that begins at row `first`.
#[cube]
pub(super) fn fetch<E: Numeric, V: Size>(
    x: &[Vector<E, V>],
    y: &[Vector<E, V>],
    x_rows: &Rows,
    y_rows: &Rows,
    first: u32,
    registers: &mut Array<Vector<E, V>>,
    #[comptime] plan: Plan,
) {
    #[unroll]
    for l in 0..comptime!(turns(plan)) {
        let block = UNIT_POS + comptime!((l * plan.units()) as u32);
        let blocks = comptime!(blocks(plan) as u32);
        match comptime!(turn(plan, l)) {
            Turn::X => fetch_block(x, x_rows, first, block, registers, l, plan),
            Turn::Y => fetch_block(y, y_rows, first, block - blocks, registers, l, plan),
            Turn::Both => {
                if block < blocks {
                    fetch_block(x, x_rows, first, block, registers, l, plan);
                } else {
                    fetch_block(y, y_rows, first, block - blocks, registers, l, plan);
                }
            }
        }
    }
}

/// Reads a block. Beyond the last row, and beyond the head dimension, it reads the last: what comes of that is multiplied
/// by zero.
#[cube]
fn fetch_block<E: Numeric, V: Size>(
    source: &[Vector<E, V>],
    rows: &Rows,
    first: u32,
    block: u32,
    registers: &mut Array<Vector<E, V>>,
    #[comptime] l: usize,
    #[comptime] plan: Plan,
) {
    let (tall, width) = comptime!((block_rows(plan), plan.width as u32));
    let across = comptime!((plan.padded() / BLOCK) as u32);
    let column = block % across * comptime!(BLOCK as u32);
    // In vectors. What depends on the unit does not change from stage to stage; what changes is the same for all units.
    let (base, stride) = (rows.base / width, rows.stride / width);
    let own = block / across * comptime!(tall as u32) * stride;
    let end = base + (rows.count - 1) * stride;
    #[unroll]
    for v in 0..comptime!(BLOCK / plan.width) {
        let inside = comptime!(plan.variant.head_dim as u32 - width);
        let at = if comptime!(plan.padded() == plan.variant.head_dim) {
            (column + comptime!(v as u32 * width)) / width
        } else {
            min(column + comptime!(v as u32 * width), inside) / width
        };
        // Buffers have less than 2^32 bytes; told so, the compiler adds 32-bit offsets to 64-bit bases.
        let most = comptime!(u32::MAX / (width * plan.element.bytes() as u32));
        let last = if comptime!(plan.target.is_hip()) {
            (end + at) & most
        } else {
            end + at
        };
        #[unroll]
        for r in 0..tall {
            let row = base + (first + comptime!(r as u32)) * stride;
            let index = min(row + (own + at), last);
            let to = comptime!(l * block_vectors(plan) + r * (BLOCK / plan.width) + v);
            registers[to] = source[index as usize];
        }
    }
}

/// Element `column` of row `row` of block `l` that a unit holds.
#[cube]
fn element<E: Numeric, V: Size>(
    registers: &Array<Vector<E, V>>,
    #[comptime] l: usize,
    #[comptime] row: usize,
    #[comptime] column: usize,
    #[comptime] plan: Plan,
) -> E {
    let width = comptime!(plan.width);
    let vector =
        registers[comptime!(l * block_vectors(plan) + row * (BLOCK / width) + column / width)];
    vector.extract(comptime!(column % width))
}

/// Writes what [`fetch`] read to shared memory, row after row, and turned where the plan has it so.
#[cube]
pub(super) fn store<E: Numeric, V: Size, W: Size>(
    registers: &Array<Vector<E, V>>,
    tiles: &mut Tiles<E, W>,
    #[comptime] plan: Plan,
) {
    let blocks = comptime!(blocks(plan) as u32);
    #[unroll]
    for l in 0..comptime!(turns(plan)) {
        let block = UNIT_POS + comptime!((l * plan.units()) as u32);
        let whole = comptime!((l + 1) * plan.units() <= 2 * blocks as usize);
        match comptime!(turn(plan, l)) {
            Turn::X => store_x(registers, tiles, block, l, plan),
            Turn::Y => {
                if whole || block < comptime!(2 * blocks) {
                    store_y(registers, tiles, of_y(block, plan), l, plan);
                }
            }
            Turn::Both => {
                if block < blocks {
                    store_x(registers, tiles, block, l, plan);
                } else if whole || block < comptime!(2 * blocks) {
                    store_y(registers, tiles, of_y(block, plan), l, plan);
                }
            }
        }
    }
}

/// Which block of Y `block` is. NVIDIA's compiler is told that the number is small: see [`Plan::known_last`].
#[cube]
fn of_y(block: u32, #[comptime] plan: Plan) -> u32 {
    let own = block - comptime!(blocks(plan) as u32);
    if comptime!(plan.known_last()) {
        own & 0xffff
    } else {
        own
    }
}

#[cube]
fn store_x<E: Numeric, V: Size, W: Size>(
    registers: &Array<Vector<E, V>>,
    tiles: &mut Tiles<E, W>,
    block: u32,
    #[comptime] l: usize,
    #[comptime] plan: Plan,
) {
    store_block(registers, &mut tiles.x, block, l, plan);
    if comptime!(plan.turned_tensors() > 0) {
        store_turned(registers, &mut tiles.x_turned, block, l, plan);
    }
}

#[cube]
fn store_y<E: Numeric, V: Size, W: Size>(
    registers: &Array<Vector<E, V>>,
    tiles: &mut Tiles<E, W>,
    block: u32,
    #[comptime] l: usize,
    #[comptime] plan: Plan,
) {
    store_block(registers, &mut tiles.y, block, l, plan);
    if comptime!(plan.turned_tensors() > 1) {
        store_turned(registers, &mut tiles.y_turned, block, l, plan);
    }
}

#[cube]
fn store_block<E: Numeric, V: Size, W: Size>(
    registers: &Array<Vector<E, V>>,
    tile: &mut Shared<[Vector<E, W>]>,
    block: u32,
    #[comptime] l: usize,
    #[comptime] plan: Plan,
) {
    let (tall, width) = comptime!((block_rows(plan), plan.staged_width()));
    let across = comptime!((plan.padded() / BLOCK) as u32);
    let column = block % across * comptime!(BLOCK as u32);
    let row = block / across * comptime!(tall as u32);
    #[unroll]
    for r in 0..tall {
        let pitch = comptime!(plan.row_pitch() as u32);
        let at = if comptime!(plan.known_last()) {
            let pitch = comptime!(pitch / width as u32);
            let first = place(row, plan.instruction) * pitch + column / comptime!(width as u32);
            first + comptime!(behind(r, plan.instruction) * pitch)
        } else {
            let row = place_behind(row, r, plan.instruction);
            row * comptime!(pitch / width as u32) + column / comptime!(width as u32)
        };
        #[unroll]
        for part in 0..comptime!(BLOCK / width) {
            let vector = if comptime!(plan.width == width) {
                Vector::<E, W>::cast_from(registers[comptime!(l * block_vectors(plan) + r)])
            } else {
                let mut elements = Sequence::<E>::new();
                #[unroll]
                for e in 0..width {
                    elements.push(element(registers, l, r, comptime!(part * width + e), plan));
                }
                from_elements(&elements)
            };
            tile[(at + comptime!(part as u32)) as usize] = vector;
        }
    }
}

#[cube]
fn store_turned<E: Numeric, V: Size, W: Size>(
    registers: &Array<Vector<E, V>>,
    turned: &mut Shared<[Vector<E, W>]>,
    block: u32,
    #[comptime] l: usize,
    #[comptime] plan: Plan,
) {
    let across = comptime!((plan.padded() / BLOCK) as u32);
    let column = block % across * comptime!(BLOCK as u32);
    let pitch = comptime!((plan.turned_pitch() / BLOCK) as u32);
    #[unroll]
    for c in 0..comptime!(BLOCK) {
        let mut elements = Sequence::<E>::new();
        #[unroll]
        for r in 0..comptime!(BLOCK) {
            elements.push(element(registers, l, r, c, plan));
        }
        let at = if comptime!(plan.known_last()) {
            let first = place(column, plan.instruction) * pitch + block / across;
            first + comptime!(behind(c, plan.instruction) * pitch)
        } else {
            place_behind(column, c, plan.instruction) * pitch + block / across
        };
        turned[at as usize] = from_elements(&elements);
    }
}

/// Where in a row element `e` of fragment `step` lies: the part that is the same for all lanes, and the factor of the lane's
/// part of the row. A lane takes whole chunks.
fn inner(plan: Plan, step: usize, e: usize) -> (usize, usize) {
    let (chunk, at) = (plan.chunk(), step * plan.depth() + e);
    (at / chunk * chunk * plan.groups() + at % chunk, chunk)
}

/// The fragment of A that is `step` of the rows of D number `t`.
#[cube]
pub(super) fn rows_fragment<E: Numeric, W: Size, NA: Size>(
    tile: &Shared<[Vector<E, W>]>,
    lane: &Lane,
    #[comptime] t: usize,
    #[comptime] step: usize,
    #[comptime] plan: Plan,
) -> Vector<E, NA> {
    let (width, pitch) = comptime!((plan.staged_width(), plan.row_pitch() as u32));
    let instruction = comptime!(plan.instruction);
    let mut elements = Sequence::<E>::new();
    #[unroll]
    for e in 0..comptime!(instruction.a.elements) {
        let a = comptime!(instruction.a);
        let (same, chunk) = comptime!(inner(plan, step, a.column.number(a.elements, e)));
        let behind = comptime!((t * instruction.m + instruction.a.row.offset(e)) as u32);
        // In vectors from the start, so that what is known at compile time stays an offset of the address.
        let pitch = comptime!(pitch / width as u32);
        let at = if comptime!(plan.known_last()) {
            let own = own_first(plan) / comptime!(width as u32);
            let first = lane.row * pitch + lane.part * comptime!((chunk / width) as u32) + own;
            first + comptime!(behind * pitch + (same / width) as u32)
        } else {
            (lane.row + behind) * pitch
                + lane.part * comptime!((chunk / width) as u32)
                + comptime!((same / width) as u32)
        };
        elements.push(tile[at as usize].extract(comptime!(same % width)));
    }
    from_elements(&elements)
}

/// The fragment of A whose rows are elements `dt * m ..` of the staged rows, and whose columns are the rows of tile `t` that
/// `step` of the fragments which D feeds has as its rows.
#[cube]
pub(super) fn turned_fragment<E: Numeric, W: Size, NA: Size>(
    tile: &Shared<[Vector<E, W>]>,
    lane: &Lane,
    #[comptime] dt: usize,
    #[comptime] t: usize,
    #[comptime] step: usize,
    #[comptime] plan: Plan,
) -> Vector<E, NA> {
    let instruction = comptime!(plan.instruction);
    let (m, tall) = comptime!((instruction.m, plan.tile_rows()));
    let mut elements = Sequence::<E>::new();
    if comptime!(plan.turned()) {
        let pitch = comptime!((plan.turned_pitch() / BLOCK) as u32);
        // One step takes either all of the tile's rows, or the lane's own in order.
        let whole = comptime!(instruction.a.elements == tall);
        let offset = comptime!(t * tall + step * instruction.a.elements);
        let at = if comptime!(plan.known_last()) {
            let first = (lane.row + own_first(plan)) * pitch + lane.first / comptime!(BLOCK as u32);
            first + comptime!((dt * m) as u32 * pitch + (offset / BLOCK) as u32)
        } else {
            let first = if comptime!(whole) {
                comptime!((t * tall / BLOCK) as u32).runtime()
            } else {
                lane.first / comptime!(BLOCK as u32) + comptime!((offset / BLOCK) as u32)
            };
            (lane.row + comptime!((dt * m) as u32)) * pitch + first
        };
        #[unroll]
        for e in 0..comptime!(instruction.a.elements) {
            let vector = tile[(at + comptime!((e / BLOCK) as u32)) as usize];
            elements.push(vector.extract(comptime!(e % BLOCK)));
        }
    } else {
        let row = lane.d_row + comptime!((t * m + instruction.d.row.offset(step)) as u32);
        let at = row * comptime!(plan.row_pitch() as u32) + lane.unplaced;
        #[unroll]
        for e in 0..comptime!(instruction.a.elements) {
            let column = comptime!((dt * m + instruction.a.row.offset(e)) as u32);
            elements.push(tile[(at + column) as usize].extract(0usize));
        }
    }
    from_elements(&elements)
}

/// The fragments of B whose first column in this lane is `row` of `source`, in the order of [`rows_fragment`].
#[cube]
pub(super) fn own_fragments<E: Numeric, V: Size, NB: Size>(
    source: &[Vector<E, V>],
    rows: &Rows,
    row: u32,
    #[comptime] plan: Plan,
) -> Array<Vector<E, NB>> {
    let (width, head_dim) = comptime!((plan.width, plan.variant.head_dim));
    let instruction = comptime!(plan.instruction);
    let steps = comptime!(plan.own_part() / instruction.k);
    let lane = UNIT_POS % comptime!(instruction.lanes as u32);
    let b = comptime!(instruction.b);
    let part = lane_part(lane, b.row) / comptime!(b.row.scale.max(1) as u32);
    let mut bases = Sequence::<u32>::new();
    #[unroll]
    for c in 0..comptime!(plan.lane_columns()) {
        let row = row + comptime!(instruction.columns()[c] as u32);
        bases.push(rows.base + min(row, rows.count - 1) * rows.stride);
    }
    let mut fragments = Array::<Vector<E, NB>>::new(steps);
    #[unroll]
    for step in 0..steps {
        let mut elements = Sequence::<E>::new();
        #[unroll]
        for e in 0..comptime!(b.elements) {
            let base = *bases.index(comptime!(b.column.number(b.elements, e)));
            let (same, chunk) = comptime!(inner(plan, step, b.row.number(b.elements, e)));
            let at = part * comptime!(chunk as u32) + comptime!((same / width * width) as u32);
            let at = if comptime!(plan.split > 1) {
                at + own_first(plan)
            } else {
                at
            };
            let element = if comptime!(plan.padded() == head_dim) {
                source[((base + at) / comptime!(width as u32)) as usize]
                    .extract(comptime!(same % width))
            } else {
                let inside = min(at, comptime!((head_dim - width) as u32));
                let element = source[((base + inside) / comptime!(width as u32)) as usize]
                    .extract(comptime!(same % width));
                select(at < comptime!(head_dim as u32), element, E::from_int(0))
            };
            elements.push(element);
        }
        fragments[step] = from_elements(&elements);
    }
    fragments
}
