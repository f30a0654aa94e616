//! Tiles in registers: products whose lanes are queries or elements of rows, and what is done to a tile of scores.

use pulp::Simd;

use crate::product::{Tile, VECTORS};

/// A row of a tile.
pub type Pair<S> = [<S as Simd>::f32s; VECTORS];

/// Columns of a tile.
#[inline(always)]
pub fn width<S: Simd>() -> usize {
    VECTORS * S::F32_LANES
}

/// Lengths of rows in scratch memory.
#[derive(Clone, Copy)]
pub struct Lengths {
    /// Of a row of a tensor.
    pub head_dim: usize,
    /// That, filled up to a multiple of a tile's rows.
    pub stride: usize,
    /// That, filled up to a multiple of a tile's columns.
    pub wide: usize,
    /// A tile's columns.
    pub width: usize,
}

impl Lengths {
    /// On the CPU that this runs on.
    pub fn new(head_dim: usize) -> Self {
        let width = Tile::of_this_cpu().columns;
        Self {
            head_dim,
            stride: head_dim.next_multiple_of(MOST_ROWS),
            wide: head_dim.next_multiple_of(width),
            width,
        }
    }
}

/// Rows of a tile, or twice as many.
pub const MOST_ROWS: usize = 8;

/// The slice as rows of a tile.
#[inline(always)]
pub fn pairs<S: Simd>(x: &[f32]) -> &[Pair<S>] {
    S::as_simd_f32s(x).0.as_chunks().0
}

/// As [`pairs`], to be changed.
#[inline(always)]
pub fn pairs_mut<S: Simd>(x: &mut [f32]) -> &mut [Pair<S>] {
    S::as_mut_simd_f32s(x).0.as_chunks_mut().0
}

/// The same number in a row of a tile.
#[inline(always)]
pub fn splat<S: Simd>(simd: S, x: f32) -> Pair<S> {
    [simd.splat_f32s(x); VECTORS]
}

/// Adds `left right` to a tile: rows of the left operand are contiguous over the depth and lie `stride` elements apart, those of the
/// right one lie `step` pairs apart.
#[inline(always)]
pub fn rows_times<S: Simd, const R: usize>(
    simd: S,
    depth: usize,
    (left, stride): (&[f32], usize),
    (right, step): (&[Pair<S>], usize),
    sums: &mut [Pair<S>; R],
) {
    let mut rows = [&left[..0]; R];
    for (r, row) in rows.iter_mut().enumerate() {
        *row = &left[r * stride..][..depth];
    }
    for d in 0..depth {
        let right = right[d * step];
        for r in 0..R {
            let x = simd.splat_f32s(rows[r][d]);
            for v in 0..VECTORS {
                sums[r][v] = simd.mul_add_e_f32s(x, right[v], sums[r][v]);
            }
        }
    }
}

/// Adds `left^T right` to a tile: `left` begins at the tile's first row, and has `stride` elements for each row of `right`.
#[inline(always)]
pub fn columns_times<S: Simd, const R: usize>(
    simd: S,
    (left, stride): (&[f32], usize),
    right: &[Pair<S>],
    sums: &mut [Pair<S>; R],
) {
    for (d, right) in right.iter().enumerate() {
        let left = &left[d * stride..][..R];
        for r in 0..R {
            let x = simd.splat_f32s(left[r]);
            for v in 0..VECTORS {
                sums[r][v] = simd.mul_add_e_f32s(x, right[v], sums[r][v]);
            }
        }
    }
}

/// `to = factor to + left^T right` of a panel `[rows, lanes]`: `left` has `stride` elements for each row of `right`, and as many rows
/// as it has elements are a multiple of R.
#[inline(always)]
pub fn add_columns_times<S: Simd, const R: usize>(
    simd: S,
    (left, stride): (&[f32], usize),
    right: &[Pair<S>],
    factor: Pair<S>,
    to: &mut [f32],
) {
    let (tiles, _) = pairs_mut::<S>(to).as_chunks_mut::<R>();
    for (i, to) in tiles.iter_mut().enumerate() {
        let mut sums = [splat(simd, 0.0); R];
        columns_times(simd, (&left[i * R..], stride), right, &mut sums);
        for r in 0..R {
            for v in 0..VECTORS {
                to[r][v] = simd.mul_add_e_f32s(to[r][v], factor[v], sums[r][v]);
            }
        }
    }
}

