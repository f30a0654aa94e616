//! The register tile: what stands in the innermost loop of every product.

use pulp::{Arch, Simd, WithSimd};

use super::Piece;
use crate::prefetch::prefetch;

/// The most rows that a tile has on any CPU.
const MOST_ROWS: usize = 12;

/// Vectors that a row of a tile takes.
pub(crate) const VECTORS: usize = 2;

/// Sizes of the register tile, which are the widths of the panels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    /// Width of the left operand's panels.
    pub rows: usize,
    /// Width of the right operand's panels.
    pub columns: usize,
}

impl Tile {
    /// That of the CPU that this runs on.
    pub fn of_this_cpu() -> Self {
        struct Sizes;
        impl WithSimd for Sizes {
            type Output = Tile;
            #[inline(always)]
            fn with_simd<S: Simd>(self, _: S) -> Tile {
                Tile {
                    rows: if many_registers::<S>() { MOST_ROWS } else { 6 },
                    columns: VECTORS * S::F32_LANES,
                }
            }
        }
        Arch::new().dispatch(Sizes)
    }

    /// Multiplies a panel of each operand.
    #[inline]
    pub(super) fn multiply(self, panels: [&[f32]; 2], pairs: bool, piece: &mut Piece) {
        if pairs {
            return super::halves::multiply(panels, piece);
        }
        struct Multiply<'a, 'b, 'c>([&'a [f32]; 2], &'b mut Piece<'c>);
        impl WithSimd for Multiply<'_, '_, '_> {
            type Output = ();
            #[inline(always)]
            fn with_simd<S: Simd>(self, simd: S) {
                let Self(panels, piece) = self;
                if many_registers::<S>() {
                    multiply::<S, MOST_ROWS>(simd, panels, piece);
                } else {
                    multiply::<S, 6>(simd, panels, piece);
                }
            }
        }
        Arch::new().dispatch(Multiply(panels, piece));
    }
}

/// Twelve rows of two vectors need 24 registers, and three for what is multiplied.
pub(crate) const fn many_registers<S: Simd>() -> bool {
    S::REGISTER_COUNT >= 32
}

#[inline(always)]
fn multiply<S: Simd, const ROWS: usize>(simd: S, [left, right]: [&[f32]; 2], piece: &mut Piece) {
    let (left, _) = left.as_chunks::<ROWS>();
    let (right, _) = S::as_simd_f32s(right);
    let (right, _) = right.as_chunks::<VECTORS>();
    for row in piece.rows.clone() {
        prefetch(piece.row(row));
    }
    // Loaded by one, so that they begin in registers.
    let zero = simd.splat_f32s(std::hint::black_box(0.0));
    let mut sums = [[zero; VECTORS]; ROWS];
    for (left, right) in left.iter().zip(right) {
        for (row, &x) in sums.iter_mut().zip(left) {
            let x = simd.splat_f32s(x);
            for (sum, &y) in row.iter_mut().zip(right) {
                *sum = simd.mul_add_e_f32s(x, y, *sum);
            }
        }
    }
    let add = piece.add;
    for (row, sums) in piece.rows.clone().zip(&sums) {
        let out = piece.row(row);
        let (whole, rest) = S::as_mut_simd_f32s(out);
        for (out, &sum) in whole.iter_mut().zip(sums) {
            *out = if add { simd.add_f32s(*out, sum) } else { sum };
        }
        if !rest.is_empty() {
            let sum = sums[whole.len()];
            let sum = match add {
                true => simd.add_f32s(simd.partial_load_f32s(rest), sum),
                false => sum,
            };
            simd.partial_store_f32s(rest, sum);
        }
    }
}
