//! The gradients of attention: probabilities are computed again, tile by tile (FlashAttention-2, arXiv 2307.08691, algorithm 2).
//!
//! A task has a head of keys, or a share of its keys, and all queries that see them: it owns the gradients of keys and values, and
//! those of the queries, which it keeps in scratch memory. Where keys are shared among tasks, each writes the queries' gradients to
//! memory of its own, which are summed in the keys' order.

mod memory;
mod tile;

pub(super) use memory::STATISTICS;
pub(super) use tile::{Side, score_gradients};

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use memory::{Memory, QUERIES};
use tile::transposed_products;

use super::problem::{Entry, Gradients, Inputs, Problem, Rows, Target};
use super::score::{KEYS, Part, panel};
use super::vector::{
    LINE, Lengths, MOST_ROWS, add_columns_times, aligned, pairs, splat, transpose,
};
use crate::parallel::{for_tasks, with_scratch};
use crate::product::many_registers;

/// Tasks that keep the cores of a node busy, whatever their number.
const TASKS: usize = 16;

/// Keys that are worth a task.
const SHARE: usize = 256;

/// What the way back starts from.
#[derive(Debug, Clone, Copy)]
pub struct Outputs<'a> {
    /// The output `[batch, heads, queries, head_dim]`.
    pub output: Rows<'a>,
    /// Its gradient.
    pub gradient: Rows<'a>,
    /// What the forward pass left.
    pub statistics: &'a [f32],
    /// The gradient of the log-sum-exps `[batch, heads, queries]`, if they were used.
    pub log_sum_exp_gradient: Option<&'a [f32]>,
}

/// The gradients of query, key and value.
///
/// # Panics
/// If sizes do not belong together, or a slice is too short.
pub fn backward(problem: &Problem, inputs: &Inputs, outputs: &Outputs, gradients: &Gradients) {
    let entries = problem.entries();
    inputs.check(problem, entries.len());
    outputs.check(problem);
    let tasks = tasks(problem, &entries);
    let shares = tasks.iter().map(|task| task.share + 1).max().unwrap_or(0);
    let size = problem.batch * problem.queries * problem.heads * problem.head_dim;
    let mut partial = vec![0.0; if shares > 1 { shares * size } else { 0 }];
    let targets: Vec<Target> = match shares {
        0 | 1 => vec![gradients.q],
        _ => {
            let parts = partial.chunks_exact_mut(size);
            parts
                .map(|part| Target::new(part, problem.queries, problem.heads, problem))
                .collect()
        }
    };
    for_tasks(tasks.len(), problem.parallel(), |i| {
        let share = Share {
            problem,
            inputs,
            outputs,
            entry: &entries[tasks[i].entry],
            task: &tasks[i],
            gradients: Gradients {
                q: targets[tasks[i].share],
                ..*gradients
            },
        };
        share.run();
    });
    if shares > 1 {
        add_up(problem, &targets, &gradients.q);
    }
}

/// The sums of all shares' gradients of the queries.
#[expect(unsafe_code, reason = "tasks write rows of their own")]
fn add_up<'a>(problem: &Problem, parts: &[Target<'a>], sums: &Target<'a>) {
    for_tasks(problem.batch * problem.heads, problem.parallel(), |i| {
        for query in 0..problem.queries {
            let place = [i / problem.heads, i % problem.heads, query];
            let row = |of: &Target<'a>| {
                // SAFETY: each row is in use here alone, of the sums and of the parts.
                unsafe { of.row(place, problem.head_dim) }
            };
            let out = row(sums);
            out.copy_from_slice(row(&parts[0]));
            for part in &parts[1..] {
                for (sum, x) in out.iter_mut().zip(row(part)) {
                    *sum += *x;
                }
            }
        }
    });
}

impl Outputs<'_> {
    pub(super) fn check(&self, problem: &Problem) {
        let rows = problem.statistics() / 2;
        let gradient = self.log_sum_exp_gradient.map_or(rows, <[f32]>::len);
        assert!(
            self.statistics.len() == 2 * rows && gradient == rows,
            "statistics of {}, and {gradient} gradients of log-sum-exps, for {rows} rows",
            self.statistics.len()
        );
    }
}

/// A head of keys, or a share of its keys.
struct Task {
    entry: usize,
    kv_head: usize,
    share: usize,
    keys: Range<usize>,
}

/// Cut by the sizes alone.
fn tasks(problem: &Problem, entries: &[Entry]) -> Vec<Task> {
    let wanted = TASKS.div_ceil((entries.len() * problem.kv_heads).max(1));
    let mut tasks = Vec::new();
    for (number, entry) in entries.iter().enumerate() {
        let keys = entry.keys.len();
        let shares = wanted.min(keys.div_ceil(SHARE)).max(1);
        let len = keys.div_ceil(shares).next_multiple_of(KEYS);
        for kv_head in 0..problem.kv_heads {
            // One share at least, so that queries without keys get zeros.
            let starts = (0..keys.max(1)).step_by(len.max(1));
            tasks.extend(starts.enumerate().map(|(share, start)| Task {
                entry: number,
                kv_head,
                share,
                keys: start.min(keys)..(start + len).min(keys),
            }));
        }
    }
    tasks
}

