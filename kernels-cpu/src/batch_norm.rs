//! Batch norm (arXiv 1502.03167) of x `[samples, features, places]`, a pass over memory for each step: sums, values, sums of the way
//! back, gradients.
//!
//! Sums are of distances from a number near the mean, so that a mean far from zero does not spoil a variance; in f32 over some
//! thousand elements, and in f64 over all.

#[cfg(test)]
mod tests;

use std::iter::repeat_n;
use std::ops::Range;

use rayon::prelude::*;

use crate::math::vectorised;

/// Lanes of a sum, whatever the instruction set.
const LANES: usize = 32;

/// Elements that are summed in f32, each lane's being so many less.
const BLOCK: usize = 2048;

/// Elements that are worth another thread.
const PIECE: usize = 1 << 15;

/// Rows that a column is summed over in f32.
const ROWS: usize = 256;

/// Places from which on a feature's are a loop of their own; of fewer, all features' are one.
const PLACES: usize = 16;

/// Sizes of x `[samples, features, places]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Samples.
    pub samples: usize,
    /// Features, which are normalised each by itself.
    pub features: usize,
    /// Places of a feature in a sample.
    pub places: usize,
}

impl Size {
    fn row(self) -> usize {
        self.features * self.places
    }

    fn count(self) -> usize {
        self.samples * self.row()
    }

    fn check(self, lens: &[usize]) {
        let fits = lens.iter().all(|&len| len == self.count());
        assert!(fits, "tensors of {lens:?} elements for {self:?}");
    }
}

/// What a feature's values are made of: `scale (x - center) + shift`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Affine {
    /// What x is taken less of.
    pub center: f64,
    /// What its distance is multiplied with.
    pub scale: f64,
    /// What is added.
    pub shift: f64,
}

/// Each feature's mean, and the sum of its squared distances from it. Zeros where there are no samples.
///
/// # Panics
/// If x is not of that size.
pub fn moments(size: Size, x: &[f32]) -> [Vec<f64>; 2] {
    size.check(&[x.len()]);
    let shift = near_mean(size, x);
    let sums = sums(
        size,
        [x],
        &shift,
        #[inline(always)]
        |[x], shift| [x - shift, (x - shift) * (x - shift)],
    );
    let count = (size.samples * size.places).max(1) as f64;
    let moments = sums.iter().zip(shift).map(|(&[sum, squares], shift)| {
        let mean = f64::from(shift) + sum / count;
        (mean, (squares - sum * sum / count).max(0.0))
    });
    let (means, squares) = moments.unzip();
    [means, squares]
}

/// Each feature's sums of g, and of g times the distance of x from `center`.
///
/// # Panics
/// If x or g is not of that size, or there are not as many centers as features.
pub fn gradient_sums(size: Size, x: &[f32], g: &[f32], center: &[f64]) -> [Vec<f64>; 2] {
    size.check(&[x.len(), g.len()]);
    assert_eq!(center.len(), size.features, "a center a feature");
    let near: Vec<f32> = center.iter().map(|&center| center as f32).collect();
    let sums = sums(
        size,
        [x, g],
        &near,
        #[inline(always)]
        |[x, g], near| [g, g * (x - near)],
    );
    let both =
        sums.iter()
            .zip(near.iter().zip(center))
            .map(|(&[sum, product], (&near, center))| {
                (sum, product + (f64::from(near) - center) * sum)
            });
    let (sums, products) = both.unzip();
    [sums, products]
}

/// `y = scale (x - center) + shift` of each feature.
///
/// # Panics
/// If x or y is not of that size, or there are not as many maps as features.
pub fn apply(size: Size, x: &[f32], maps: &[Affine], y: &mut [f32]) {
    size.check(&[x.len(), y.len()]);
    let maps: Vec<_> = maps.iter().map(|map| map.numbers(0.0)).collect();
    each(
        size,
        [x],
        &maps,
        y,
        #[inline(always)]
        |[x], [center, scale, shift, _]| (x - center) * scale + shift,
    );
}

