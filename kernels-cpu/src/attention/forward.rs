//! Attention forward, a block of queries at a time (FlashAttention-2, arXiv 2307.08691, algorithm 1).

use pulp::{Arch, Simd, WithSimd};

use super::problem::{Inputs, Problem, Target};
use super::score::{KEYS, Part, Tile, panel};
use super::vector::{
    LINE, Lengths, MOST_ROWS, Pair, add_columns_times, aligned, exp, pairs, pairs_mut, splat, take,
    transpose, width,
};
use crate::parallel::{Shared, for_tasks, with_scratch};
use crate::product::many_registers;

/// Queries of a task.
const QUERIES: usize = 128;

/// `softmax(scale Q K^T + biases) V`, with dropout of the probabilities, into `[batch, queries, heads, head_dim]`; and what the way
/// back needs besides ([`Problem::statistics`]). A query that sees no key gives zeros.
///
/// # Panics
/// If sizes do not belong together, or a slice is too short.
pub fn forward(problem: &Problem, inputs: &Inputs, output: &mut [f32], statistics: &mut [f32]) {
    let entries = problem.entries();
    inputs.check(problem, entries.len());
    assert_eq!(statistics.len(), problem.statistics(), "statistics");
    let output = Target::new(output, problem.queries, problem.heads, problem);
    let statistics = Shared::new(statistics);
    let mut tasks = Vec::new();
    for (number, entry) in entries.iter().enumerate() {
        for head in 0..problem.heads {
            let queries = (0..entry.queries.len()).step_by(QUERIES);
            tasks.extend(queries.map(|query| (number, head, query)));
        }
    }
    for_tasks(tasks.len(), problem.parallel(), |task| {
        let (number, head, query) = tasks[task];
        let part = Part {
            problem,
            inputs,
            entry: &entries[number],
            number,
            head,
        };
        let block = Block {
            part,
            lengths: Lengths::new(problem.head_dim),
            query,
            output,
            statistics,
        };
        block.run();
    });
}

/// A block of queries of one head.
struct Block<'a> {
    part: Part<'a>,
    lengths: Lengths,
    query: usize,
    output: Target<'a>,
    statistics: Shared<'a>,
}

/// Scratch memory of a task.
struct Memory<'a> {
    /// Queries `[tiles, head_dim, lanes]`.
    queries: &'a mut [f32],
    /// Sums of values `[tiles, stride, lanes]`.
    sums: &'a mut [f32],
    /// The greatest score so far, and the sum of the exponentials, `[tiles, 2, lanes]`.
    state: &'a mut [f32],
    /// A block of keys `[KEYS, stride]`.
    keys: &'a mut [f32],
    /// Their values.
    values: &'a mut [f32],
    /// Scores `[KEYS, lanes]`, and then probabilities.
    scores: &'a mut [f32],
    /// Biases or dropout `[KEYS, lanes]`, or rows on the way in or out.
    spare: &'a mut [f32],
}

impl<'a> Memory<'a> {
    fn sizes(tiles: usize, of: Lengths) -> [usize; 7] {
        let (queries, sums) = (tiles * of.width * of.head_dim, tiles * of.width * of.stride);
        let (state, keys) = (tiles * of.width * 2, KEYS * of.stride);
        let spare = KEYS.max(of.stride) * of.width;
        [queries, sums, state, keys, keys, KEYS * of.width, spare]
    }

    fn new(mut memory: &'a mut [f32], sizes: [usize; 7]) -> Self {
        let [queries, sums, state, keys, values, scores, spare] =
            sizes.map(|len| take(&mut memory, len));
        Self {
            queries,
            sums,
            state,
            keys,
            values,
            scores,
            spare,
        }
    }
}

