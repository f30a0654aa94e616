//! The product's kernel: a workgroup computes one tile of C.

use cubecl_core as cubecl;
use cubecl_core::ir::ElemType;
use cubecl_core::prelude::*;

use super::accumulate::accumulate;
use super::epilogue::{Results, finish};
use super::plan::Plan;
use super::stage::{Matrix, write_sums};
use super::tile::Role;
use crate::matrix::lanes::coordinate;

/// What a workgroup multiplies.
#[derive(CubeType)]
pub struct Factors {
    /// First row of C.
    pub row: u32,
    /// First column of C.
    pub column: u32,
    /// First tile of K.
    pub first: u32,
    /// Tiles of K, at least 1.
    pub count: u32,
    /// A.
    pub a: Matrix,
    /// B.
    pub b: Matrix,
}

/// A workgroup's work.
#[derive(CubeType)]
pub struct Job {
    /// What it multiplies.
    pub factors: Factors,
    /// C.
    pub results: Results,
}

/// A wave's and lane's place in the workgroup's tile.
#[derive(CubeType)]
pub struct Place {
    /// Row of the wave in the tile.
    pub row: u32,
    /// Column of the wave in the tile.
    pub column: u32,
    /// Lane of the wave.
    pub lane: u32,
}

/// This unit's place.
#[cube]
pub fn own_place(#[comptime] plan: Plan) -> Place {
    let lanes = comptime!(plan.instruction.lanes as u32);
    let columns = comptime!(plan.tiling.waves.1 as u32);
    let wave = UNIT_POS / lanes;
    let (rows_of_wave, columns_of_wave) = comptime!(plan.wave_tile());
    Place {
        row: wave / columns * rows_of_wave as u32,
        column: wave % columns * columns_of_wave as u32,
        lane: UNIT_POS % lanes,
    }
}

/// Rows of tiles that workgroups take one after the other, column by column, so that they share operands in the cache.
const BAND: u32 = 8;

/// Row and column, in tiles, of tile `id` of a matrix of `rows x columns` tiles.
#[cube]
pub fn tile_of(id: u32, rows: u32, columns: u32) -> (u32, u32) {
    let band = id / (BAND * columns);
    let first = band * BAND;
    let height = min(rows - first, BAND);
    let inside = id - first * columns;
    (first + inside % height, inside / height)
}

/// `C = epilogue(A B)`, or with a split plan the f32 sums of one part of K.
///
/// Grid: tiles of C, 1, batches times parts. Operands by [`Plan::layout`]; `a_row`, `b_row`, `a_batch`, `b_batch` are distances in
/// vectors, `part` is the number of tiles of K of a part. `out` is `[batches, m, n]`, or `[parts, batches, m, columns]` with a
/// split plan; `sums`, with [`Plan::sums_of`], `[parts, depth / chunk, m or n]`.
#[cube(launch_unchecked)]
pub fn gemm<E: Numeric, O: Numeric, WA: Size, WB: Size, V: Size, NA: Size, NB: Size, ND: Size>(
    left: &[Vector<E, WA>],
    right: &[Vector<E, WB>],
    out: &mut [O],
    bias: ComptimeOption<&[E]>,
    other: ComptimeOption<&[E]>,
    mut saved: ComptimeOption<&mut [E]>,
    sums: ComptimeOption<&mut [f32]>,
    m: u32,
    n: u32,
    k: u32,
    a_row: u32,
    a_batch: u32,
    b_row: u32,
    b_batch: u32,
    part: u32,
    parts: u32,
    scale: f32,
    #[comptime] plan: Plan,
    #[define(E, O)] _types: [ElemType; 2],
    #[define(WA, WB, V, NA, NB, ND)] _sizes: [usize; 6],
) {
    let (rows, columns) = comptime!(plan.result_tile());
    let (rows, columns) = comptime!((rows as u32, columns as u32));
    let (row, column) = tile_of(CUBE_POS_X, m.div_ceil(rows), n.div_ceil(columns));
    let batch = CUBE_POS_Z / parts;
    let first = CUBE_POS_Z % parts * part;
    let tiles = max(k.div_ceil(comptime!(plan.tiling.depth as u32)), 1);
    let start = if comptime!(plan.split) {
        (CUBE_POS_Z % parts * (CUBE_COUNT_Z / parts) + batch) * m * n
    } else {
        batch * m * n
    };
    let job = Job {
        factors: Factors {
            row: row * rows,
            column: column * columns,
            first,
            count: min(part, tiles - first),
            a: Matrix {
                start: batch * a_batch,
                stride: a_row,
                outer: m,
                inner: k,
            },
            b: Matrix {
                start: batch * b_batch,
                stride: b_row,
                outer: n,
                inner: k,
            },
        },
        results: Results {
            m,
            n,
            start,
            bias: 0,
        },
    };
    let mut own_sums = Array::<f32>::new(comptime!(plan.sums_held()));
    #[unroll]
    for i in 0..comptime!(plan.sums_held()) {
        own_sums[i] = 0.0;
    }
    work::<E, O, WA, WB, V, NA, NB, ND>(
        left,
        right,
        out,
        &bias,
        &other,
        &mut saved,
        &job,
        &mut own_sums,
        scale,
        plan,
    );
    if comptime!(plan.sums_of.is_some()) {
        let role = comptime!(plan.sums_of.unwrap_or(Role::Rows));
        // Those who have the operand's first tile of the other dimension write.
        let (along, other, extent) = if comptime!(role == Role::Rows) {
            (job.factors.row, job.factors.column, m)
        } else {
            (job.factors.column, job.factors.row, n)
        };
        if other == 0 {
            write_sums(
                &own_sums,
                sums.unwrap(),
                CUBE_POS_Z % parts,
                along,
                extent,
                comptime!(plan.operand(role)),
            );
        }
    }
}

