//! A product whose left operand is read where it lies: one step a row, one a place of the depth. Patches of an image are such a
//! matrix, so that nothing is copied for each element of a kernel.

use pulp::{Arch, Simd, WithSimd};

/// `[rows, depth]`: element (r, d) is `values[rows[r] + depth[d]]`.
#[derive(Clone, Copy)]
pub(super) struct Gathered<'a> {
    pub values: &'a [f32],
    pub rows: &'a [usize],
    pub depth: &'a [usize],
}

/// Columns of the right operand that lie side by side: a vector. (Of two vectors, LLVM spills the sums.)
pub(super) fn width() -> usize {
    struct Lanes;
    impl WithSimd for Lanes {
        type Output = usize;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            S::F32_LANES
        }
    }
    Arch::new().dispatch(Lanes)
}

/// `left right` into `out` `[rows, width]`, or added to it; `right` is `[depth, width]`.
pub(super) fn multiply(left: Gathered, right: &[f32], out: &mut [f32], add: bool) {
    let width = width();
    assert_eq!(right.len(), left.depth.len() * width, "the right operand");
    assert_eq!(out.len(), left.rows.len() * width, "the result");
    Arch::new().dispatch(Multiply {
        left,
        right,
        out,
        add,
    });
}

/// Rows of the register tile: each needs a register for its sums and one for its address.
const ROWS: usize = 12;
/// Those of the tiles for the last rows.
const FEW: usize = 8;
const LEAST: usize = 4;

struct Multiply<'a> {
    left: Gathered<'a>,
    right: &'a [f32],
    out: &'a mut [f32],
    add: bool,
}

impl WithSimd for Multiply<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let reach = self.left.depth.iter().max().map_or(0, |most| most + 1);
        let (out, _) = S::as_mut_simd_f32s(self.out);
        let (right, _) = S::as_simd_f32s(self.right);
        for (rows, out) in self.left.rows.chunks(ROWS).zip(out.chunks_mut(ROWS)) {
            let tile = Tile {
                left: self.left,
                rows,
                reach,
                add: self.add,
            };
            match rows.len() {
                0..=LEAST => tile.multiply::<S, LEAST>(simd, right, out),
                0..=FEW => tile.multiply::<S, FEW>(simd, right, out),
                _ => tile.multiply::<S, ROWS>(simd, right, out),
            }
        }
    }
}

struct Tile<'a> {
    left: Gathered<'a>,
    rows: &'a [usize],
    reach: usize,
    add: bool,
}

impl Tile<'_> {
    #[inline(always)]
    fn multiply<S: Simd, const ROWS: usize>(self, simd: S, right: &[S::f32s], out: &mut [S::f32s]) {
        // Rows that are not there repeat the last one. All lines have one length, so that one check of bounds does for all.
        let line = |i: usize| {
            let start = self.rows[i.min(self.rows.len() - 1)];
            &self.left.values[start..start + self.reach]
        };
        let lines: [&[f32]; ROWS] = std::array::from_fn(line);
        let mut sums = [simd.splat_f32s(0.0); ROWS];
        for (&place, &y) in self.left.depth.iter().zip(right) {
            for (sum, line) in sums.iter_mut().zip(&lines) {
                *sum = simd.mul_add_e_f32s(simd.splat_f32s(line[place]), y, *sum);
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = match self.add {
                true => simd.add_f32s(*out, sum),
                false => sum,
            };
        }
    }
}

/// Columns that are written at a time, and rows.
const BLOCK: usize = 16;

/// Calls `write` with pieces of the columns of `[rows, width]`: the column, its first row, and the values.
pub(super) fn for_columns(
    values: &[f32],
    width: usize,
    columns: usize,
    write: impl FnMut(usize, usize, &[f32]),
) {
    struct Columns<'a, F>(&'a [f32], usize, usize, F);
    impl<F: FnMut(usize, usize, &[f32])> WithSimd for Columns<'_, F> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) {
            let Self(values, width, columns, mut write) = self;
            for (block, rows) in values.chunks(BLOCK * width).enumerate() {
                for first in (0..columns).step_by(BLOCK) {
                    let mut turned = [[0.0; BLOCK]; BLOCK];
                    let count = (width - first).min(BLOCK);
                    turn(rows, width, first..first + count, &mut turned);
                    let pieces = turned.iter().take(columns - first);
                    for (i, piece) in pieces.enumerate() {
                        write(first + i, block * BLOCK, &piece[..rows.len() / width]);
                    }
                }
            }
        }
    }
    Arch::new().dispatch(Columns(values, width, columns, write));
}

#[inline(always)]
fn turn(
    rows: &[f32],
    width: usize,
    columns: std::ops::Range<usize>,
    turned: &mut [[f32; BLOCK]; BLOCK],
) {
    for (i, row) in rows.chunks_exact(width).enumerate() {
        for (to, &x) in turned.iter_mut().zip(&row[columns.clone()]) {
            to[i] = x;
        }
    }
}