impl Block<'_> {
    /// How many queries it has.
    fn count(&self) -> usize {
        (self.part.entry.queries.len() - self.query).min(QUERIES)
    }

    fn run(self) {
        let sizes = Memory::sizes(self.count().div_ceil(self.lengths.width), self.lengths);
        let len = sizes
            .iter()
            .map(|len| len.next_multiple_of(LINE))
            .sum::<usize>();
        // What runs on vectors has to be inlined into the dispatch.
        with_scratch(len + LINE, |scratch| {
            let memory = Memory::new(aligned(scratch), sizes);
            Arch::new().dispatch(Run(self, memory));
        });
    }

    #[inline(always)]
    fn tiles<S: Simd, const R: usize>(&self, simd: S, memory: &mut Memory) {
        let (count, stride) = (self.count(), self.lengths.stride);
        let tiles = count.div_ceil(width::<S>());
        self.begin(simd, memory);
        let problem = self.part.problem;
        let keys = self.part.entry.seen(self.query + count, problem.causal);
        for key in (0..keys).step_by(KEYS) {
            let keys = (keys - key).min(KEYS);
            let (k, v) = (&self.part.inputs.k, &self.part.inputs.v);
            self.part.load_keys(k, [key, keys], memory.keys, stride);
            self.part.load_keys(v, [key, keys], memory.values, stride);
            for i in 0..tiles {
                let query = self.query + i * width::<S>();
                let tile = self.part.tile::<S>(query, key, keys);
                if tile.seen > 0 {
                    self.step::<S, R>(simd, memory, i, tile);
                }
            }
        }
        for i in 0..tiles {
            self.end(simd, memory, i);
        }
    }

    /// Reads the queries; nothing has been seen yet.
    #[inline(always)]
    fn begin<S: Simd>(&self, _: S, memory: &mut Memory) {
        let Lengths {
            head_dim,
            stride,
            width,
            ..
        } = self.lengths;
        let panels = memory.queries.chunks_exact_mut(head_dim * width);
        for (i, queries) in panels.enumerate() {
            let query = self.query + i * width;
            let lanes = (self.part.entry.queries.len() - query).min(width);
            self.part.load_queries(query, lanes, memory.spare, stride);
            panel::<S>((memory.spare, stride), lanes, head_dim, queries);
        }
        memory.sums.fill(0.0);
        for state in memory.state.chunks_exact_mut(2 * width) {
            state[..width].fill(f32::NEG_INFINITY);
            state[width..].fill(0.0);
        }
    }

    /// What a tile of queries sees in a block of keys.
    #[inline(always)]
    fn step<S: Simd, const R: usize>(&self, simd: S, memory: &mut Memory, i: usize, tile: Tile) {
        let Lengths {
            head_dim,
            stride,
            width,
            ..
        } = self.lengths;
        let queries = &memory.queries[i * head_dim * width..][..head_dim * width];
        let keys = (&*memory.keys, stride);
        let scores = [&mut *memory.scores, &mut *memory.spare];
        self.part.scores::<S, R>(simd, tile, keys, queries, scores);
        let state = &mut pairs_mut::<S>(memory.state)[i * 2..][..2];
        let scores = &mut pairs_mut::<S>(memory.scores)[..tile.seen];
        let factor = online_softmax(simd, state, scores);
        if self.part.dropped::<S>(tile, memory.spare) {
            for (p, factors) in scores.iter_mut().zip(pairs::<S>(memory.spare)) {
                for (p, &factor) in p.iter_mut().zip(factors) {
                    *p = simd.mul_f32s(*p, factor);
                }
            }
        }
        let sums = &mut memory.sums[i * stride * width..][..stride * width];
        add_columns_times::<S, R>(simd, (memory.values, stride), scores, factor, sums);
    }

    /// Writes the rows of a tile.
    #[inline(always)]
    #[expect(unsafe_code, reason = "tasks write rows of their own")]
    fn end<S: Simd>(&self, _: S, memory: &mut Memory, i: usize) {
        let Lengths {
            head_dim,
            stride,
            width,
            ..
        } = self.lengths;
        let (problem, entry, head) = (self.part.problem, self.part.entry, self.part.head);
        let query = self.query + i * width;
        let lanes = (entry.queries.len() - query).min(width);
        let first = entry.queries.start + query;
        let sums = (&memory.sums[i * stride * width..], width);
        transpose(sums, [head_dim, lanes], (memory.spare, stride));
        let (greatest, sum) = memory.state[i * 2 * width..][..2 * width].split_at(width);
        for (lane, row) in memory.spare.chunks_exact(stride).take(lanes).enumerate() {
            // A query that sees no key, or only such as are -inf, has sums of zero.
            let inverse = if sum[lane] == 0.0 {
                0.0
            } else {
                1.0 / sum[lane]
            };
            // SAFETY: a query's row is written by its task alone, one at a time.
            let out = unsafe { self.output.row([entry.batch, head, first + lane], head_dim) };
            for (out, x) in out.iter_mut().zip(row) {
                *out = x * inverse;
            }
        }
        let place = problem.statistic(entry.batch, head) + first;
        let half = problem.statistics() / 2;
        for (place, values) in [(place, greatest), (half + place, sum)] {
            // SAFETY: as above.
            let out = unsafe { self.statistics.range(place, lanes) };
            out.copy_from_slice(&values[..lanes]);
        }
    }
}

struct Run<'a, 'b>(Block<'a>, Memory<'b>);

impl WithSimd for Run<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self(block, mut memory) = self;
        if many_registers::<S>() {
            block.tiles::<S, MOST_ROWS>(simd, &mut memory);
        } else {
            block.tiles::<S, 4>(simd, &mut memory);
        }
    }
}

/// Scores become exponentials above the greatest one so far; gives the factor on what was summed before.
#[inline(always)]
fn online_softmax<S: Simd>(simd: S, state: &mut [Pair<S>], scores: &mut [Pair<S>]) -> Pair<S> {
    let [greatest, sum] = [state[0], state[1]];
    let mut now = greatest;
    for scores in &*scores {
        for (now, &score) in now.iter_mut().zip(scores) {
            *now = simd.max_f32s(*now, score);
        }
    }
    let zero = simd.splat_f32s(0.0);
    let none = simd.splat_f32s(f32::NEG_INFINITY);
    // Where all is -inf, exponentials above 0, which are 0.
    let mut above = now;
    for x in &mut above {
        *x = simd.select_f32s(simd.equal_f32s(*x, none), zero, *x);
    }
    let mut sums = splat(simd, 0.0);
    for scores in scores {
        for ((score, above), sum) in scores.iter_mut().zip(above).zip(&mut sums) {
            *score = exp(simd, simd.sub_f32s(*score, above));
            *sum = simd.add_f32s(*sum, *score);
        }
    }
    let mut factor = greatest;
    for ((factor, above), (sums, &sum)) in
        factor.iter_mut().zip(above).zip(sums.iter_mut().zip(&sum))
    {
        *factor = exp(simd, simd.sub_f32s(*factor, above));
        *sums = simd.mul_add_e_f32s(sum, *factor, *sums);
    }
    (state[0], state[1]) = (now, sums);
    factor
}
