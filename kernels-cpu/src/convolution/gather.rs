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

/// Columns of the right operand that lie side by side: two vectors, or one where that is enough.
pub(super) fn widths() -> [usize; 2] {
    struct Lanes;
    impl WithSimd for Lanes {
        type Output = usize;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            S::F32_LANES
        }
    }
    let lanes = Arch::new().dispatch(Lanes);
    [lanes, 2 * lanes]
}

/// `left right` into `out` `[rows, width]`, or added to it; `right` is `[depth, width]`, and `width` one of [`widths`].
pub(super) fn multiply(left: Gathered, right: &[f32], width: usize, out: &mut [f32], add: bool) {
    assert_eq!(right.len(), left.depth.len() * width, "the right operand");
    assert_eq!(out.len(), left.rows.len() * width, "the result");
    Arch::new().dispatch(Multiply {
        left,
        right,
        width,
        out,
        add,
    });
}

struct Multiply<'a> {
    left: Gathered<'a>,
    right: &'a [f32],
    width: usize,
    out: &'a mut [f32],
    add: bool,
}

impl WithSimd for Multiply<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // Twelve rows of two vectors need 24 registers, and three for what is multiplied.
        match (S::REGISTER_COUNT >= 32, self.width == S::F32_LANES) {
            (true, false) => self.tiles::<S, 2, 12, 8, 4>(simd),
            (true, true) => self.tiles::<S, 1, 12, 8, 4>(simd),
            (false, false) => self.tiles::<S, 2, 6, 4, 2>(simd),
            (false, true) => self.tiles::<S, 1, 6, 4, 2>(simd),
        }
    }
}

impl Multiply<'_> {
    /// Tiles of the most rows; the last one has no more than it needs.
    #[inline(always)]
    fn tiles<S: Simd, const V: usize, const MOST: usize, const FEW: usize, const LEAST: usize>(
        self,
        simd: S,
    ) {
        let reach = self.left.depth.iter().max().map_or(0, |most| most + 1);
        let tiles = self.left.rows.chunks(MOST);
        for (rows, out) in tiles.zip(self.out.chunks_mut(MOST * self.width)) {
            let tile = Tile {
                left: self.left,
                rows,
                reach,
                right: self.right,
                add: self.add,
            };
            if rows.len() > FEW {
                tile.multiply::<S, V, MOST>(simd, out);
            } else if rows.len() > LEAST {
                tile.multiply::<S, V, FEW>(simd, out);
            } else {
                tile.multiply::<S, V, LEAST>(simd, out);
            }
        }
    }
}

struct Tile<'a> {
    left: Gathered<'a>,
    rows: &'a [usize],
    reach: usize,
    right: &'a [f32],
    add: bool,
}

impl Tile<'_> {
    #[inline(always)]
    fn multiply<S: Simd, const V: usize, const ROWS: usize>(self, simd: S, out: &mut [f32]) {
        // Rows that are not there repeat the last one. All lines have one length, so that one check of bounds does for all.
        let line = |i: usize| {
            let start = self.rows[i.min(self.rows.len() - 1)];
            &self.left.values[start..start + self.reach]
        };
        let lines: [&[f32]; ROWS] = std::array::from_fn(line);
        let mut sums = [[simd.splat_f32s(0.0); V]; ROWS];
        let (right, _) = S::as_simd_f32s(self.right).0.as_chunks::<V>();
        for (&place, right) in self.left.depth.iter().zip(right) {
            for (sums, line) in sums.iter_mut().zip(&lines) {
                let x = simd.splat_f32s(line[place]);
                for (sum, &y) in sums.iter_mut().zip(right) {
                    *sum = simd.mul_add_e_f32s(x, y, *sum);
                }
            }
        }
        let (out, _) = S::as_mut_simd_f32s(out).0.as_chunks_mut::<V>();
        for (out, sums) in out.iter_mut().zip(sums) {
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = if self.add {
                    simd.add_f32s(*out, sum)
                } else {
                    sum
                };
            }
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
