//! Greatest element and mean of windows in three dimensions, and their gradients, of planes `[depth, height, width]` one after the
//! other. A plane is a task of its own, and a row of the result a loop.

#[cfg(test)]
mod tests;

use rayon::prelude::*;

use crate::math::vectorised;

/// Elements that are worth another thread.
const PIECE: usize = 1 << 14;

/// How windows lie over a plane. Each array has the depth, the height and the width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// Size of a plane.
    pub input: [usize; 3],
    /// Size of the result.
    pub output: [usize; 3],
    /// Size of a window.
    pub kernel: [usize; 3],
    /// From one window to the next.
    pub stride: [usize; 3],
    /// Of the first window, what lies before the plane.
    pub padding: [usize; 3],
    /// From one element of a window to the next.
    pub dilation: [usize; 3],
}

impl Windows {
    /// Where a tap of a window of the result lies along a dimension, if it is in the plane.
    #[inline(always)]
    fn place(&self, dimension: usize, window: usize, tap: usize) -> Option<usize> {
        let at = window * self.stride[dimension] + tap * self.dilation[dimension];
        let at = at.checked_sub(self.padding[dimension])?;
        (at < self.input[dimension]).then_some(at)
    }

    /// The windows of a row of which a tap is in the plane, and where the first one's is.
    #[inline(always)]
    fn row(&self, tap: usize) -> (usize, usize, usize) {
        let [.., stride] = self.stride;
        let ahead = self.padding[2].saturating_sub(tap * self.dilation[2]);
        let first = ahead.div_ceil(stride);
        let at = first * stride + tap * self.dilation[2] - self.padding[2];
        let count = self.input[2].saturating_sub(at).div_ceil(stride);
        let last = (first + count).min(self.output[2]);
        (first.min(last), last, at.min(self.input[2]))
    }

    /// Calls `work` with each tap of the windows of a row of the result: where the row of the plane that it is in begins, the tap in
    /// the width.
    #[inline(always)]
    fn taps(&self, [depth, height]: [usize; 2], mut work: impl FnMut(usize, usize)) {
        for i in 0..self.kernel[0] {
            let Some(z) = self.place(0, depth, i) else {
                continue;
            };
            for j in 0..self.kernel[1] {
                let Some(y) = self.place(1, height, j) else {
                    continue;
                };
                let start = (z * self.input[1] + y) * self.input[2];
                (0..self.kernel[2]).for_each(|tap| work(start, tap));
            }
        }
    }

    fn check(&self, planes: usize, inputs: &[usize], outputs: &[usize]) {
        let fits = |lens: &[usize], size: [usize; 3]| {
            let len = planes * size.iter().product::<usize>();
            lens.iter().all(|&found| found == len)
        };
        assert!(
            fits(inputs, self.input) && fits(outputs, self.output),
            "{inputs:?} elements in and {outputs:?} out for {planes} planes of {self:?}"
        );
    }
}

/// Calls `work` with each plane of `out`, and its number.
fn planes(out: &mut [f32], size: [usize; 3], work: impl Fn(usize, &mut [f32]) + Sync) {
    let len: usize = size.iter().product();
    if out.is_empty() {
        return;
    }
    let least = (PIECE / len).max(1);
    let work = |(plane, out): (usize, &mut [f32])| {
        vectorised(
            #[inline(always)]
            || work(plane, out),
        )
    };
    if out.len() <= least * len {
        out.chunks_mut(len).enumerate().for_each(work);
    } else {
        let planes = out.par_chunks_mut(len).enumerate();
        planes.with_min_len(least).for_each(work);
    }
}

/// The rows of a plane of the result: depth, height, and where it begins.
#[inline(always)]
fn rows(output: [usize; 3]) -> impl Iterator<Item = ([usize; 2], usize)> {
    let [depth, height, width] = output;
    (0..depth * height).map(move |row| ([row / height, row % height], row * width))
}

/// The greatest element of each window, -inf of one outside; NaN where there is one.
///
/// # Panics
/// If x or y is not of so many planes.
pub fn greatest(windows: &Windows, count: usize, x: &[f32], y: &mut [f32]) {
    windows.check(count, &[x.len()], &[y.len()]);
    let len: usize = windows.input.iter().product();
    planes(
        y,
        windows.output,
        #[inline(always)]
        |plane, y| {
            let x = &x[plane * len..][..len];
            y.fill(f32::NEG_INFINITY);
            for (row, start) in rows(windows.output) {
                let y = &mut y[start..][..windows.output[2]];
                windows.taps(
                    row,
                    #[inline(always)]
                    |start, tap| {
                        let (first, last, at) = windows.row(tap);
                        let x = x[start + at..start + windows.input[2]].iter();
                        let x = x.step_by(windows.stride[2]);
                        for (y, &x) in y[first..last].iter_mut().zip(x) {
                            let larger = x > *y || x.is_nan();
                            *y = if larger { x } else { *y };
                        }
                    },
                );
            }
        },
    );
}

