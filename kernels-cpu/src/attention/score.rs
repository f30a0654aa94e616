//! Tiles of scores, whose lanes are queries, and blocks of rows in scratch memory.

use pulp::Simd;

use super::dropout;
use super::problem::{Entry, Inputs, Problem, Rows};
use super::vector::{Pair, pairs, pairs_mut, rows_times, splat, transpose, width};

/// Keys of a block.
pub const KEYS: usize = 128;

/// The part of a problem that a task works on.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    pub problem: &'a Problem,
    pub inputs: &'a Inputs<'a>,
    pub entry: &'a Entry,
    /// Which of the entries it is.
    pub number: usize,
    pub head: usize,
}

/// Scores of some queries, which are lanes, and of the first `seen` keys of a block; both count from those of the entry.
#[derive(Clone, Copy)]
pub struct Tile {
    pub query: usize,
    pub lanes: usize,
    pub key: usize,
    pub seen: usize,
}

impl Part<'_> {
    pub fn kv_head(&self) -> usize {
        self.head / self.problem.group()
    }

    /// The tile of queries from `query` on, and of keys from `key` on, so many as `keys`.
    pub fn tile<S: Simd>(&self, query: usize, key: usize, keys: usize) -> Tile {
        let lanes = (self.entry.queries.len() - query).min(width::<S>());
        let seen = self.entry.seen(query + lanes, self.problem.causal);
        Tile {
            query,
            lanes,
            key,
            seen: seen.saturating_sub(key).min(keys),
        }
    }

    /// Queries from `query` on, scaled, and turned if they are; `stride` elements a row.
    #[inline(always)]
    pub fn load_queries(&self, query: usize, lanes: usize, out: &mut [f32], stride: usize) {
        let first = self.entry.queries.start + query;
        let place = [self.entry.batch, self.head, first];
        load(
            &self.inputs.q,
            place,
            lanes,
            self.problem.head_dim,
            out,
            stride,
        );
        out[..lanes * stride]
            .iter_mut()
            .for_each(|x| *x *= self.problem.scale);
    }

    /// Rows of keys or values from `key` on.
    #[inline(always)]
    pub fn load_keys(&self, rows: &Rows, [key, count]: [usize; 2], out: &mut [f32], stride: usize) {
        let first = self.entry.keys.start + key;
        let place = [self.entry.batch, self.kv_head(), first];
        load(rows, place, count, self.problem.head_dim, out, stride);
    }

    /// The tile's scores: of keys `[keys, stride]`, and of queries `[head_dim, lanes]`, which are scaled. `spare` is for biases.
    #[inline(always)]
    pub fn scores<S: Simd, const R: usize>(
        &self,
        simd: S,
        tile: Tile,
        keys: (&[f32], usize),
        queries: &[f32],
        [scores, spare]: [&mut [f32]; 2],
    ) {
        products::<S, R>(
            simd,
            tile.seen,
            keys,
            queries,
            self.problem.head_dim,
            scores,
        );
        for which in 0..self.inputs.biases.len() {
            self.add_bias(simd, which, tile, scores, spare);
        }
        if self.problem.causal {
            self.hide(simd, tile, scores);
        }
    }

    /// -inf where a query must not look.
    #[inline(always)]
    fn hide<S: Simd>(&self, simd: S, tile: Tile, scores: &mut [f32]) {
        let numbers: [f32; 64] = std::array::from_fn(|i| i as f32);
        let lanes = pairs::<S>(&numbers)[0];
        let least = simd.splat_f32s(f32::NEG_INFINITY);
        // Lane i sees the keys of the block up to i + `offset`.
        let offset = tile.query as isize + self.entry.offset() - tile.key as isize;
        let first = (offset + 1).clamp(0, tile.seen as isize) as usize;
        for (key, scores) in pairs_mut::<S>(scores)[..tile.seen]
            .iter_mut()
            .enumerate()
            .skip(first)
        {
            let from = simd.splat_f32s((key as isize - offset) as f32);
            for (score, lane) in scores.iter_mut().zip(lanes) {
                let sees = simd.greater_than_or_equal_f32s(lane, from);
                *score = simd.select_f32s(sees, *score, least);
            }
        }
    }

    #[inline(always)]
    fn add_bias<S: Simd>(
        &self,
        simd: S,
        which: usize,
        tile: Tile,
        scores: &mut [f32],
        spare: &mut [f32],
    ) {
        let Some(bias) = &self.inputs.biases[which] else {
            return;
        };
        let scores = &mut pairs_mut::<S>(scores)[..tile.seen];
        let of = |query: usize| {
            let place = [self.entry.batch, self.head, tile.query + query];
            bias.of(self.problem, place, tile.key..tile.key + tile.seen)
        };
        let mut add = |key: usize, bias: Pair<S>| {
            for (score, bias) in scores[key].iter_mut().zip(bias) {
                *score = simd.add_f32s(*score, bias);
            }
        };
        if bias.sizes[2] == 1 {
            for (key, &x) in of(0).iter().enumerate() {
                add(key, splat(simd, x));
            }
            return;
        }
        let width = width::<S>();
        for lane in 0..tile.lanes {
            for (x, to) in of(lane).iter().zip(spare.chunks_exact_mut(width)) {
                to[lane] = *x;
            }
        }
        for (key, &bias) in pairs::<S>(spare)[..tile.seen].iter().enumerate() {
            add(key, bias);
        }
    }

    /// The factors of dropout on the tile, if there is any.
    #[inline(always)]
    pub fn dropped<S: Simd>(&self, tile: Tile, factors: &mut [f32]) -> bool {
        let Some(site) = &self.inputs.dropout else {
            return false;
        };
        let factors = &mut factors[..tile.seen.next_multiple_of(4) * width::<S>()];
        let place = [self.number, self.head, tile.query, tile.key];
        dropout::factors(site, place, width::<S>(), factors);
        true
    }
}

