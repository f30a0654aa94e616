//! Dropout of a vector of elements, which the kernels of other families take too, and the kernel that does nothing else.

use cubecl_core as cubecl;
use cubecl_core::ir::ElemType;
use cubecl_core::prelude::*;

use super::{Plan, UNITS};
use crate::random::philox_block;
use crate::rows::workgroup;

/// [`super::Dropout`] in a kernel.
#[derive(CubeLaunch, CubeType)]
pub(crate) struct Site {
    key0: u32,
    key1: u32,
    /// A smaller random word drops its element.
    threshold: u32,
    /// Factor of what is kept.
    scale: f32,
    /// Rows of a sample.
    tokens: u32,
    /// Token of a sample's first row.
    first: u32,
}

/// What a kernel's constructor takes for a [`Site`].
pub(crate) fn site() -> SiteCompilationArg {
    SiteCompilationArg {
        key0: (),
        key1: (),
        threshold: (),
        scale: (),
        tokens: (),
        first: (),
    }
}

/// `y = dropout(x) + residual`, a vector a unit.
#[cube(launch_unchecked)]
pub(crate) fn dropout_elements<E: Float, N: Size>(
    x: &[Vector<E, N>],
    residual: ComptimeOption<&[Vector<E, N>]>,
    samples: &[u32],
    y: &mut [Vector<E, N>],
    rows: u32,
    site: Site,
    #[comptime] plan: Plan,
    #[define(E)] _type: ElemType,
    #[define(N)] _width: usize,
) {
    let vectors = comptime!(plan.vectors());
    let index = workgroup() * UNITS + UNIT_POS;
    if index < rows * vectors {
        let value = Vector::<f32, N>::cast_from(x[index as usize]);
        let (row, at) = (index / vectors, index % vectors);
        let mut sum = drop_elements::<N>(value, row, at, samples, &site);
        #[comptime]
        if let ComptimeOption::Some(residual) = residual {
            sum += Vector::cast_from(residual[index as usize]);
        }
        y[index as usize] = Vector::cast_from(sum);
    }
}

/// `value`, vector `at` of row `row`, with the dropped elements zero and the others scaled. `samples` has the low and the
/// high half of each sample's number.
#[cube]
pub(crate) fn drop_elements<N: Size>(
    value: Vector<f32, N>,
    row: u32,
    at: u32,
    samples: &[u32],
    site: &Site,
) -> Vector<f32, N> {
    let width = value.vector_size().comptime();
    let sample = 2 * (row / site.tokens);
    let (low, high) = (samples[sample as usize], samples[(sample + 1) as usize]);
    let token = site.first + row % site.tokens;
    let first = at * comptime!(width as u32);
    let mut kept = Vector::<f32, N>::zero();
    #[unroll]
    for block in 0..comptime!(width.div_ceil(4)) {
        let counter = first / 4 + comptime!(block as u32);
        let words = philox_block(counter, token, low, high, site.key0, site.key1);
        #[unroll]
        for e in 0..comptime!(width.min(4)) {
            let word = word_of(words, first, e, width);
            let index = comptime!(4 * block + e);
            let factor = select(word >= site.threshold, site.scale, 0.0f32);
            kept.insert(index, value.extract(index) * factor);
        }
    }
    kept
}

/// The word of element `first + e`, where a vector of `width` elements begins at `first`.
#[cube]
fn word_of(
    words: Vector<u32, Const<4>>,
    first: u32,
    #[comptime] e: usize,
    #[comptime] width: usize,
) -> u32 {
    match width {
        1 => {
            let low = select(first % 2 == 0, words.extract(0usize), words.extract(1usize));
            let high = select(first % 2 == 0, words.extract(2usize), words.extract(3usize));
            select(first % 4 < 2, low, high)
        }
        2 => select(
            first % 4 == 0,
            words.extract(e),
            words.extract(comptime!(e + 2)),
        ),
        _ => words.extract(e),
    }
}
