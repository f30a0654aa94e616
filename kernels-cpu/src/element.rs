//! Types of elements in memory. Sums and functions are of f32.

use half::bf16;

use crate::parallel::Shared;
use crate::product::{Epilogue, Halves, Matrix, Operand, Output, Size, product, product_rows};

/// A type of elements: f32 or bf16.
pub trait Element: Copy + Send + Sync + 'static {
    /// A matrix of it as an operand.
    type Matrix<'a>: Operand;

    /// An element as f32.
    fn widen(self) -> f32;

    /// The nearest element.
    fn round(x: f32) -> Self;

    /// As [`Matrix::new`], of so many places that are summed over.
    fn matrix(values: &[Self], across: usize, deep: usize, depth: usize) -> Self::Matrix<'_>;

    /// `out = left right` of operands of this type, `out` being `[rows, columns]` and `size` that of the matrices.
    ///
    /// # Panics
    /// If `out` is too short.
    fn product(
        size: Size,
        operands: [&dyn Operand; 2],
        out: &mut [Self],
        epilogue: Option<Epilogue>,
    );

    /// The same in f32, or added to what is there.
    ///
    /// # Panics
    /// If `out` is too short.
    fn sums(size: Size, operands: [&dyn Operand; 2], out: &mut [f32], add: bool);
}

impl Element for f32 {
    type Matrix<'a> = Matrix<'a>;

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn round(x: f32) -> Self {
        x
    }

    fn matrix(values: &[Self], across: usize, deep: usize, _: usize) -> Matrix<'_> {
        Matrix::new(values, across, deep)
    }

    fn product(
        size: Size,
        [left, right]: [&dyn Operand; 2],
        out: &mut [f32],
        epilogue: Option<Epilogue>,
    ) {
        product(size, left, right, whole(size, out, false), epilogue);
    }

    fn sums(size: Size, [left, right]: [&dyn Operand; 2], out: &mut [f32], add: bool) {
        product(size, left, right, whole(size, out, add), None);
    }
}

impl Element for bf16 {
    type Matrix<'a> = Halves<'a>;

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    /// To the nearest, ties to even. Without branches, for vectors.
    #[inline(always)]
    fn round(x: f32) -> Self {
        let bits = x.to_bits();
        let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        // A NaN must not become infinite.
        let bits = if x.is_nan() {
            bits >> 16 | 0x40
        } else {
            nearest
        };
        bf16::from_bits(bits as u16)
    }

    fn matrix(values: &[Self], across: usize, deep: usize, depth: usize) -> Halves<'_> {
        Halves::new(values, across, deep, depth)
    }

    fn product(
        size: Size,
        [left, right]: [&dyn Operand; 2],
        out: &mut [bf16],
        epilogue: Option<Epilogue>,
    ) {
        let columns = size.columns;
        let out = Shared::new(out);
        let take = |row: usize, first: usize, values: &mut [f32]| {
            if let Some(epilogue) = epilogue {
                epilogue(row, first, values);
            }
            #[expect(unsafe_code, reason = "tasks write blocks of a matrix")]
            // SAFETY: pieces of a product do not overlap.
            let out = unsafe { out.range(row * columns + first, values.len()) };
            round_all(values, out);
        };
        product_rows(places(size), left, right, &take);
    }

    fn sums(size: Size, [left, right]: [&dyn Operand; 2], out: &mut [f32], add: bool) {
        let out = whole(size, out, add);
        product(places(size), left, right, out, None);
    }
}

fn whole(size: Size, values: &mut [f32], add: bool) -> Output<'_> {
    Output {
        values,
        stride: size.columns,
        add,
    }
}

fn places(size: Size) -> Size {
    Size {
        depth: Halves::places(size.depth),
        ..size
    }
}

/// Rounds as many elements as there are in both.
pub fn round_all<E: Element>(x: &[f32], out: &mut [E]) {
    crate::math::vectorised(
        #[inline(always)]
        || {
            for (y, &x) in out.iter_mut().zip(x) {
                *y = E::round(x);
            }
        },
    );
}

/// Widens as many elements as there are in both.
pub fn widen_all<E: Element>(x: &[E], out: &mut [f32]) {
    crate::math::vectorised(
        #[inline(always)]
        || {
            for (y, &x) in out.iter_mut().zip(x) {
                *y = x.widen();
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_half() {
        let special = [
            f32::INFINITY,
            f32::NAN,
            -0.0,
            f32::MAX,
            f32::MIN_POSITIVE,
            1e-42,
            -f32::NAN,
        ];
        let all = (0..=u32::MAX)
            .step_by(65_521)
            .map(f32::from_bits)
            .chain(special);
        let halfway = (0..=u16::MAX).map(|x| f32::from_bits(u32::from(x) << 16 | 0x8000));
        for x in all.chain(halfway) {
            assert_eq!(
                <bf16 as Element>::round(x).to_bits(),
                bf16::from_f32(x).to_bits(),
                "{x:e}"
            );
        }
    }
}