/// `e^x` of what is at most a little above 0, with an error of two units in the last place; 0 below -87.7. NaN stays NaN.
///
/// As [`crate::math::exp`], which takes a step more for large numbers.
#[inline(always)]
pub fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    /// Rounded to powers of two it is -127, the exponent of zero.
    const LEAST: f32 = -88.0;
    /// Added and taken away, it rounds to an integer, which is in the last bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let least = simd.splat_f32s(LEAST);
    // A comparison, not a maximum, which may lose a NaN.
    let x = simd.select_f32s(simd.less_than_f32s(x, least), least, x);
    let log2e = simd.splat_f32s(std::f32::consts::LOG2_E);
    let sum = simd.mul_add_e_f32s(x, log2e, simd.splat_f32s(ROUND));
    let n = simd.sub_f32s(sum, simd.splat_f32s(ROUND));
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(-LN2_HIGH), x);
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(-LN2_LOW), r);
    let mut p = simd.splat_f32s(1.987_569_1e-4);
    for c in [
        1.398_2e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_6e-1,
        0.5,
    ] {
        p = simd.mul_add_e_f32s(p, r, simd.splat_f32s(c));
    }
    let y = simd.mul_add_e_f32s(p, simd.mul_f32s(r, r), r);
    let y = simd.add_f32s(y, simd.splat_f32s(1.0));
    let bias = simd.splat_u32s(ROUND.to_bits() - 127);
    let exponent = simd.sub_u32s(simd.transmute_u32s_f32s(sum), bias);
    let power = simd.wrapping_dyn_shl_u32s(exponent, simd.splat_u32s(23));
    simd.mul_f32s(y, simd.transmute_f32s_u32s(power))
}

/// Writes the transposed of `rows` rows of `columns` elements; as blocks of 4 by 4, which compilers shuffle in registers.
#[inline(always)]
pub fn transpose(
    (from, from_stride): (&[f32], usize),
    [rows, columns]: [usize; 2],
    (to, to_stride): (&mut [f32], usize),
) {
    let whole = [rows / 4 * 4, columns / 4 * 4];
    for row in (0..whole[0]).step_by(4) {
        for column in (0..whole[1]).step_by(4) {
            let lines = [0, 1, 2, 3].map(|i| {
                let line = &from[(row + i) * from_stride + column..][..4];
                [line[0], line[1], line[2], line[3]]
            });
            for i in 0..4 {
                let line = lines.map(|line| line[i]);
                to[(column + i) * to_stride + row..][..4].copy_from_slice(&line);
            }
        }
    }
    for row in 0..rows {
        let first = if row < whole[0] { whole[1] } else { 0 };
        for column in first..columns {
            to[column * to_stride + row] = from[row * from_stride + column];
        }
    }
}

/// The part of `memory` that begins where a cache line does.
pub fn aligned(memory: &mut [f32]) -> &mut [f32] {
    let skip = memory.as_ptr().align_offset(LINE * size_of::<f32>());
    &mut memory[skip..]
}

/// Elements of a cache line.
pub const LINE: usize = 16;

/// Takes `len` elements off the front of `memory`, and so many that the rest begins with a cache line.
pub fn take<'a>(memory: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
    let (first, rest) = std::mem::take(memory).split_at_mut(len.next_multiple_of(LINE));
    *memory = rest;
    &mut first[..len]
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulp::{Arch, WithSimd};

    #[test]
    fn exp_is_right_to_two_units_in_the_last_place() {
        struct All<'a>(&'a mut [f32]);
        impl WithSimd for All<'_> {
            type Output = ();
            #[inline(always)]
            fn with_simd<S: Simd>(self, simd: S) {
                for x in S::as_mut_simd_f32s(self.0).0 {
                    *x = exp(simd, *x);
                }
            }
        }
        let count = 870_016;
        let mut x: Vec<f32> = (0..count).map(|i| i as f32 * -1e-4 + 0.01).collect();
        let before = x.clone();
        Arch::new().dispatch(All(&mut x));
        for (&x, &y) in before.iter().zip(&x) {
            let expected = f64::from(x).exp();
            let error = (f64::from(y) - expected).abs() / expected;
            assert!(error < 2.0 * f64::from(f32::EPSILON), "{x}: {y} {error:e}");
        }
        let mut x = [f32::NEG_INFINITY, -1e30, -88.0, f32::NAN].repeat(LINE);
        Arch::new().dispatch(All(&mut x));
        for x in x.chunks(4) {
            assert!(x[..3] == [0.0; 3] && x[3].is_nan(), "{x:?}");
        }
    }
}