/// `dx = scale (x - center) + shift + slope g` of each feature, a map and a slope each.
///
/// # Panics
/// If x, g or dx is not of that size, or there are not as many maps as features.
pub fn gradient(size: Size, x: &[f32], g: &[f32], maps: &[(Affine, f64)], dx: &mut [f32]) {
    size.check(&[x.len(), g.len(), dx.len()]);
    let maps = maps.iter().map(|(map, slope)| map.numbers(*slope));
    let maps: Vec<_> = maps.collect();
    each(
        size,
        [x, g],
        &maps,
        dx,
        #[inline(always)]
        |[x, g], [center, scale, shift, slope]| g * slope + ((x - center) * scale + shift),
    );
}

impl Affine {
    /// Center, scale, shift and a slope in f32, of which the shift makes good what the center's rounding takes away.
    fn numbers(self, slope: f64) -> [f32; 4] {
        let center = self.center as f32;
        let shift = self.shift + (f64::from(center) - self.center) * self.scale;
        [center, self.scale as f32, shift as f32, slope as f32]
    }
}

/// A number near each feature's mean: that of its first few elements.
fn near_mean(size: Size, x: &[f32]) -> Vec<f32> {
    const FEW: usize = 16;
    const SAMPLES: usize = 4;
    let samples = size.samples.min(SAMPLES);
    let places = size.places.min(FEW);
    let mean = |feature: usize| {
        let of = |sample: usize| &x[sample * size.row() + feature * size.places..][..places];
        let sum: f64 = (0..samples).flat_map(of).map(|&x| f64::from(x)).sum();
        (sum / (samples * places).max(1) as f64) as f32
    };
    (0..size.features).map(mean).collect()
}

/// Calls `work` with each number below `count`, of which `least` are worth another thread; the results in order.
fn all<T: Send>(count: usize, least: usize, work: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
    let work = |i| {
        vectorised(
            #[inline(always)]
            || work(i),
        )
    };
    if count <= least {
        return (0..count).map(work).collect();
    }
    let tasks = (0..count).into_par_iter().with_min_len(least);
    tasks.map(work).collect()
}

/// Sums over each feature of the two numbers that `of` makes of the inputs at a place and the feature's number in `near`.
fn sums<const N: usize>(
    size: Size,
    inputs: [&[f32]; N],
    near: &[f32],
    of: impl Fn([f32; N], f32) -> [f32; 2] + Copy + Sync + Send,
) -> Vec<[f64; 2]> {
    let Size {
        samples,
        features,
        places,
    } = size;
    let mut total = vec![[0.0; 2]; features];
    let mut add = |feature: usize, part: [f64; 2]| {
        for (total, part) in total[feature].iter_mut().zip(part) {
            *total += part;
        }
    };
    if size.count() == 0 {
        return total;
    }
    if places < PLACES {
        let rows = (PIECE / size.row()).clamp(1, ROWS);
        let parts = all(
            samples.div_ceil(rows),
            1,
            #[inline(always)]
            |part| {
                let rows = part * rows..((part + 1) * rows).min(samples);
                rows_sums(size, rows, inputs, near, of)
            },
        );
        for part in parts {
            part.into_iter()
                .enumerate()
                .for_each(|(feature, part)| add(feature, part));
        }
        return total;
    }
    let some = (PIECE / places).clamp(1, samples);
    let parts = samples.div_ceil(some);
    let least = (PIECE / (some * places)).max(1);
    let sums = all(
        features * parts,
        least,
        #[inline(always)]
        |task| {
            let (feature, part) = (task / parts, task % parts);
            let mut lanes = Lanes::default();
            for sample in part * some..((part + 1) * some).min(samples) {
                let at = (sample * features + feature) * places;
                let places = inputs.map(|x| &x[at..at + places]);
                lanes.add(
                    places,
                    #[inline(always)]
                    |x| of(x, near[feature]),
                );
            }
            lanes.total()
        },
    );
    sums.into_iter()
        .enumerate()
        .for_each(|(task, part)| add(task / parts, part));
    total
}

/// Sums of a pair of numbers.
struct Lanes {
    sums: [[f32; LANES]; 2],
    /// Elements in `sums`.
    count: usize,
    total: [f64; 2],
}

impl Default for Lanes {
    fn default() -> Self {
        Self {
            sums: [[0.0; LANES]; 2],
            count: 0,
            total: [0.0; 2],
        }
    }
}

