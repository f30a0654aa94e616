//! A matrix of bf16 as an operand: as pairs where the CPU multiplies these (AVX512-BF16), widened to f32 elsewhere.

#[cfg(test)]
mod tests;

use std::ops::Range;

use half::bf16;
use half::slice::HalfFloatSliceExt;
use pulp::{Arch, bytemuck};

use super::transpose::transpose;
use super::{Operand, Piece, Tile};

/// Whether this CPU multiplies pairs of bf16.
pub fn multiplies_pairs() -> bool {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512bf16") {
        let Tile { rows, columns } = Tile::of_this_cpu();
        return [rows, columns] == [ROWS, COLUMNS];
    }
    false
}

/// A matrix of bf16, or a view of one, as [`Matrix`](super::Matrix).
#[derive(Clone, Copy)]
pub struct Halves<'a> {
    values: &'a [u16],
    across: usize,
    deep: usize,
    /// What is summed over.
    depth: usize,
    pairs: bool,
}

impl<'a> Halves<'a> {
    /// As [`Matrix::new`](super::Matrix::new), of so many places that are summed over.
    pub fn new(values: &'a [bf16], across: usize, deep: usize, depth: usize) -> Self {
        Self {
            values: values.reinterpret_cast(),
            across,
            deep,
            depth,
            pairs: multiplies_pairs(),
        }
    }

    /// The depth of a product of such operands.
    pub fn places(depth: usize) -> usize {
        if multiplies_pairs() {
            depth.div_ceil(2)
        } else {
            depth
        }
    }

    /// What a place is packed as.
    #[inline(always)]
    fn element(&self, i: usize, place: usize) -> f32 {
        let at = |d: usize| match d < self.depth {
            true => u32::from(self.values[i * self.across + d * self.deep]),
            false => 0,
        };
        f32::from_bits(match self.pairs {
            true => at(2 * place) | at(2 * place + 1) << 16,
            false => at(place) << 16,
        })
    }

    /// A panel whose places are contiguous over the rows, or the columns, of the operand.
    #[inline(always)]
    fn interleave(
        &self,
        first: usize,
        count: usize,
        depth: Range<usize>,
        rows: &mut [f32],
        width: usize,
    ) {
        let line = |d: usize| &self.values[d * self.deep + first..][..count];
        for (place, row) in depth.zip(rows.chunks_exact_mut(width)) {
            let row = &mut row[..count];
            if !self.pairs {
                for (x, &value) in row.iter_mut().zip(line(place)) {
                    *x = f32::from_bits(u32::from(value) << 16);
                }
            } else if 2 * place + 1 < self.depth {
                let lines = line(2 * place).iter().zip(line(2 * place + 1));
                for (x, (&low, &high)) in row.iter_mut().zip(lines) {
                    *x = f32::from_bits(u32::from(low) | u32::from(high) << 16);
                }
            } else {
                for (x, &low) in row.iter_mut().zip(line(2 * place)) {
                    *x = f32::from_bits(u32::from(low));
                }
            }
        }
    }

    /// A line of pairs, where it lies as f32 do.
    fn line(&self, i: usize, depth: Range<usize>) -> Option<&'a [f32]> {
        let values = self.values.get(i * self.across + 2 * depth.start..)?;
        bytemuck::try_cast_slice(values.get(..2 * depth.len())?).ok()
    }
}

impl Operand for Halves<'_> {
    fn pack(&self, across: Range<usize>, depth: Range<usize>, width: usize, panel: &mut [f32]) {
        let count = across.len();
        if count < width {
            panel.fill(0.0);
        }
        if self.across == 1 {
            return Arch::new().dispatch(
                #[inline(always)]
                || match (count == width, width) {
                    // A known length is a few instructions.
                    (true, COLUMNS) => {
                        self.interleave(across.start, COLUMNS, depth, panel, COLUMNS)
                    }
                    (true, ROWS) => self.interleave(across.start, ROWS, depth, panel, ROWS),
                    _ => self.interleave(across.start, count, depth, panel, width),
                },
            );
        }
        let whole = 2 * depth.end <= self.depth;
        let lie_as_pairs = || {
            across
                .clone()
                .all(|i| self.line(i, depth.clone()).is_some())
        };
        if self.deep == 1 && self.pairs && whole && lie_as_pairs() {
            let line = |i: usize| {
                self.line(across.start + i, depth.clone())
                    .unwrap_or_default()
            };
            return transpose(count, line, width, panel);
        }
        for (place, row) in depth.zip(panel.chunks_exact_mut(width)) {
            for (x, i) in row.iter_mut().zip(across.clone()) {
                *x = self.element(i, place);
            }
        }
    }

    fn pairs(&self) -> bool {
        self.pairs
    }
}

const ROWS: usize = 12;
const COLUMNS: usize = 32;

/// Multiplies panels of pairs.
pub(super) fn multiply(panels: [&[f32]; 2], piece: &mut Piece) {
    #[cfg(target_arch = "x86_64")]
    {
        assert!(
            multiplies_pairs(),
            "pairs are packed where they are multiplied"
        );
        #[expect(
            unsafe_code,
            reason = "what needs an instruction set is unsafe to call"
        )]
        // SAFETY: the CPU has AVX512-BF16.
        unsafe {
            x86::multiply(panels, piece);
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!(
        "pairs are packed where they are multiplied: {} {:?}",
        panels.len(),
        piece.rows
    );
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{COLUMNS, Piece, ROWS};

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn multiply([left, right]: [&[f32]; 2], piece: &mut Piece) {
        let (left, _) = left.as_chunks::<ROWS>();
        let (right, _) = right.as_chunks::<COLUMNS>();
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        for (left, right) in left.iter().zip(right) {
            let (halves, _) = right.as_chunks::<16>();
            let [y, z] = [pairs(load(&halves[0])), pairs(load(&halves[1]))];
            for (row, &x) in sums.iter_mut().zip(left) {
                let x = pairs(_mm512_set1_ps(x));
                row[0] = _mm512_dpbf16_ps(row[0], x, y);
                row[1] = _mm512_dpbf16_ps(row[1], x, z);
            }
        }
        let add = piece.add;
        for (row, sums) in piece.rows.clone().zip(sums) {
            let mut values = [0.0; COLUMNS];
            let (halves, _) = values.as_chunks_mut::<16>();
            for (half, sum) in halves.iter_mut().zip(sums) {
                store(half, sum);
            }
            let out = piece.row(row);
            if add {
                out.iter_mut().zip(values).for_each(|(out, x)| *out += x);
            } else {
                out.copy_from_slice(&values[..out.len()]);
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    fn load(values: &[f32; 16]) -> __m512 {
        #[expect(unsafe_code, reason = "a load of a vector")]
        // SAFETY: of as many elements.
        unsafe {
            _mm512_loadu_ps(values.as_ptr())
        }
    }

    #[target_feature(enable = "avx512f")]
    fn store(place: &mut [f32; 16], values: __m512) {
        #[expect(unsafe_code, reason = "a store of a vector")]
        // SAFETY: of as many elements.
        unsafe {
            _mm512_storeu_ps(place.as_mut_ptr(), values);
        }
    }

    #[target_feature(enable = "avx512f")]
    fn pairs(bits: __m512) -> __m512bh {
        #[expect(unsafe_code, reason = "the same bits as another type")]
        // SAFETY: both are 512 bits, all of which are values.
        unsafe {
            std::mem::transmute(bits)
        }
    }
}
