//! What attention is computed of, and where its tensors lie.

use std::ops::Range;

use crate::parallel::Shared;

/// Sizes and options.
#[derive(Debug, Clone)]
pub struct Problem {
    /// Entries of the batch; 1 with `sequences`.
    pub batch: usize,
    /// Heads of the queries, a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Queries of an entry of the batch.
    pub queries: usize,
    /// Keys of an entry of the batch.
    pub keys: usize,
    /// Elements of a row.
    pub head_dim: usize,
    /// Whether query i of n sees the keys `j <= i + keys - n` only.
    pub causal: bool,
    /// Factor on the scores.
    pub scale: f32,
    /// Where sequences begin that lie one after the other, in the queries and in the keys, and at last where all end.
    pub sequences: Option<[Vec<usize>; 2]>,
}

/// Queries and keys that see each other: an entry of the batch, or one of several packed sequences.
#[derive(Debug, Clone)]
pub struct Entry {
    pub batch: usize,
    pub queries: Range<usize>,
    pub keys: Range<usize>,
}

impl Problem {
    /// Elements of the statistics that the forward pass leaves: the greatest score of each query, `[batch, heads, queries]`, and
    /// then the sums of `exp(score - greatest)`.
    pub fn statistics(&self) -> usize {
        2 * self.batch * self.heads * self.queries
    }

    /// Query heads for each head of keys.
    pub(super) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Where the statistics of a head begin.
    pub(super) fn statistic(&self, batch: usize, head: usize) -> usize {
        (batch * self.heads + head) * self.queries
    }

    /// Whether the work is worth other threads.
    pub(super) fn parallel(&self) -> bool {
        const PARALLEL: usize = 1 << 18;
        let rows = self.batch * self.heads * self.queries;
        rows.saturating_mul(self.keys).saturating_mul(self.head_dim) >= PARALLEL
    }

    pub(super) fn entries(&self) -> Vec<Entry> {
        let Some([queries, keys]) = &self.sequences else {
            let entry = |batch| Entry {
                batch,
                queries: 0..self.queries,
                keys: 0..self.keys,
            };
            return (0..self.batch).map(entry).collect();
        };
        let bounds = queries.windows(2).zip(keys.windows(2));
        let entries = bounds.map(|(q, k)| Entry {
            batch: 0,
            queries: q[0]..q[1],
            keys: k[0]..k[1],
        });
        entries.collect()
    }

    /// Panics unless the sizes belong together.
    pub(super) fn check(&self) {
        assert!(
            self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads) && self.head_dim > 0,
            "attention of {} heads over {} of {} elements",
            self.heads,
            self.kv_heads,
            self.head_dim
        );
        if let Some([queries, keys]) = &self.sequences {
            let fills = |bounds: &[usize], rows: usize| {
                bounds.first() == Some(&0) && bounds.last() == Some(&rows) && bounds.is_sorted()
            };
            assert!(
                self.batch == 1
                    && queries.len() == keys.len()
                    && fills(queries, self.queries)
                    && fills(keys, self.keys),
                "sequences that do not fill the rows: {queries:?}, {keys:?}"
            );
        }
    }
}

impl Entry {
    /// Query i sees the keys below `i + 1 + offset` if it is causal.
    pub fn offset(&self) -> isize {
        self.keys.len() as isize - self.queries.len() as isize
    }

    /// How many keys the first `queries` queries see.
    pub fn seen(&self, queries: usize, causal: bool) -> usize {
        match causal {
            true => (queries as isize + self.offset()).clamp(0, self.keys.len() as isize) as usize,
            false => self.keys.len(),
        }
    }

    /// The first query that sees key `key`.
    pub fn first_query(&self, key: usize, causal: bool) -> usize {
        match causal {
            true => (key as isize - self.offset()).clamp(0, self.queries.len() as isize) as usize,
            false => 0,
        }
    }
}

/// Rotary position embedding (arXiv 2104.09864) of the two halves of a row, whose place in the tensor is its position.
#[derive(Debug, Clone, Copy)]
pub struct Rotation<'a> {
    /// Cosines `[positions, head_dim / 2]`.
    pub cos: &'a [f32],
    /// Sines `[positions, head_dim / 2]`.
    pub sin: &'a [f32],
}

impl Rotation<'_> {
    /// Turns a row, or turns it back.
    #[inline(always)]
    pub(super) fn turn(self, position: usize, row: &mut [f32], back: bool) {
        let half = row.len() / 2;
        let [cos, sin] = [self.cos, self.sin].map(|x| &x[position * half..][..half]);
        let sign = if back { -1.0 } else { 1.0 };
        let (first, second) = row.split_at_mut(half);
        for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            let sin = sign * sin;
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

/// A tensor of rows: row `r` of head `h` of entry `b` begins at `b strides[0] + h strides[1] + r strides[2]`.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// Where they lie.
    pub values: &'a [f32],
    /// From one entry of the batch, head and row to the next.
    pub strides: [usize; 3],
    /// How rows are turned when they are read.
    pub rotation: Option<Rotation<'a>>,
}

impl<'a> Rows<'a> {
    #[inline(always)]
    pub(super) fn row(&self, [batch, head, row]: [usize; 3], len: usize) -> &'a [f32] {
        let [b, h, r] = self.strides;
        &self.values[batch * b + head * h + row * r..][..len]
    }
}

/// An additive bias of the scores, contiguous along the keys.
#[derive(Debug, Clone, Copy)]
pub struct Bias<'a> {
    /// `[entries, heads or 1, queries or 1, keys]`.
    pub values: &'a [f32],
    /// Entries, heads and queries that it has.
    pub sizes: [usize; 3],
}

