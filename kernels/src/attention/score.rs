//! What becomes of a score between the two products: which keys a query sees, biases, dropout.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use super::problem::{BiasStrides, Geometry, Strides, Variant};
use crate::matrix::instruction::{Instruction, Unit};
use crate::matrix::lanes::{coordinate, lane_part};
use crate::random::philox_block;

/// A score, to base 2, whose probability is 0. Finite: WGSL has no infinities.
pub(crate) const UNSEEN: f32 = -3e38;

/// The rows of one batch entry.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Sequence {
    /// Batch entry, as biases and statistics count it.
    pub batch: u32,
    /// Row of the tensors where the queries begin.
    pub first_query: u32,
    /// Queries.
    pub queries: u32,
    /// Row of the tensors where the keys begin.
    pub first_key: u32,
    /// Keys.
    pub keys: u32,
}

/// Batch entry `batch`. `cumulative_queries` and `cumulative_keys` (`[batch + 1]`) are read if sequences are packed.
#[cube]
pub(crate) fn sequence(
    batch: u32,
    geometry: &Geometry,
    cumulative_queries: &[u32],
    cumulative_keys: &[u32],
    #[comptime] variant: Variant,
) -> Sequence {
    if comptime!(variant.packed) {
        let first_query = cumulative_queries[batch as usize];
        let first_key = cumulative_keys[batch as usize];
        let queries = cumulative_queries[(batch + 1) as usize] - first_query;
        let keys = cumulative_keys[(batch + 1) as usize] - first_key;
        // What has no rows may begin behind the last row, where kernels that look ahead would read.
        Sequence {
            batch,
            first_query: select(queries == 0, 0u32, first_query),
            queries,
            first_key: select(keys == 0, 0u32, first_key),
            keys,
        }
    } else {
        Sequence {
            batch,
            first_query: 0u32.runtime(),
            queries: geometry.queries,
            first_key: 0u32.runtime(),
            keys: geometry.keys,
        }
    }
}

/// Element where row 0 of `sequence`'s queries begins in a tensor of `strides`.
#[cube]
pub(crate) fn query_base(
    sequence: &Sequence,
    head: u32,
    strides: &Strides,
    #[comptime] variant: Variant,
) -> u32 {
    if comptime!(variant.packed) {
        head * strides.head + sequence.first_query * strides.row
    } else {
        sequence.batch * strides.batch + head * strides.head
    }
}

/// Element where row 0 of `sequence`'s keys begins in a tensor of `strides`.
#[cube]
pub(crate) fn key_base(
    sequence: &Sequence,
    head: u32,
    strides: &Strides,
    #[comptime] variant: Variant,
) -> u32 {
    if comptime!(variant.packed) {
        head * strides.head + sequence.first_key * strides.row
    } else {
        sequence.batch * strides.batch + head * strides.head
    }
}

/// Whether `query` sees `key`, by the mask alone.
#[cube]
pub(crate) fn visible(sequence: &Sequence, query: u32, key: u32, #[comptime] causal: bool) -> bool {
    if comptime!(causal) {
        // Both sides have queries added, so that nothing is negative.
        key < sequence.keys && key + sequence.queries <= query + sequence.keys
    } else {
        key < sequence.keys
    }
}

/// Keys that a query below `queries` (`first + rows` of a tile, say) can see: those from the result on, none does.
#[cube]
pub(crate) fn keys_seen_below(sequence: &Sequence, queries: u32, #[comptime] causal: bool) -> u32 {
    if comptime!(causal) {
        let last = min(queries, sequence.queries) + sequence.keys;
        select(last > sequence.queries, last - sequence.queries, 0u32)
    } else {
        sequence.keys
    }
}

/// Keys that every query from `query` on sees.
#[cube]
pub(crate) fn keys_seen_by_all(sequence: &Sequence, query: u32, #[comptime] causal: bool) -> u32 {
    if comptime!(causal) {
        let end = query + 1 + sequence.keys;
        let seen = select(end > sequence.queries, end - sequence.queries, 0u32);
        min(seen, sequence.keys)
    } else {
        sequence.keys
    }
}

