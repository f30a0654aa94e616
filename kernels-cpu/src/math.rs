//! Arithmetic that compilers turn into vector instructions.

use pulp::{Arch, Simd, WithSimd};

/// Lanes of a sum: its order is fixed, whatever the instruction set.
const LANES: usize = 16;

/// Calls `work`, compiled for the vectors that this CPU has. It is `#[inline(always)]`, and so is all that it calls.
///
/// A closure passed to [`Arch::dispatch`] itself is called through a shim, which compilers leave outside, for the least CPU.
pub fn vectorised<R>(work: impl FnMut() -> R) -> R {
    struct Work<F>(F);
    impl<R, F: FnMut() -> R> WithSimd for Work<F> {
        type Output = R;
        #[inline(always)]
        fn with_simd<S: Simd>(mut self, _: S) -> R {
            (self.0)()
        }
    }
    Arch::new().dispatch(Work(work))
}

/// `e^x` with an error of two units in the last place; 0 below -87, and `e^88` above 88. NaN stays NaN.
///
/// Source: the polynomial of Cephes' `expf`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LEAST: f32 = -87.0;
    const MOST: f32 = 88.0;
    /// Added and taken away, it rounds to an integer, which is in the last bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Comparisons, not min and max, which lose a NaN.
    let within = if x < LEAST { LEAST } else { x };
    let within = if within > MOST { MOST } else { within };
    let sum = within * std::f32::consts::LOG2_E + ROUND;
    let n = sum - ROUND;
    let r = within - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    for c in [
        1.398_2e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_6e-1,
        0.5,
    ] {
        p = p * r + c;
    }
    let power = f32::from_bits(
        sum.to_bits()
            .wrapping_sub(ROUND.to_bits())
            .wrapping_add(127)
            << 23,
    );
    let y = (p * r * r + r + 1.0) * power;
    if x < LEAST { 0.0 } else { y }
}

/// The sum of what `of` gives of the elements at each place of slices of one length.
#[inline(always)]
pub fn sum<const N: usize>(slices: [&[f32]; N], of: impl Fn([f32; N]) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    // Slices of arrays, whose bounds need no check in the inner loop.
    let chunks = slices.map(|x| x.as_chunks::<LANES>());
    for at in 0..chunks[0].0.len() {
        let chunk = chunks.map(|(whole, _)| &whole[at]);
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += of(chunk.map(|x| x[lane]));
        }
    }
    let rest = (0..chunks[0].1.len()).map(|i| of(chunks.map(|(_, rest)| rest[i])));
    let rest: f32 = rest.sum();
    lanes.iter().sum::<f32>() + rest
}

/// The greatest element, -inf if there is none. NaN is passed over.
#[inline(always)]
pub fn greatest(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for chunk in whole {
        for (most, &x) in lanes.iter_mut().zip(chunk) {
            *most = larger(*most, x);
        }
    }
    lanes
        .iter()
        .chain(rest)
        .fold(f32::NEG_INFINITY, |a, &b| larger(a, b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_right_to_two_units_in_the_last_place() {
        for i in -870_000..=880_000 {
            let x = i as f32 * 1e-4;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(
                error < 2.0 * f64::from(f32::EPSILON),
                "{x}: off by {error:e}"
            );
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), exp(88.0));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn sums_and_maxima_take_every_element() {
        for count in [0, 1, 15, 16, 17, 50] {
            let x: Vec<f32> = (0..count).map(|i| -(i as f32)).collect();
            assert_eq!(sum([&x], |[x]| x), x.iter().sum::<f32>());
            let last = greatest(&x.iter().rev().copied().collect::<Vec<_>>());
            assert_eq!(last, if count == 0 { f32::NEG_INFINITY } else { 0.0 });
        }
    }
}