impl<'a> Bias<'a> {
    /// Which of its rows, of how many keys, is that of a query.
    #[inline(always)]
    pub(super) fn row(&self, problem: &Problem, [batch, head, query]: [usize; 3]) -> usize {
        let [entries, heads, queries] = self.sizes;
        let entry = batch * entries / problem.batch;
        let (head, query) = (head % heads, if queries == 1 { 0 } else { query });
        (entry * heads + head) * queries + query
    }

    #[inline(always)]
    pub(super) fn of(&self, problem: &Problem, place: [usize; 3], keys: Range<usize>) -> &'a [f32] {
        let start = self.row(problem, place) * problem.keys;
        &self.values[start + keys.start..start + keys.end]
    }

    fn check(&self, problem: &Problem) {
        let [entries, heads, queries] = self.sizes;
        let fits = entries > 0
            && problem.batch.is_multiple_of(entries)
            && [1, problem.heads].contains(&heads)
            && [1, problem.queries].contains(&queries)
            && problem.sequences.is_none()
            && self.values.len() == entries * heads * queries * problem.keys;
        assert!(fits, "a bias of {:?} for {problem:?}", self.sizes);
    }
}

/// Dropout of the probabilities: element (query, key) of head h of an entry takes word `start[2] + key` of row
/// `start[1] + query` of site `samples[entry] * global + start[0] + h`, and is dropped if that is below `threshold`.
#[derive(Debug, Clone, Copy)]
pub struct Dropout<'a> {
    /// Key of Philox4x32-10.
    pub key: [u32; 2],
    /// Words below it drop.
    pub threshold: u32,
    /// Factor on what stays.
    pub keep: f32,
    /// One for each entry of the batch, or sequence.
    pub samples: &'a [u64],
    /// Heads in the world.
    pub global: u64,
    /// First head, query and key; the key's is a multiple of four.
    pub start: [usize; 3],
}

/// All that is read in both directions.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// `[batch, heads, queries, head_dim]`.
    pub q: Rows<'a>,
    /// `[batch, kv_heads, keys, head_dim]`.
    pub k: Rows<'a>,
    /// `[batch, kv_heads, keys, head_dim]`.
    pub v: Rows<'a>,
    /// Added to the scores.
    pub biases: [Option<Bias<'a>>; 2],
    /// Dropout of the probabilities.
    pub dropout: Option<Dropout<'a>>,
}

impl Inputs<'_> {
    pub(super) fn check(&self, problem: &Problem, entries: usize) {
        problem.check();
        for bias in self.biases.iter().flatten() {
            bias.check(problem);
        }
        if let Some(dropout) = &self.dropout {
            assert!(
                dropout.samples.len() == entries && dropout.start[2].is_multiple_of(4),
                "dropout of {} samples from {:?} on for {entries} entries",
                dropout.samples.len(),
                dropout.start
            );
        }
    }
}

/// Where rows are written: row `r` of head `h` of entry `b` at `(b rows + r) width + first + h head_dim`.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    values: Shared<'a>,
    rows: usize,
    width: usize,
    first: usize,
}

impl<'a> Target<'a> {
    /// Of `heads` heads beside each other: `[batch, rows, heads, head_dim]`.
    pub fn new(values: &'a mut [f32], rows: usize, heads: usize, problem: &Problem) -> Self {
        let width = heads * problem.head_dim;
        let len = problem.batch * rows * width;
        assert!(values.len() >= len, "{} of {len} elements", values.len());
        Self {
            values: Shared::new(values),
            rows,
            width,
            first: 0,
        }
    }

    /// A row to be written.
    ///
    /// # Safety
    /// While the result is in use, no other of this row is.
    #[inline(always)]
    #[expect(unsafe_code, reason = "tasks write rows of their own")]
    pub unsafe fn row(&self, [batch, head, row]: [usize; 3], len: usize) -> &'a mut [f32] {
        let start = (batch * self.rows + row) * self.width + self.first + head * len;
        // SAFETY: rows do not overlap, and the caller uses one of each.
        unsafe { self.values.range(start, len) }
    }
}

/// Where the gradients of query, key and value are written.
#[derive(Clone, Copy)]
pub struct Gradients<'a> {
    pub(super) q: Target<'a>,
    pub(super) k: Target<'a>,
    pub(super) v: Target<'a>,
}

impl<'a> Gradients<'a> {
    /// Each by itself: `[batch, queries, heads, head_dim]` and `[batch, keys, kv_heads, head_dim]`.
    ///
    /// # Panics
    /// If one is too short.
    pub fn separate([q, k, v]: [&'a mut [f32]; 3], problem: &Problem) -> Self {
        Self {
            q: Target::new(q, problem.queries, problem.heads, problem),
            k: Target::new(k, problem.keys, problem.kv_heads, problem),
            v: Target::new(v, problem.keys, problem.kv_heads, problem),
        }
    }

    /// Side by side, of as many keys as queries: `[batch, queries, heads + 2 kv_heads, head_dim]`.
    ///
    /// # Panics
    /// If it is too short, or there are not as many keys.
    pub fn packed(values: &'a mut [f32], problem: &Problem) -> Self {
        assert_eq!(
            problem.queries, problem.keys,
            "queries and keys side by side"
        );
        let heads = problem.heads + 2 * problem.kv_heads;
        let q = Target::new(values, problem.queries, heads, problem);
        let at = |head: usize| Target {
            first: head * problem.head_dim,
            ..q
        };
        Self {
            q,
            k: at(problem.heads),
            v: at(problem.heads + problem.kv_heads),
        }
    }
}