struct Share<'a> {
    problem: &'a Problem,
    inputs: &'a Inputs<'a>,
    outputs: &'a Outputs<'a>,
    entry: &'a Entry,
    task: &'a Task,
    gradients: Gradients<'a>,
}

impl<'a> Share<'a> {
    fn run(self) {
        let lengths = Lengths::new(self.problem.head_dim);
        let width = lengths.width;
        let first = self
            .entry
            .first_query(self.task.keys.start, self.problem.causal);
        let first = first / width * width;
        let tiles = (self.entry.queries.len() - first).div_ceil(width);
        let sizes = Memory::sizes(tiles, lengths);
        let len = sizes
            .iter()
            .map(|len| len.next_multiple_of(LINE))
            .sum::<usize>();
        // What runs on vectors has to be inlined into the dispatch.
        with_scratch(len + LINE, |scratch| {
            let mut memory = Memory::new(aligned(scratch), sizes);
            for i in 0..self.problem.group() {
                let head = Head {
                    part: self.part(i),
                    share: &self,
                    lengths,
                    first,
                    tiles,
                    add: i > 0,
                };
                Arch::new().dispatch(Run(head, &mut memory));
            }
        });
    }

    fn part(&self, head: usize) -> Part<'a> {
        Part {
            problem: self.problem,
            inputs: self.inputs,
            entry: self.entry,
            number: self.task.entry,
            head: self.task.kv_head * self.problem.group() + head,
        }
    }
}

/// A head of queries, from `first` on.
struct Head<'a> {
    part: Part<'a>,
    share: &'a Share<'a>,
    lengths: Lengths,
    first: usize,
    tiles: usize,
    /// Whether the gradients of keys and values are added to those of another head.
    add: bool,
}

struct Run<'a, 'b, 'c>(Head<'a>, &'b mut Memory<'c>);

impl WithSimd for Run<'_, '_, '_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self(head, memory) = self;
        if many_registers::<S>() {
            head.run::<S, MOST_ROWS>(simd, memory);
        } else {
            head.run::<S, 4>(simd, memory);
        }
    }
}

