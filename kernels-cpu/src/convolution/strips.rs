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

/// Lines of places of one length, where they lie.
#[derive(Clone, Copy)]
pub(super) struct Lines<'a> {
    pub values: &'a [f32],
    pub starts: &'a [usize],
    pub line: usize,
}

/// For each place of the lines, which are a vector at least, the sum over the taps, steps in the lines, times the kernel's elements,
/// plus a bias: one line after the other.
pub(super) fn sum(lines: Lines, taps: &[usize], kernel: (&[f32], f32), out: &mut [f32]) {
    Arch::new().dispatch(Sum {
        lines,
        taps,
        kernel,
        out,
    });
}

struct Sum<'a> {
    lines: Lines<'a>,
    taps: &'a [usize],
    kernel: (&'a [f32], f32),
    out: &'a mut [f32],
}

impl WithSimd for Sum<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        /// Strips of a line at once.
        const STRIPS: usize = 3;
        let Lines {
            values,
            starts,
            line,
        } = self.lines;
        let (kernel, bias) = self.kernel;
        let bias = simd.splat_f32s(bias);
        let reach = self.taps.iter().max().map_or(0, |tap| tap + S::F32_LANES);
        // The last strip ends with the line, so that it may have some places of the one before.
        let last = line - S::F32_LANES;
        for (&start, out) in starts.iter().zip(self.out.chunks_exact_mut(line)) {
            for first in (0..line).step_by(STRIPS * S::F32_LANES) {
                let at: [usize; STRIPS] =
                    std::array::from_fn(|i| (first + i * S::F32_LANES).min(last));
                let lines = at.map(|at| &values[start + at..][..reach]);
                let mut sums = [simd.splat_f32s(0.0); STRIPS];
                for (&tap, &y) in self.taps.iter().zip(kernel) {
                    let y = simd.splat_f32s(y);
                    for (sum, line) in sums.iter_mut().zip(lines) {
                        let x = S::as_simd_f32s(&line[tap..tap + S::F32_LANES]).0[0];
                        *sum = simd.mul_add_e_f32s(x, y, *sum);
                    }
                }
                for (at, sum) in at.into_iter().zip(sums) {
                    let out = &mut out[at..at + S::F32_LANES];
                    S::as_mut_simd_f32s(out).0[0] = simd.add_f32s(sum, bias);
                }
            }
        }
    }
}

/// For each tap, a step in the lines, a vector of partial sums of the lines times `right`'s, which lie one after the other: `[taps,
/// lanes]`, added to `out`.
pub(super) fn dots(left: Lines, taps: &[usize], right: &[f32], out: &mut [f32]) {
    Arch::new().dispatch(Dots {
        left,
        taps,
        right,
        out,
    });
}

struct Dots<'a> {
    left: Lines<'a>,
    taps: &'a [usize],
    right: &'a [f32],
    out: &'a mut [f32],
}

/// Taps that are summed at once: of a kernel of 3 by 3, and of smaller ones.
const TAPS: usize = 9;
const FEW: usize = 4;

impl WithSimd for Dots<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (out, _) = S::as_mut_simd_f32s(self.out);
        for (taps, out) in self.taps.chunks(TAPS).zip(out.chunks_mut(TAPS)) {
            let few = Dots {
                taps,
                out: &mut [],
                ..self
            };
            if taps.len() > FEW {
                few.add::<S, TAPS>(simd, out);
            } else {
                few.add::<S, FEW>(simd, out);
            }
        }
    }
}

impl Dots<'_> {
    #[inline(always)]
    fn add<S: Simd, const TAPS: usize>(self, simd: S, out: &mut [S::f32s]) {
        let Lines {
            values,
            starts,
            line,
        } = self.left;
        // Taps that are not there repeat the last one.
        let taps: [usize; TAPS] = std::array::from_fn(|i| self.taps[i.min(self.taps.len() - 1)]);
        let mut sums = [simd.splat_f32s(0.0); TAPS];
        for (&start, right) in starts.iter().zip(self.right.chunks_exact(line)) {
            let lines = taps.map(|tap| &values[start + tap..start + tap + line]);
            let (right, last) = S::as_simd_f32s(right);
            let lines = lines.map(S::as_simd_f32s);
            for (i, &y) in right.iter().enumerate() {
                for (sum, (line, _)) in sums.iter_mut().zip(lines) {
                    *sum = simd.mul_add_e_f32s(line[i], y, *sum);
                }
            }
            if !last.is_empty() {
                // What lies beyond the line may be no number, so that times zero is not enough.
                let y = simd.partial_load_f32s(last);
                for (sum, (_, last)) in sums.iter_mut().zip(lines) {
                    *sum = simd.mul_add_e_f32s(simd.partial_load_f32s(last), y, *sum);
                }
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = simd.add_f32s(*out, sum);
        }
    }
}