/// Element of a bias at (`query`, `key`) = (0, 0).
#[cube]
pub(crate) fn bias_base(batch: u32, head: u32, strides: &BiasStrides) -> u32 {
    batch / strides.divisor * strides.batch + head * strides.head
}

/// The bias of (`query`, `key`), which lie within the sequence.
#[cube]
pub(crate) fn bias<E: Numeric>(
    bias: &[E],
    base: u32,
    query: u32,
    key: u32,
    strides: &BiasStrides,
) -> f32 {
    f32::cast_from(bias[(base + query * strides.query + key * strides.key) as usize])
}

/// Which random numbers the probabilities of a (sample, head) take.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Site {
    low: u32,
    high: u32,
}

/// The site of `head` of batch entry `batch`, whose sample is `samples[batch]`.
#[cube]
pub(crate) fn site(
    samples: &[u32],
    batch: u32,
    head: u32,
    geometry: &Geometry,
    #[comptime] variant: Variant,
) -> Site {
    if comptime!(variant.dropout) {
        let sample = samples[batch as usize];
        let product = sample * geometry.heads_global;
        let low = product + geometry.first_head + head;
        let carry = select(low < product, 1u32, 0u32);
        Site {
            low,
            high: u32::mul_hi(sample, geometry.heads_global) + carry,
        }
    } else {
        Site {
            low: 0u32.runtime(),
            high: 0u32.runtime(),
        }
    }
}

/// Which elements of D dropout keeps: D is a tile of S^T, its first row key `first_key` (a multiple of 4), its columns
/// queries, the lane's first column being `query`. `keep[e]` belongs to element `e` of the lane.
#[cube]
pub(crate) fn kept(
    site: &Site,
    query: u32,
    first_key: u32,
    lane: u32,
    geometry: &Geometry,
    #[comptime] instruction: Instruction,
) -> Array<bool> {
    let rows = comptime!(instruction.d.row);
    let count = comptime!(instruction.d.elements);
    let mut keep = Array::<bool>::new(count);
    // A lane whose rows begin at a multiple of 4 uses the four words of a block one after the other.
    let whole_blocks = comptime!(rows.modulo == 1 || rows.scale % 4 == 0);
    if comptime!(instruction.unit == Unit::Mma) {
        // Of each of its columns, a lane has two neighbouring rows: half of a block.
        let row = first_key + lane_part(lane, rows);
        let upper = row % 4 == 2;
        #[unroll]
        for column in 0..comptime!(count / 2) {
            let query = query + comptime!(instruction.columns()[column] as u32);
            let words = words(site, query, row, geometry);
            #[unroll]
            for e in 0..2usize {
                let lower = words.extract(e);
                let word = select(upper, words.extract(comptime!(e + 2)), lower);
                keep[comptime!(2 * column + e)] = word >= geometry.threshold;
            }
        }
    } else if comptime!(whole_blocks) {
        #[unroll]
        for block in 0..comptime!(count / 4) {
            let key = first_key + coordinate(lane, comptime!(4 * block), rows);
            let words = words(site, query, key, geometry);
            #[unroll]
            for e in 0..4usize {
                keep[comptime!(4 * block + e)] = words.extract(e) >= geometry.threshold;
            }
        }
    } else {
        // Two groups of lanes take the even and the odd rows.
        let odd = lane_part(lane, rows) == 1;
        #[unroll]
        for block in 0..comptime!(count / 2) {
            let words = words(
                site,
                query,
                first_key + comptime!(4 * block as u32),
                geometry,
            );
            #[unroll]
            for e in 0..2usize {
                let even = words.extract(comptime!(2 * e));
                let word = select(odd, words.extract(comptime!(2 * e + 1)), even);
                keep[comptime!(2 * block + e)] = word >= geometry.threshold;
            }
        }
    }
    keep
}

/// The random words of the four keys among which `key` is.
#[cube]
pub(crate) fn words(
    site: &Site,
    query: u32,
    key: u32,
    geometry: &Geometry,
) -> Vector<u32, Const<4>> {
    philox_block(
        key / 4,
        query,
        site.low,
        site.high,
        geometry.key_low,
        geometry.key_high,
    )
}
