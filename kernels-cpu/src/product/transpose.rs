//! Lines that become columns of a panel.

use std::ops::Range;

/// Makes `line(i)` column i of the panel, for as many as `count`. The panel's rows have `width` elements; lines are as long as it has
/// rows.
pub(super) fn transpose<'a>(
    count: usize,
    line: impl Fn(usize) -> &'a [f32],
    width: usize,
    panel: &mut [f32],
) {
    if count < 8 {
        for i in 0..count {
            columns([line(i)], i..i + 1, width, panel);
        }
        return;
    }
    for first in (0..count).step_by(8) {
        // The last eight may be among those before, too.
        let first = first.min(count - 8);
        let lines = std::array::from_fn(|i| line(first + i));
        columns::<8>(lines, first..first + 8, width, panel);
    }
}

/// Makes the lines the columns of that place.
fn columns<const N: usize>(
    lines: [&[f32]; N],
    place: Range<usize>,
    width: usize,
    panel: &mut [f32],
) {
    let done = match lines.first_chunk::<8>() {
        Some(lines) => squares(lines, place.start, width, panel),
        None => 0,
    };
    let lines = lines.map(|line| &line[done..]);
    let rows = panel.chunks_exact_mut(width).skip(done);
    for (d, row) in rows.enumerate() {
        for (x, line) in row[place.clone()].iter_mut().zip(lines) {
            *x = line[d];
        }
    }
}

/// Transposes as many squares of eight as there are, and says how many rows that were.
fn squares(lines: &[&[f32]; 8], first: usize, width: usize, panel: &mut [f32]) -> usize {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx") {
        #[expect(
            unsafe_code,
            reason = "what needs an instruction set is unsafe to call"
        )]
        // SAFETY: the CPU has AVX.
        return unsafe { x86::squares(lines, first, width, panel) };
    }
    _ = (lines, first, width, panel);
    0
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx")]
    pub fn squares(lines: &[&[f32]; 8], first: usize, width: usize, panel: &mut [f32]) -> usize {
        let lines = lines.map(|line| line.as_chunks::<8>().0);
        let count = lines[0].len();
        let lines = lines.map(|line| &line[..count]);
        let mut rows = panel.chunks_exact_mut(width);
        for at in 0..count {
            for (values, row) in turn(lines.map(|line| &line[at])).into_iter().zip(&mut rows) {
                store(values, &mut row[first..first + 8]);
            }
        }
        8 * count
    }

    #[target_feature(enable = "avx")]
    fn load(half: &[f32; 8], at: usize) -> __m128 {
        let four = &half[at..at + 4];
        #[expect(unsafe_code, reason = "a load of a vector")]
        // SAFETY: of as many elements.
        unsafe {
            _mm_loadu_ps(four.as_ptr())
        }
    }

    #[target_feature(enable = "avx")]
    fn store(values: __m256, place: &mut [f32]) {
        assert!(place.len() == 8);
        #[expect(unsafe_code, reason = "a store of a vector")]
        // SAFETY: of as many elements.
        unsafe {
            _mm256_storeu_ps(place.as_mut_ptr(), values);
        }
    }

    #[target_feature(enable = "avx")]
    fn turn(lines: [&[f32; 8]; 8]) -> [__m256; 8] {
        // Lines i and i + 4 in one vector, whose halves are turned at once.
        let half = |at: usize| {
            let [a, b, c, d] = [0, 1, 2, 3].map(|i| {
                _mm256_insertf128_ps::<1>(
                    _mm256_castps128_ps256(load(lines[i], at)),
                    load(lines[i + 4], at),
                )
            });
            let [ab, cd] =
                [[a, b], [c, d]].map(|[a, b]| (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)));
            [
                _mm256_shuffle_ps::<0b01_00_01_00>(ab.0, cd.0),
                _mm256_shuffle_ps::<0b11_10_11_10>(ab.0, cd.0),
                _mm256_shuffle_ps::<0b01_00_01_00>(ab.1, cd.1),
                _mm256_shuffle_ps::<0b11_10_11_10>(ab.1, cd.1),
            ]
        };
        let ([a, b, c, d], [e, f, g, h]) = (half(0), half(4));
        [a, b, c, d, e, f, g, h]
    }
}
