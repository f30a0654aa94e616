//! Scratch memory of a task of the way back.

use crate::attention::score::KEYS;
use crate::attention::vector::{Lengths, take};

/// Queries whose probabilities are kept for the products with them.
pub const QUERIES: usize = 128;

/// A tile's side of the queries: statistics, as rows of lanes.
pub const STATISTICS: usize = 3;

/// Scratch memory of a task; `tiles` tiles of queries.
pub struct Memory<'a> {
    /// Queries `[tiles, head_dim, lanes]`.
    pub queries: &'a mut [f32],
    /// Gradients of outputs `[tiles, head_dim, lanes]`.
    pub outputs: &'a mut [f32],
    /// Queries `[tiles * lanes, wide]`.
    pub query_rows: &'a mut [f32],
    /// Gradients of outputs `[tiles * lanes, wide]`.
    pub output_rows: &'a mut [f32],
    /// Gradients of queries `[tiles, stride, lanes]`.
    pub sums: &'a mut [f32],
    /// `[tiles, STATISTICS, lanes]`.
    pub statistics: &'a mut [f32],
    /// A block of keys `[KEYS, stride]`.
    pub keys: &'a mut [f32],
    /// Their values.
    pub values: &'a mut [f32],
    /// The gradients of a block of keys `[KEYS, wide]`.
    pub key_sums: &'a mut [f32],
    /// Those of their values.
    pub value_sums: &'a mut [f32],
    /// Probabilities of some tiles, after dropout, `[tiles, KEYS, lanes]`.
    pub probabilities: &'a mut [f32],
    /// Gradients of the scores `[tiles, KEYS, lanes]`.
    pub scores: &'a mut [f32],
    /// Biases or dropout `[KEYS, lanes]`, or rows on the way out.
    pub spare: &'a mut [f32],
}

impl<'a> Memory<'a> {
    pub fn sizes(tiles: usize, of: Lengths) -> [usize; 13] {
        let (panel, rows) = (tiles * of.width * of.head_dim, tiles * of.width * of.wide);
        let (keys, key_sums) = (KEYS * of.stride, KEYS * of.wide);
        let group = QUERIES * KEYS;
        let sums = tiles * of.width * of.stride;
        let statistics = tiles * of.width * STATISTICS;
        let spare = KEYS.max(of.stride) * of.width;
        [
            panel, panel, rows, rows, sums, statistics, keys, keys, key_sums, key_sums, group,
            group, spare,
        ]
    }

    pub fn new(mut memory: &'a mut [f32], sizes: [usize; 13]) -> Self {
        let mut sizes = sizes.into_iter();
        let mut next = || take(&mut memory, sizes.next().unwrap_or(0));
        Self {
            queries: next(),
            outputs: next(),
            query_rows: next(),
            output_rows: next(),
            sums: next(),
            statistics: next(),
            keys: next(),
            values: next(),
            key_sums: next(),
            value_sums: next(),
            probabilities: next(),
            scores: next(),
            spare: next(),
        }
    }
}