/// The gradient of x from g, that of its [`greatest`] elements y: each goes to the first that is it.
///
/// # Panics
/// If a tensor is not of so many planes.
pub fn greatest_gradient(windows: &Windows, count: usize, [x, y, g]: [&[f32]; 3], dx: &mut [f32]) {
    windows.check(count, &[x.len(), dx.len()], &[y.len(), g.len()]);
    let [input, output] = [windows.input, windows.output].map(|size| size.iter().product());
    planes(
        dx,
        windows.input,
        #[inline(always)]
        |plane, dx| {
            let x: &[f32] = &x[plane * input..][..input];
            let [y, g] = [y, g].map(|of| -> &[f32] { &of[plane * output..][..output] });
            dx.fill(0.0);
            let mut left = vec![0.0; windows.output[2]];
            for (row, start) in rows(windows.output) {
                let y = &y[start..][..windows.output[2]];
                left.copy_from_slice(&g[start..][..windows.output[2]]);
                let left = &mut left;
                windows.taps(
                    row,
                    #[inline(always)]
                    |start, tap| {
                        let (first, last, at) = windows.row(tap);
                        let end = start + windows.input[2];
                        let x = x[start + at..end].iter().step_by(windows.stride[2]);
                        let dx = dx[start + at..end].iter_mut();
                        let places = dx.step_by(windows.stride[2]).zip(x);
                        let rows = left[first..last].iter_mut().zip(&y[first..last]);
                        for ((left, &y), (dx, &x)) in rows.zip(places) {
                            let found = x == y || x.is_nan();
                            *dx += if found { *left } else { 0.0 };
                            *left = if found { 0.0 } else { *left };
                        }
                    },
                );
            }
        },
    );
}

/// The sum of each window times its factor, the product of one for each dimension.
///
/// # Panics
/// If x or y is not of so many planes, or there are not as many factors as windows.
pub fn sums(windows: &Windows, count: usize, factors: &[Vec<f32>; 3], x: &[f32], y: &mut [f32]) {
    windows.check(count, &[x.len()], &[y.len()]);
    let len: usize = windows.input.iter().product();
    planes(
        y,
        windows.output,
        #[inline(always)]
        |plane, y| {
            let x = &x[plane * len..][..len];
            y.fill(0.0);
            for (row, start) in rows(windows.output) {
                let y = &mut y[start..][..windows.output[2]];
                windows.taps(
                    row,
                    #[inline(always)]
                    |start, tap| {
                        let (first, last, at) = windows.row(tap);
                        let x = x[start + at..start + windows.input[2]].iter();
                        let x = x.step_by(windows.stride[2]);
                        for (y, &x) in y[first..last].iter_mut().zip(x) {
                            *y += x;
                        }
                    },
                );
                let factor = factors[0][row[0]] * factors[1][row[1]];
                for (y, width) in y.iter_mut().zip(&factors[2]) {
                    *y *= factor * width;
                }
            }
        },
    );
}

/// The gradient of x from g, that of its [`sums`].
///
/// # Panics
/// If g or dx is not of so many planes, or there are not as many factors as windows.
pub fn sums_gradient(
    windows: &Windows,
    count: usize,
    factors: &[Vec<f32>; 3],
    g: &[f32],
    dx: &mut [f32],
) {
    windows.check(count, &[dx.len()], &[g.len()]);
    let len: usize = windows.output.iter().product();
    planes(
        dx,
        windows.input,
        #[inline(always)]
        |plane, dx| {
            let g = &g[plane * len..][..len];
            dx.fill(0.0);
            let mut scaled = vec![0.0; windows.output[2]];
            for (row, start) in rows(windows.output) {
                let factor = factors[0][row[0]] * factors[1][row[1]];
                let g = &g[start..][..windows.output[2]];
                for (scaled, (g, width)) in scaled.iter_mut().zip(g.iter().zip(&factors[2])) {
                    *scaled = g * (factor * width);
                }
                let scaled = &scaled;
                windows.taps(
                    row,
                    #[inline(always)]
                    |start, tap| {
                        let (first, last, at) = windows.row(tap);
                        let dx = dx[start + at..start + windows.input[2]].iter_mut();
                        for (dx, g) in dx.step_by(windows.stride[2]).zip(&scaled[first..last]) {
                            *dx += g;
                        }
                    },
                );
            }
        },
    );
}
