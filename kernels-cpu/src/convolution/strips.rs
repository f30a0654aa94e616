//! A product of few rows whose right operand is read where it lies: strips of neighbouring places, a vector each. For few channels,
//! above all one a group (depthwise), this is what fills the lanes.

use pulp::{Arch, Simd, WithSimd};

use super::gather::Gathered;

/// Channels that are summed at once, at most; and strips.
pub(super) const CHANNELS: usize = 4;
const STRIPS: usize = 4;

/// For each start of a strip (a row of `left`) and each of up to [`CHANNELS`] channels, a vector of sums over the depth: `out` is
/// `[strips, channels, lanes]`, `weight` has lines of `channels` elements.
pub(super) fn multiply(
    left: Gathered,
    weight: &[f32],
    channels: usize,
    out: &mut [f32],
    add: bool,
) {
    Arch::new().dispatch(Multiply {
        left,
        weight,
        channels,
        out,
        add,
    });
}

struct Multiply<'a> {
    left: Gathered<'a>,
    weight: &'a [f32],
    channels: usize,
    out: &'a mut [f32],
    add: bool,
}

impl WithSimd for Multiply<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.channels {
            1 => self.strips::<S, 1>(simd),
            2 => self.strips::<S, 2>(simd),
            3 => self.strips::<S, 3>(simd),
            _ => self.strips::<S, CHANNELS>(simd),
        }
    }
}

impl Multiply<'_> {
    #[inline(always)]
    fn strips<S: Simd, const C: usize>(self, simd: S) {
        let reach = self.left.reach();
        let (weight, _) = self.weight.as_chunks::<C>();
        let (out, _) = S::as_mut_simd_f32s(self.out).0.as_chunks_mut::<C>();
        for (strips, out) in self.left.rows.chunks(STRIPS).zip(out.chunks_mut(STRIPS)) {
            let line = |i: usize| {
                let start = strips[i.min(strips.len() - 1)];
                &self.left.values[start..start + reach + S::F32_LANES]
            };
            let lines: [&[f32]; STRIPS] = std::array::from_fn(line);
            let mut sums = [[simd.splat_f32s(0.0); C]; STRIPS];
            for step in self.left.depth {
                let weight = weight[step.right].map(|x| simd.splat_f32s(x));
                for (sums, line) in sums.iter_mut().zip(lines) {
                    let x = S::as_simd_f32s(&line[step.left..step.left + S::F32_LANES]).0[0];
                    for (sum, y) in sums.iter_mut().zip(weight) {
                        *sum = simd.mul_add_e_f32s(x, y, *sum);
                    }
                }
            }
            for (out, sums) in out.iter_mut().zip(sums) {
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = match self.add {
                        true => simd.add_f32s(*out, sum),
                        false => sum,
                    };
                }
            }
        }
    }
}

/// Rows of [`dots`] that are summed at once.
const ROWS: usize = 12;

/// For each row of `left`, a vector of partial sums over the strips of its depth, times `right`'s strips: `[rows, lanes]`, added to
/// `out`.
pub(super) fn dots(left: Gathered, right: &[f32], out: &mut [f32]) {
    struct Dots<'a>(Gathered<'a>, &'a [f32], &'a mut [f32]);
    impl WithSimd for Dots<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let Self(left, right, out) = self;
            let reach = left.reach();
            let (right, _) = S::as_simd_f32s(right);
            let (out, _) = S::as_mut_simd_f32s(out);
            for (rows, out) in left.rows.chunks(ROWS).zip(out.chunks_mut(ROWS)) {
                let line = |i: usize| {
                    let start = rows[i.min(rows.len() - 1)];
                    &left.values[start..start + reach + S::F32_LANES]
                };
                let lines: [&[f32]; ROWS] = std::array::from_fn(line);
                let mut sums = [simd.splat_f32s(0.0); ROWS];
                for step in left.depth {
                    let y = right[step.right];
                    for (sum, line) in sums.iter_mut().zip(&lines) {
                        let x = &line[step.left..step.left + S::F32_LANES];
                        *sum = simd.mul_add_e_f32s(S::as_simd_f32s(x).0[0], y, *sum);
                    }
                }
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = simd.add_f32s(*out, sum);
                }
            }
        }
    }
    Arch::new().dispatch(Dots(left, right, out));
}
