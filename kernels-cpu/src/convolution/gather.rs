//! A product whose left operand is read where it lies: one step a row, one a place of the depth. Patches of an image are such a
//! matrix, so that nothing is copied for each element of a kernel.

use pulp::{Arch, Simd, WithSimd};

/// Where a place of the depth is: a step in what is gathered, and a line of the other operand.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub left: usize,
    pub right: usize,
}

/// `[rows, depth]`: element (r, d) is `values[rows[r] + depth[d].left]`.
#[derive(Clone, Copy)]
pub(super) struct Gathered<'a> {
    pub values: &'a [f32],
    pub rows: &'a [usize],
    pub depth: &'a [Step],
}

impl Gathered<'_> {
    /// Elements from the first to the last one that a row has.
    pub fn reach(&self) -> usize {
        self.depth
            .iter()
            .map(|step| step.left + 1)
            .max()
            .unwrap_or(0)
    }
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

/// `left right` into `out` `[rows, width]`, or added to it; `right` has lines of
/// [`width`] elements.
pub(super) fn multiply(left: Gathered, right: &[f32], out: &mut [f32], add: bool) {
    let width = width();
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
        let reach = self.left.reach();
        let (out, _) = S::as_mut_simd_f32s(self.out);
        let (right, _) = S::as_simd_f32s(self.right);
        for (rows, out) in self.left.rows.chunks(ROWS).zip(out.chunks_mut(ROWS)) {
            let tile = Tile {
                left: self.left,
                rows,
                reach,
                add: self.add,
            };
            if rows.len() > FEW {
                tile.multiply::<S, ROWS>(simd, right, out);
            } else if rows.len() > LEAST {
                tile.multiply::<S, FEW>(simd, right, out);
            } else {
                tile.multiply::<S, LEAST>(simd, right, out);
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
        for step in self.left.depth {
            let y = right[step.right];
            for (sum, line) in sums.iter_mut().zip(&lines) {
                *sum = simd.mul_add_e_f32s(simd.splat_f32s(line[step.left]), y, *sum);
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
const COLUMNS: usize = 16;
const BLOCK: usize = 64;

/// Calls `write` with pieces of the columns of `[rows, width]`, whose rows are taken in `order`: the column, its first row's place
/// there, and the values.
pub(super) fn for_columns(
    values: &[f32],
    order: &[usize],
    columns: usize,
    mut write: impl FnMut(usize, usize, &[f32]),
) {
    let width = width();
    let mut turned = [[0.0; BLOCK]; COLUMNS];
    for (block, rows) in order.chunks(BLOCK).enumerate() {
        for first in (0..columns).step_by(COLUMNS) {
            for (at, rows) in rows.chunks(SIDE).enumerate() {
                // Rows that are not there repeat the first one.
                let line = |i: usize| {
                    let row = rows.get(i).unwrap_or(&rows[0]);
                    &values[row * width + first..(row + 1) * width]
                };
                let lines = [line(0), line(1), line(2), line(3)];
                for (squares, j) in turned.chunks_exact_mut(SIDE).zip((0..width).step_by(SIDE)) {
                    let square = lines.map(|line| square(&line[j..]));
                    for (to, column) in squares.iter_mut().zip(turn(square)) {
                        to.as_chunks_mut::<SIDE>().0[at] = column;
                    }
                }
            }
            for (i, piece) in turned.iter().take(columns - first).enumerate() {
                write(first + i, block * BLOCK, &piece[..rows.len()]);
            }
        }
    }
}

/// The first elements of a line; zeros where a vector has fewer.
#[inline(always)]
fn square(line: &[f32]) -> [f32; SIDE] {
    let short = || std::array::from_fn(|i| line.get(i).copied().unwrap_or(0.0));
    line.first_chunk().copied().unwrap_or_else(short)
}

/// Squares of this side are turned in registers.
const SIDE: usize = 4;

/// Rows become columns. (Compilers do not find these instructions.)
#[cfg(target_arch = "x86_64")]
#[inline(always)]
#[expect(unsafe_code, reason = "instructions")]
fn turn(rows: [[f32; SIDE]; SIDE]) -> [[f32; SIDE]; SIDE] {
    use std::arch::x86_64::{_mm_movehl_ps, _mm_movelh_ps, _mm_unpackhi_ps, _mm_unpacklo_ps};
    let [a, b, c, d] = rows.map(pulp::cast);
    // SAFETY: every x86-64 has SSE.
    let columns = unsafe {
        let [low, high] = [_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b)];
        let [low_2, high_2] = [_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d)];
        [
            _mm_movelh_ps(low, low_2),
            _mm_movehl_ps(low_2, low),
            _mm_movelh_ps(high, high_2),
            _mm_movehl_ps(high_2, high),
        ]
    };
    columns.map(pulp::cast)
}

/// Rows become columns.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn turn(rows: [[f32; SIDE]; SIDE]) -> [[f32; SIDE]; SIDE] {
    [0, 1, 2, 3].map(|column| rows.map(|row| row[column]))
}
