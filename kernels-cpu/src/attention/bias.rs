//! The gradients of biases: those of the scores, summed over all that share an element.
//!
//! A pass of its own, in which a task owns a part of the bias, so that sums have one order and nothing but the bias is kept.

use pulp::{Arch, Simd, WithSimd};

use super::backward::{Outputs, STATISTICS, Side, score_gradients};
use super::problem::{Bias, Entry, Inputs, Problem};
use super::score::{KEYS, Part, panel};
use super::vector::{LINE, Lengths, MOST_ROWS, aligned, pairs, pairs_mut, take, transpose};
use crate::parallel::{Shared, for_tasks, with_scratch};
use crate::product::many_registers;

/// The gradient of bias `which` of the inputs, of its sizes.
///
/// # Panics
/// If there is no such bias, sizes do not belong together, or a slice is too short.
pub fn bias_gradient(
    problem: &Problem,
    inputs: &Inputs,
    outputs: &Outputs,
    which: usize,
    gradient: &mut [f32],
) {
    let entries = problem.entries();
    inputs.check(problem, entries.len());
    outputs.check(problem);
    let bias = inputs.biases[which]
        .as_ref()
        .expect("a bias of that number");
    assert_eq!(
        gradient.len(),
        bias.values.len(),
        "a gradient of the bias's sizes"
    );
    let lengths = Lengths::new(problem.head_dim);
    let [numbers, heads, queries] = bias.sizes;
    let blocks = [queries.div_ceil(lengths.width), problem.keys.div_ceil(KEYS)];
    let gradient = Shared::new(gradient);
    let tasks = numbers * heads * blocks[0] * blocks[1];
    for_tasks(tasks, problem.parallel(), |task| {
        let (rest, key) = (task / blocks[1], task % blocks[1] * KEYS);
        let (rest, query) = (rest / blocks[0], rest % blocks[0] * lengths.width);
        let block = Block {
            problem,
            inputs,
            outputs,
            entries: &entries,
            bias,
            lengths,
            place: [rest / heads, rest % heads, query],
            keys: [key, (problem.keys - key).min(KEYS)],
        };
        block.run(gradient);
    });
}

/// A part of a bias: a tile of queries, or the one row for all, and a block of keys.
struct Block<'a> {
    problem: &'a Problem,
    inputs: &'a Inputs<'a>,
    outputs: &'a Outputs<'a>,
    entries: &'a [Entry],
    bias: &'a Bias<'a>,
    lengths: Lengths,
    /// Entry, head and first query of the bias.
    place: [usize; 3],
    /// The first key, and how many.
    keys: [usize; 2],
}