impl Head<'_> {
    #[inline(always)]
    fn run<S: Simd, const R: usize>(&self, simd: S, memory: &mut Memory) {
        let Lengths { width, .. } = self.lengths;
        for i in 0..self.tiles {
            self.begin::<S>(memory, i);
        }
        memory.sums.fill(0.0);
        let (all, group) = (&self.share.task.keys, QUERIES / width);
        for key in all.clone().step_by(KEYS) {
            let keys = (all.end - key).min(KEYS);
            let (k, v) = (&self.part.inputs.k, &self.part.inputs.v);
            self.part
                .load_keys(k, [key, keys], memory.keys, self.lengths.stride);
            self.part
                .load_keys(v, [key, keys], memory.values, self.lengths.stride);
            memory.key_sums.fill(0.0);
            memory.value_sums.fill(0.0);
            let from = self.part.entry.first_query(key, self.part.problem.causal);
            let from = from.saturating_sub(self.first) / width;
            for tile in (from..self.tiles).step_by(group) {
                let tiles = tile..(tile + group).min(self.tiles);
                self.group::<S, R>(simd, memory, tiles, [key, keys]);
            }
            self.end_keys(memory, [key, keys]);
        }
        for i in 0..self.tiles {
            self.end_queries(memory, i);
        }
        self.end_unseeing();
    }

    /// Reads a tile of queries and what belongs to them.
    #[inline(always)]
    fn begin<S: Simd>(&self, memory: &mut Memory, i: usize) {
        let Lengths {
            head_dim,
            wide,
            width,
            ..
        } = self.lengths;
        let query = self.first + i * width;
        let lanes = (self.part.entry.queries.len() - query).min(width);
        let query_rows = &mut memory.query_rows[i * width * wide..][..width * wide];
        let output_rows = &mut memory.output_rows[i * width * wide..][..width * wide];
        // Rows beyond the last query meet probabilities of 0.
        query_rows[lanes * wide..].fill(0.0);
        output_rows[lanes * wide..].fill(0.0);
        self.part.load_queries(query, lanes, query_rows, wide);
        let queries = &mut memory.queries[i * head_dim * width..][..head_dim * width];
        panel::<S>((query_rows, wide), lanes, head_dim, queries);
        let statistics = &mut memory.statistics[i * width * STATISTICS..][..width * STATISTICS];
        let outputs = self.share.outputs;
        outputs.load(&self.part, [query, lanes], (output_rows, wide), statistics);
        let outputs = &mut memory.outputs[i * head_dim * width..][..head_dim * width];
        panel::<S>((output_rows, wide), lanes, head_dim, outputs);
    }

    /// What some tiles of queries see in a block of keys.
    #[inline(always)]
    fn group<S: Simd, const R: usize>(
        &self,
        simd: S,
        memory: &mut Memory,
        tiles: Range<usize>,
        [key, keys]: [usize; 2],
    ) {
        let Lengths {
            head_dim,
            stride,
            width,
            ..
        } = self.lengths;
        let mut seen = [0; QUERIES];
        for (place, i) in tiles.clone().enumerate() {
            let query = self.first + i * width;
            let tile = self.part.tile::<S>(query, key, keys);
            seen[place] = tile.seen;
            let (at, len) = (i * head_dim * width, head_dim * width);
            let statistics = &memory.statistics[i * width * STATISTICS..];
            let side = Side {
                queries: &memory.queries[at..][..len],
                outputs: &memory.outputs[at..][..len],
                keys: memory.keys,
                values: memory.values,
                stride,
                statistics: &statistics[..width * STATISTICS],
            };
            let (at, len) = (place * KEYS * width, KEYS * width);
            let p = &mut memory.probabilities[at..][..len];
            let scores = &mut memory.scores[at..][..len];
            score_gradients::<S, R>(simd, &self.part, tile, &side, [p, scores, memory.spare]);
            let scores = &pairs::<S>(scores)[..tile.seen];
            let sums = &mut memory.sums[i * stride * width..][..stride * width];
            let keys = (&*memory.keys, stride);
            add_columns_times::<S, R>(simd, keys, scores, splat(simd, 1.0), sums);
        }
        let seen = &seen[..tiles.len()];
        let rows = tiles.start * width;
        for (left, right, sums) in [
            (
                &*memory.probabilities,
                &*memory.output_rows,
                &mut *memory.value_sums,
            ),
            (&*memory.scores, &*memory.query_rows, &mut *memory.key_sums),
        ] {
            let right = &right[rows * self.lengths.wide..];
            transposed_products::<S, R>(simd, self.lengths, seen, left, right, sums);
        }
    }

    /// Writes the gradients of a block of keys, or adds them.
    #[expect(unsafe_code, reason = "tasks write rows of their own")]
    fn end_keys(&self, memory: &mut Memory, [key, keys]: [usize; 2]) {
        let Lengths { head_dim, wide, .. } = self.lengths;
        let (entry, share) = (self.part.entry, self.share);
        for (target, sums, rotation) in [
            (
                &share.gradients.k,
                &mut *memory.key_sums,
                self.part.inputs.k.rotation,
            ),
            (&share.gradients.v, &mut *memory.value_sums, None),
        ] {
            for (i, row) in sums.chunks_exact_mut(wide).take(keys).enumerate() {
                let row = &mut row[..head_dim];
                let position = entry.keys.start + key + i;
                if let Some(rotation) = rotation {
                    rotation.turn(position, row, true);
                }
                let place = [entry.batch, share.task.kv_head, position];
                // SAFETY: a key's row is written by its task alone, one at a time.
                let out = unsafe { target.row(place, head_dim) };
                match self.add {
                    true => out.iter_mut().zip(row).for_each(|(out, x)| *out += *x),
                    false => out.copy_from_slice(row),
                }
            }
        }
    }

    /// Writes the gradients of a tile of queries.
    #[inline(always)]
    #[expect(unsafe_code, reason = "tasks write rows of their own")]
    fn end_queries(&self, memory: &mut Memory, i: usize) {
        let Lengths {
            head_dim,
            stride,
            width,
            ..
        } = self.lengths;
        let (entry, problem) = (self.part.entry, self.part.problem);
        let query = self.first + i * width;
        let lanes = (entry.queries.len() - query).min(width);
        let sums = (&memory.sums[i * stride * width..], width);
        transpose(sums, [head_dim, lanes], (memory.spare, stride));
        for (lane, row) in memory
            .spare
            .chunks_exact_mut(stride)
            .take(lanes)
            .enumerate()
        {
            let row = &mut row[..head_dim];
            let position = entry.queries.start + query + lane;
            if let Some(rotation) = self.part.inputs.q.rotation {
                rotation.turn(position, row, true);
            }
            let place = [entry.batch, self.part.head, position];
            // SAFETY: a query's row is written by its task alone, one at a time; each share of keys has rows of its own.
            let out = unsafe { self.share.gradients.q.row(place, head_dim) };
            for (out, x) in out.iter_mut().zip(row) {
                *out = problem.scale * *x;
            }
        }
    }

    /// Writes zeros to the gradients of the queries before those that see a key here.
    #[expect(unsafe_code, reason = "tasks write rows of their own")]
    fn end_unseeing(&self) {
        let entry = self.part.entry;
        for query in 0..self.first {
            let place = [entry.batch, self.part.head, entry.queries.start + query];
            // SAFETY: as for the other queries.
            let out = unsafe { self.share.gradients.q.row(place, self.lengths.head_dim) };
            out.fill(0.0);
        }
    }
}
