//! A tile's gradients.

use pulp::Simd;

use super::Outputs;
use super::memory::STATISTICS;
use crate::attention::score::{KEYS, Part, Tile, products};
use crate::attention::vector::{Lengths, exp, pairs, pairs_mut, rows_times, splat};
use crate::math::sum;
use crate::product::VECTORS;

impl Outputs<'_> {
    /// Gradients of outputs as rows, and their queries' statistics `[STATISTICS, lanes]`: the greatest score, the inverse of the sum
    /// of the exponentials, and what is taken off the probabilities' gradients. Zeros for lanes beyond the last query.
    #[inline(always)]
    pub fn load(
        &self,
        part: &Part,
        [query, lanes]: [usize; 2],
        (rows, stride): (&mut [f32], usize),
        statistics: &mut [f32],
    ) {
        let (problem, entry) = (part.problem, part.entry);
        let width = statistics.len() / STATISTICS;
        statistics.fill(0.0);
        let first = entry.queries.start + query;
        let place = problem.statistic(entry.batch, part.head) + first;
        let all = self.statistics;
        let sums = &all[problem.statistics() / 2..];
        for (lane, row) in rows.chunks_exact_mut(stride).take(lanes).enumerate() {
            let at = [entry.batch, part.head, first + lane];
            let gradient = self.gradient.row(at, problem.head_dim);
            let (now, rest) = row.split_at_mut(problem.head_dim);
            now.copy_from_slice(gradient);
            rest.fill(0.0);
            let output = self.output.row(at, problem.head_dim);
            let inner = sum([gradient, output], |[g, o]| g * o);
            let of_sum = self.log_sum_exp_gradient.map_or(0.0, |g| g[place + lane]);
            let (greatest, sum) = (all[place + lane], sums[place + lane]);
            // A query that saw nothing: exponentials above 0, and 0 of them.
            let unseeing = greatest == f32::NEG_INFINITY;
            statistics[lane] = if unseeing { 0.0 } else { greatest };
            statistics[width + lane] = if unseeing { 0.0 } else { 1.0 / sum };
            statistics[2 * width + lane] = inner - of_sum;
        }
    }
}

/// What a tile's gradients are computed from, as panels of queries and rows of keys, `stride` elements each.
pub struct Side<'a> {
    pub queries: &'a [f32],
    pub outputs: &'a [f32],
    pub keys: &'a [f32],
    pub values: &'a [f32],
    pub stride: usize,
    pub statistics: &'a [f32],
}

/// The probabilities of a tile after dropout and the gradients of its scores, `[KEYS, lanes]`; zeros up to a multiple of R keys.
#[inline(always)]
pub fn score_gradients<S: Simd, const R: usize>(
    simd: S,
    part: &Part,
    tile: Tile,
    side: &Side,
    [p, scores, spare]: [&mut [f32]; 3],
) {
    let (keys, values) = ((side.keys, side.stride), (side.values, side.stride));
    part.scores::<S, R>(simd, tile, keys, side.queries, [&mut *p, &mut *spare]);
    let depth = part.problem.head_dim;
    products::<S, R>(simd, tile.seen, values, side.outputs, depth, scores);
    let dropped = part.dropped::<S>(tile, spare);
    let statistics = pairs::<S>(side.statistics);
    let [greatest, inverse, taken] = [statistics[0], statistics[1], statistics[2]];
    let (p, scores, factors) = (pairs_mut::<S>(p), pairs_mut::<S>(scores), pairs::<S>(spare));
    for (key, (p, scores)) in p.iter_mut().zip(&mut *scores).take(tile.seen).enumerate() {
        for v in 0..p.len() {
            let exponential = exp(simd, simd.sub_f32s(p[v], greatest[v]));
            let plain = simd.mul_f32s(exponential, inverse[v]);
            let mut gradient = scores[v];
            p[v] = plain;
            if dropped {
                gradient = simd.mul_f32s(gradient, factors[key][v]);
                p[v] = simd.mul_f32s(plain, factors[key][v]);
            }
            scores[v] = simd.mul_f32s(plain, simd.sub_f32s(gradient, taken[v]));
        }
    }
    let rest = tile.seen..tile.seen.next_multiple_of(R);
    for x in [p, scores] {
        x[rest.clone()].fill([simd.splat_f32s(0.0); 2]);
    }
}

/// Adds to sums `[KEYS, wide]` the products of tiles `[tiles, KEYS, lanes]`, of which the first keys have been seen, with rows
/// `[tiles * lanes, wide]`.
#[inline(always)]
pub fn transposed_products<S: Simd, const R: usize>(
    simd: S,
    Lengths { wide, width, .. }: Lengths,
    seen: &[usize],
    left: &[f32],
    right: &[f32],
    sums: &mut [f32],
) {
    let step = wide / width;
    let most = seen.iter().copied().max().unwrap_or(0);
    let (right, sums) = (pairs::<S>(right), pairs_mut::<S>(sums));
    for column in 0..step {
        for key in (0..most).step_by(R) {
            let mut tile = [splat(simd, 0.0); R];
            for (i, &seen) in seen.iter().enumerate() {
                if seen > key {
                    let left = (&left[(i * KEYS + key) * width..], width);
                    let right = (&right[i * width * step + column..], step);
                    rows_times::<S, R>(simd, width, left, right, &mut tile);
                }
            }
            for r in 0..R {
                let sums = &mut sums[(key + r) * step + column];
                for v in 0..VECTORS {
                    sums[v] = simd.add_f32s(sums[v], tile[r][v]);
                }
            }
        }
    }
}