/// Scratch memory of a task.
struct Memory<'a> {
    /// Queries `[head_dim, lanes]`, and gradients of outputs.
    panels: [&'a mut [f32]; 2],
    /// Rows on their way to a panel `[lanes, stride]`.
    rows: &'a mut [f32],
    statistics: &'a mut [f32],
    /// Keys and values `[KEYS, stride]`.
    keys: [&'a mut [f32]; 2],
    /// Probabilities, gradients of scores, biases or dropout, and sums, `[KEYS, lanes]`.
    tiles: [&'a mut [f32]; 4],
}

impl<'a> Memory<'a> {
    fn sizes(of: Lengths) -> [usize; 5] {
        [
            of.head_dim * of.width,
            of.stride * of.width,
            STATISTICS * of.width,
            KEYS * of.stride,
            KEYS * of.width,
        ]
    }

    fn new(mut memory: &'a mut [f32], of: Lengths) -> Self {
        let [panel, rows, statistics, keys, tile] = Self::sizes(of);
        let mut next = |len| take(&mut memory, len);
        Self {
            panels: [next(panel), next(panel)],
            rows: next(rows),
            statistics: next(statistics),
            keys: [next(keys), next(keys)],
            tiles: [next(tile), next(tile), next(tile), next(tile)],
        }
    }
}

impl Block<'_> {
    fn run(self, gradient: Shared) {
        let most: usize = Memory::sizes(self.lengths).iter().sum();
        with_scratch(4 * (most + 5 * LINE) + LINE, |scratch| {
            let mut memory = Memory::new(aligned(scratch), self.lengths);
            Arch::new().dispatch(Sum(&self, &mut memory));
            let sums = &*memory.tiles[3];
            self.write(sums, gradient);
        });
    }

    /// The entries of the batch and the heads that share the bias.
    fn parts(&self) -> impl Iterator<Item = Part<'_>> {
        let [numbers, heads, _] = self.bias.sizes;
        let [number, head, _] = self.place;
        let share = self.problem.batch / numbers;
        let shared = match heads == self.problem.heads {
            true => head..head + 1,
            false => 0..self.problem.heads,
        };
        let part = move |number: usize, head: usize| Part {
            problem: self.problem,
            inputs: self.inputs,
            entry: &self.entries[number],
            number,
            head,
        };
        (number * share..(number + 1) * share)
            .flat_map(move |number| shared.clone().map(move |head| part(number, head)))
    }

    #[inline(always)]
    fn sum<S: Simd, const R: usize>(&self, simd: S, memory: &mut Memory) {
        let Lengths { stride, width, .. } = self.lengths;
        memory.tiles[3].fill(0.0);
        let queries = match self.bias.sizes[2] == 1 {
            true => 0..self.problem.queries,
            false => self.place[2]..self.place[2] + 1,
        };
        for part in self.parts() {
            for (rows, out) in [&part.inputs.k, &part.inputs.v]
                .into_iter()
                .zip(&mut memory.keys)
            {
                part.load_keys(rows, self.keys, out, stride);
            }
            for query in queries.clone().step_by(width) {
                let tile = part.tile::<S>(query, self.keys[0], self.keys[1]);
                if tile.seen == 0 {
                    continue;
                }
                self.load::<S>(&part, [query, tile.lanes], memory);
                let side = Side {
                    queries: memory.panels[0],
                    outputs: memory.panels[1],
                    keys: memory.keys[0],
                    values: memory.keys[1],
                    stride,
                    statistics: memory.statistics,
                };
                let [p, scores, spare, sums] = &mut memory.tiles;
                score_gradients::<S, R>(simd, &part, tile, &side, [p, scores, spare]);
                let scores = &pairs::<S>(scores)[..tile.seen];
                for (sums, scores) in pairs_mut::<S>(sums).iter_mut().zip(scores) {
                    for (sum, &score) in sums.iter_mut().zip(scores) {
                        *sum = simd.add_f32s(*sum, score);
                    }
                }
            }
        }
    }

    /// Reads a tile of queries and what belongs to them.
    #[inline(always)]
    fn load<S: Simd>(&self, part: &Part, [query, lanes]: [usize; 2], memory: &mut Memory) {
        let Lengths {
            head_dim, stride, ..
        } = self.lengths;
        part.load_queries(query, lanes, memory.rows, stride);
        panel::<S>((memory.rows, stride), lanes, head_dim, memory.panels[0]);
        let rows = (&mut *memory.rows, stride);
        self.outputs
            .load(part, [query, lanes], rows, memory.statistics);
        panel::<S>((memory.rows, stride), lanes, head_dim, memory.panels[1]);
    }

    #[expect(unsafe_code, reason = "tasks write parts of rows of their own")]
    fn write(&self, sums: &[f32], gradient: Shared) {
        let ([number, head, query], [key, keys]) = (self.place, self.keys);
        let [_, heads, queries] = self.bias.sizes;
        let width = self.lengths.width;
        let row = |query: usize| {
            let row = (number * heads + head) * queries + query;
            // SAFETY: a part of a row is written by its task alone, one at a time.
            unsafe { gradient.range(row * self.problem.keys + key, keys) }
        };
        if queries == 1 {
            for (out, sums) in row(0).iter_mut().zip(sums.chunks_exact(width)) {
                *out = sums.iter().sum();
            }
            return;
        }
        for lane in 0..(queries - query).min(width) {
            transpose((&sums[lane..], width), [keys, 1], (row(query + lane), keys));
        }
    }
}

struct Sum<'a, 'b, 'c>(&'a Block<'a>, &'b mut Memory<'c>);

impl WithSimd for Sum<'_, '_, '_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if many_registers::<S>() {
            self.0.sum::<S, MOST_ROWS>(simd, self.1);
        } else {
            self.0.sum::<S, 4>(simd, self.1);
        }
    }
}