impl Lanes {
    #[inline(always)]
    fn add<const N: usize>(&mut self, places: [&[f32]; N], of: impl Fn([f32; N]) -> [f32; 2]) {
        let len = places[0].len();
        for start in (0..len).step_by(BLOCK) {
            let end = (start + BLOCK).min(len);
            if self.count + end - start > BLOCK {
                self.flush();
            }
            self.count += end - start;
            // A copy, which stays in registers.
            let mut sums = self.sums;
            let chunks = places.map(|x| x[start..end].as_chunks::<LANES>());
            for at in 0..chunks[0].0.len() {
                let chunk = chunks.map(|(whole, _)| &whole[at]);
                for lane in 0..LANES {
                    let [a, b] = of(chunk.map(|x| x[lane]));
                    sums[0][lane] += a;
                    sums[1][lane] += b;
                }
            }
            for lane in 0..chunks[0].1.len() {
                let [a, b] = of(chunks.map(|(_, rest)| rest[lane]));
                sums[0][lane] += a;
                sums[1][lane] += b;
            }
            self.sums = sums;
        }
    }

    fn flush(&mut self) {
        for (total, sums) in self.total.iter_mut().zip(&mut self.sums) {
            *total += sums.iter().map(|&x| f64::from(x)).sum::<f64>();
            *sums = [0.0; LANES];
        }
        self.count = 0;
    }

    fn total(mut self) -> [f64; 2] {
        self.flush();
        self.total
    }
}

/// [`sums`] over some samples of few places, column by column of their rows.
#[inline(always)]
fn rows_sums<const N: usize>(
    size: Size,
    rows: Range<usize>,
    inputs: [&[f32]; N],
    near: &[f32],
    of: impl Fn([f32; N], f32) -> [f32; 2],
) -> Vec<[f64; 2]> {
    let width = size.row();
    let near: Vec<f32> = near
        .iter()
        .flat_map(|&near| repeat_n(near, size.places))
        .collect();
    let (mut first, mut second) = (vec![0.0f32; width], vec![0.0f32; width]);
    for row in rows {
        let row = inputs.map(|x| &x[row * width..][..width]);
        let (near, first, second) = (&near[..width], &mut first[..width], &mut second[..width]);
        for i in 0..width {
            let [a, b] = of(row.map(|x| x[i]), near[i]);
            first[i] += a;
            second[i] += b;
        }
    }
    let sum = |of: &[f32]| of.iter().map(|&x| f64::from(x)).sum::<f64>();
    let both = first.chunks(size.places).zip(second.chunks(size.places));
    both.map(|(a, b)| [sum(a), sum(b)]).collect()
}

/// Writes what `of` makes of the inputs at each place and the feature's numbers.
fn each<const N: usize>(
    size: Size,
    inputs: [&[f32]; N],
    maps: &[[f32; 4]],
    out: &mut [f32],
    of: impl Fn([f32; N], [f32; 4]) -> f32 + Copy + Sync + Send,
) {
    assert_eq!(maps.len(), size.features, "a map a feature");
    if out.is_empty() {
        return;
    }
    // A row of several features has their numbers beside each other; a feature of a loop of its own has one of each.
    let (width, columns) = match size.places < PLACES {
        true => (size.row(), size.places),
        false => (size.places, 0),
    };
    let columns: [Vec<f32>; 4] = std::array::from_fn(|i| {
        maps.iter()
            .flat_map(|map| repeat_n(map[i], columns))
            .collect()
    });
    let rows = (PIECE / width).max(1);
    let piece = |(piece, out): (usize, &mut [f32])| {
        vectorised(
            #[inline(always)]
            || {
                for (row, out) in out.chunks_mut(width).enumerate() {
                    let row = piece * rows + row;
                    let inputs = inputs.map(|x| &x[row * width..][..width]);
                    if columns[0].is_empty() {
                        let map = maps[row % size.features];
                        for i in 0..out.len() {
                            out[i] = of(inputs.map(|x| x[i]), map);
                        }
                    } else {
                        let columns = columns.each_ref().map(|x| &x[..width]);
                        for i in 0..width {
                            out[i] = of(inputs.map(|x| x[i]), columns.map(|x| x[i]));
                        }
                    }
                }
            },
        )
    };
    if out.len() <= rows * width {
        piece((0, out));
    } else {
        out.par_chunks_mut(rows * width).enumerate().for_each(piece);
    }
}