/// Computes a tile of C and writes it.
#[cube]
pub fn work<E: Numeric, O: Numeric, WA: Size, WB: Size, V: Size, NA: Size, NB: Size, ND: Size>(
    left: &[Vector<E, WA>],
    right: &[Vector<E, WB>],
    out: &mut [O],
    bias: &ComptimeOption<&[E]>,
    other: &ComptimeOption<&[E]>,
    saved: &mut ComptimeOption<&mut [E]>,
    job: &Job,
    operand_sums: &mut Array<f32>,
    scale: f32,
    #[comptime] plan: Plan,
) {
    let count = comptime!(plan.tiling.tiles.0 * plan.tiling.tiles.1);
    let mut sums = Array::<Vector<f32, ND>>::new(count);
    #[unroll]
    for i in 0..count {
        sums[i] = Vector::<f32, ND>::zero();
    }
    let own = own_place(plan);
    accumulate::<E, WA, WB, V, NA, NB, ND>(
        left,
        right,
        &job.factors,
        &own,
        &mut sums,
        operand_sums,
        plan,
    );
    if comptime!(plan.loops()) {
        // One text.
        write::<E, O, ND>(&sums, out, bias, other, saved, job, &own, scale, true, plan);
    } else {
        write_quickly::<E, O, ND>(&sums, out, bias, other, saved, job, &own, scale, plan);
    }
}

/// [`write`], where whether the tile lies within C is decided once for all its elements.
#[cube]
fn write_quickly<E: Numeric, O: Numeric, ND: Size>(
    sums: &Array<Vector<f32, ND>>,
    out: &mut [O],
    bias: &ComptimeOption<&[E]>,
    other: &ComptimeOption<&[E]>,
    saved: &mut ComptimeOption<&mut [E]>,
    job: &Job,
    own: &Place,
    scale: f32,
    #[comptime] plan: Plan,
) {
    let (rows, columns) = comptime!(plan.result_tile());
    let within = job.factors.row + comptime!(rows as u32) <= job.results.m
        && job.factors.column + comptime!(columns as u32) <= job.results.n;
    if within {
        write::<E, O, ND>(sums, out, bias, other, saved, job, own, scale, false, plan);
    } else {
        write::<E, O, ND>(sums, out, bias, other, saved, job, own, scale, true, plan);
    }
}

/// Writes a wave's tiles of C; with `edge`, only what lies within it.
#[cube]
fn write<E: Numeric, O: Numeric, ND: Size>(
    sums: &Array<Vector<f32, ND>>,
    out: &mut [O],
    bias: &ComptimeOption<&[E]>,
    other: &ComptimeOption<&[E]>,
    saved: &mut ComptimeOption<&mut [E]>,
    job: &Job,
    own: &Place,
    scale: f32,
    #[comptime] edge: bool,
    #[comptime] plan: Plan,
) {
    let instruction = comptime!(plan.instruction);
    let (rows, columns) = comptime!(plan.tiling.tiles);
    let paired = comptime!(plan.paired());
    // Tiles of columns that one result has, and the distance of the second sum's tile.
    let (results, second) = comptime!(if paired {
        (columns / 2, columns / 2)
    } else {
        (columns, 0)
    });
    let own_column = if comptime!(paired) {
        own.column / 2
    } else {
        own.column
    };
    #[unroll]
    for i in 0..rows {
        #[unroll]
        for j in 0..results {
            let first = sums[comptime!(i * columns + j)];
            let other_sum = sums[comptime!(i * columns + j + second)];
            #[unroll]
            for e in 0..comptime!(instruction.d.elements) {
                let row = job.factors.row
                    + own.row
                    + comptime!((i * instruction.m) as u32)
                    + coordinate(own.lane, e, instruction.d.row);
                let column = job.factors.column
                    + own_column
                    + comptime!((j * instruction.n) as u32)
                    + coordinate(own.lane, e, instruction.d.column);
                if comptime!(edge) {
                    if row < job.results.m && column < job.results.n {
                        finish(
                            first.extract(e),
                            other_sum.extract(e),
                            row,
                            column,
                            &job.results,
                            scale,
                            out,
                            bias,
                            other,
                            saved,
                            comptime!(plan.tile_epilogue()),
                            plan.target,
                        );
                    }
                } else {
                    finish(
                        first.extract(e),
                        other_sum.extract(e),
                        row,
                        column,
                        &job.results,
                        scale,
                        out,
                        bias,
                        other,
                        saved,
                        comptime!(plan.tile_epilogue()),
                        plan.target,
                    );
                }
            }
        }
    }
}
