//! The gradients of the biases, in f32: sums of dS over all that share a bias, always in the same order.

use cubecl_core as cubecl;
use cubecl_core::ir::ElemType;
use cubecl_core::prelude::*;

use super::super::problem::{BiasStrides, Geometry};
use super::super::score::{bias_base, sequence};
use super::blocks;
use super::ends::{GradientStrides, column, key_columns, own_keys, positions, query_stream};
use super::layout::Lane;
use super::pairs::{Pairs, place_of_bias};
use super::plan::Plan;
use super::score::Place;
use super::sweep::{Stages, Sums, sweep};
use super::tiles::Tiles;

/// Which batch entries and heads share an entry of a bias.
#[derive(CubeType, CubeLaunch, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shared {
    /// Batch entries in all.
    pub batch: u32,
    /// Batch entries that share, one after the other.
    pub entries: u32,
    /// Heads in all.
    pub heads: u32,
    /// Heads that share, one after the other.
    pub members: u32,
    /// Where the bias and its gradient lie.
    pub strides: BiasStrides,
}

impl Shared {
    /// Those that share a bias of `strides`.
    pub fn new(strides: BiasStrides, batch: u32, heads: u32) -> Self {
        Self {
            batch,
            entries: if strides.batch == 0 {
                batch
            } else {
                strides.divisor
            },
            heads,
            members: if strides.head == 0 { heads } else { 1 },
            strides,
        }
    }

    /// Biases: groups of batch entries times groups of heads.
    pub fn count(&self) -> u32 {
        self.batch.div_ceil(self.entries) * (self.heads / self.members)
    }

    /// The scalars in the order of a kernel's parameters.
    pub fn scalars(&self) -> [u32; 9] {
        let BiasStrides {
            divisor,
            batch,
            head,
            query,
            key,
        } = self.strides;
        [
            self.batch,
            self.entries,
            self.heads,
            self.members,
            divisor,
            batch,
            head,
            query,
            key,
        ]
    }
}

/// The gradient of a bias that varies along queries and keys: a tile of pairs, for which all that share it pass by.
#[cube(launch_unchecked)]
pub(super) fn pair<E: Float, V: Size, W: Size, NA: Size, NB: Size, ND: Size, P: Size>(
    q: &[Vector<E, V>],
    k: &[Vector<E, V>],
    v: &[Vector<E, V>],
    o_gradient: &[Vector<E, V>],
    statistics: &[Vector<f32, Const<2>>],
    bias1: &[E],
    bias2: &[E],
    cumulative_queries: &[u32],
    cumulative_keys: &[u32],
    samples: &[u32],
    bias_gradient: &mut [f32],
    geometry: Geometry,
    gradient: GradientStrides,
    shared: Shared,
    #[comptime] plan: Plan,
    #[define(E)] _element: ElemType,
    #[define(V, W, NA, NB, ND, P)] _sizes: [usize; 6],
) {
    if comptime!(plan.in_blocks()) {
        let inputs = blocks::inputs::<E, V>(q, k, v, o_gradient, statistics, bias1, bias2, samples);
        blocks::pair::<E, V, W, NA, NB, ND>(
            &inputs,
            cumulative_queries,
            cumulative_keys,
            bias_gradient,
            &geometry,
            &gradient,
            &shared,
            plan,
        );
    } else {
        in_tiles::<E, V, W, NA, NB, ND, P>(
            q,
            k,
            v,
            o_gradient,
            statistics,
            bias1,
            bias2,
            cumulative_queries,
            cumulative_keys,
            samples,
            bias_gradient,
            geometry,
            gradient,
            shared,
            plan,
        );
    }
}