/// Products of rows of `left`, so many as `rows`, with each lane of a panel `[depth, lanes]`, into `[rows, lanes]`. There is memory
/// for rows up to a multiple of R, in `left` and in `out`.
#[inline(always)]
pub fn products<S: Simd, const R: usize>(
    simd: S,
    rows: usize,
    (left, stride): (&[f32], usize),
    panel: &[f32],
    depth: usize,
    out: &mut [f32],
) {
    let panel = &pairs::<S>(panel)[..depth];
    let (tiles, _) = pairs_mut::<S>(out).as_chunks_mut::<R>();
    for (i, out) in tiles[..rows.div_ceil(R)].iter_mut().enumerate() {
        let mut sums = [splat(simd, 0.0); R];
        let left = (&left[i * R * stride..], stride);
        rows_times(simd, depth, left, (panel, 1), &mut sums);
        *out = sums;
    }
}

/// Copies rows, `stride` elements each; zeros fill what is longer than a row.
#[inline(always)]
fn load(
    rows: &Rows,
    [batch, head, first]: [usize; 3],
    count: usize,
    len: usize,
    out: &mut [f32],
    stride: usize,
) {
    for (i, out) in out.chunks_exact_mut(stride).take(count).enumerate() {
        let (row, rest) = out.split_at_mut(len);
        row.copy_from_slice(rows.row([batch, head, first + i], len));
        rest.fill(0.0);
        if let Some(rotation) = rows.rotation {
            rotation.turn(first + i, row, false);
        }
    }
}

/// The transposed of the first `lanes` of rows `[rows, stride]`, as a panel `[head_dim, lanes]` with zeros for the rest.
#[inline(always)]
pub fn panel<S: Simd>(rows: (&[f32], usize), lanes: usize, head_dim: usize, out: &mut [f32]) {
    if lanes < width::<S>() {
        out.fill(0.0);
    }
    transpose(rows, [lanes, head_dim], (out, width::<S>()));
}