#[cube]
fn in_tiles<E: Float, V: Size, W: Size, NA: Size, NB: Size, ND: Size, P: Size>(
    q: &[Vector<E, V>],
    k: &[Vector<E, V>],
    v: &[Vector<E, V>],
    o_gradient: &[Vector<E, V>],
    statistics: &[Vector<f32, Const<2>>],
    bias1: &[E],
    bias2: &[E],
    cumulative_queries: &[u32],
    cumulative_keys: &[u32],
    samples: &[u32],
    bias_gradient: &mut [f32],
    geometry: Geometry,
    gradient: GradientStrides,
    shared: Shared,
    #[comptime] plan: Plan,
) {
    let groups = shared.heads / shared.members;
    let entry = CUBE_POS_Z / groups * shared.entries;
    let head = CUBE_POS_Z % groups * shared.members;
    let lane = Lane::new(plan.instruction);
    let wave = UNIT_POS / comptime!(plan.instruction.lanes as u32);
    let first = CUBE_POS_X * comptime!(plan.columns() as u32);
    let key = first + wave * comptime!(plan.instruction.n as u32) + lane.column;
    let query = CUBE_POS_Y * comptime!(plan.rows() as u32);
    let mut tiles = Tiles::<E, W>::new(plan);
    let mut sums = Sums::<ND>::new(plan);
    let mut pairs = Pairs::new(plan);
    if comptime!(plan.keeps_pairs()) {
        let place = place_of_bias(entry, head, &geometry);
        let columns = positions(key, plan);
        pairs.keep(
            bias1, bias2, &geometry, &place, &columns, &lane, query, plan,
        );
    }
    for batch in entry..min(entry + shared.entries, shared.batch) {
        let sequence = sequence(
            batch,
            &geometry,
            cumulative_queries,
            cumulative_keys,
            plan.variant,
        );
        if first < sequence.keys && query < sequence.queries {
            for head in head..head + shared.members {
                let place = Place::new(&sequence, head, samples, &geometry, plan);
                let kv_head = head / geometry.group;
                let own = own_keys::<E, V, NB>(k, v, &sequence, kv_head, key, &geometry, plan);
                let stream = query_stream(&sequence, head, &geometry, &gradient, plan);
                let columns = key_columns(bias1, bias2, &geometry, &place, key, plan);
                let stages = Stages {
                    from: CUBE_POS_Y,
                    middle: CUBE_POS_Y + 1,
                    to: CUBE_POS_Y + 1,
                };
                // Masked: a shorter sequence has no part in the keys of a longer one that shares the bias.
                sweep::<E, V, W, NA, NB, ND, P>(
                    q,
                    o_gradient,
                    statistics,
                    bias1,
                    bias2,
                    &stream,
                    &mut tiles,
                    &own,
                    &mut sums,
                    &geometry,
                    &place,
                    &columns,
                    &mut pairs,
                    &stages,
                    comptime!([true, true]),
                    plan,
                );
            }
        }
    }
    let base = bias_base(entry, head, &shared.strides);
    let count = comptime!(plan.instruction.d.elements);
    #[unroll]
    for t in 0..comptime!(plan.row_tiles) {
        #[unroll]
        for e in 0..comptime!(plan.tile_elements()) {
            let (r, c) = comptime!(plan.place_of(e));
            let at = query + lane.first + comptime!((t * plan.tile_rows() + r) as u32);
            let key = column(key, c, plan);
            if at < geometry.queries && key < geometry.keys {
                let to = base + key * shared.strides.key + at * shared.strides.query;
                bias_gradient[to as usize] = sums.x[comptime!(t * plan.tile_parts() + e / count)]
                    .extract(comptime!(e % count))
                    * comptime!((-plan.lift()).exp2());
            }
        }
    }
}

/// The gradient of a bias that varies along keys, from the sums over the queries that the dK, dV kernel leaves.
#[cube(launch_unchecked)]
pub(super) fn mask(
    key_sums: &[f32],
    cumulative_keys: &[u32],
    bias_gradient: &mut [f32],
    keys: u32,
    shared: Shared,
    #[comptime] packed: bool,
) {
    let groups = shared.heads / shared.members;
    let entry = CUBE_POS_Y / groups * shared.entries;
    let head = CUBE_POS_Y % groups * shared.members;
    let key = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    if key < keys {
        let mut sum = f32::new(0.0);
        for batch in entry..min(entry + shared.entries, shared.batch) {
            let mut exists = true.runtime();
            if comptime!(packed) {
                let batch = batch as usize;
                exists = key < cumulative_keys[batch + 1] - cumulative_keys[batch];
            }
            if exists {
                for head in head..head + shared.members {
                    sum += key_sums[((batch * shared.heads + head) * keys + key) as usize];
                }
            }
        }
        let at = bias_base(entry, head, &shared.strides) + key * shared.strides.key;
        bias_gradient[at as usize] = sum;
    }
}
