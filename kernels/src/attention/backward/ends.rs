//! Both ends of a pass: where rows, columns and results lie.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use super::super::bias::Form;
use super::super::problem::{Geometry, Problem, Strides};
use super::super::score::{self, key_base, query_base};
use super::layout::Lane;
use super::plan::Plan;
use super::products::own_first;
use super::score::{Column, Columns, Place, biases};
use super::sweep::{Own, Stream};
use super::tiles::{Rows, own_fragments};
use crate::hip::run::Scalars;
use crate::matrix::vector::from_elements;

/// Where the gradients lie, in elements.
#[derive(CubeType, CubeLaunch, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GradientStrides {
    /// Of the gradient of O.
    pub o: Strides,
    /// Of the gradient of Q.
    pub q: Strides,
    /// Of the gradient of K.
    pub k: Strides,
    /// Of the gradient of V.
    pub v: Strides,
}

impl GradientStrides {
    /// Of gradients that lie as Q, K, V and O do.
    pub fn like(problem: &Problem) -> Self {
        Self {
            o: problem.o,
            q: problem.q,
            k: problem.k,
            v: problem.v,
        }
    }

    /// The scalars in the order of the kernels' parameters, after those of `geometry`.
    pub fn scalars(&self, geometry: &Geometry) -> Scalars {
        let mut scalars = geometry.scalars();
        let tensors = [self.o, self.q, self.k, self.v];
        scalars
            .u32
            .extend(tensors.into_iter().flat_map(|s| [s.batch, s.head, s.row]));
        scalars
    }
}

/// The queries of `sequence` in a tensor of `strides`.
#[cube]
pub(super) fn query_rows(
    sequence: &score::Sequence,
    head: u32,
    strides: &Strides,
    #[comptime] plan: Plan,
) -> Rows {
    Rows {
        base: query_base(sequence, head, strides, plan.variant),
        stride: strides.row,
        count: sequence.queries,
    }
}

/// The keys of `sequence` in a tensor of `strides`.
#[cube]
pub(super) fn key_rows(
    sequence: &score::Sequence,
    head: u32,
    strides: &Strides,
    #[comptime] plan: Plan,
) -> Rows {
    Rows {
        base: key_base(sequence, head, strides, plan.variant),
        stride: strides.row,
        count: sequence.keys,
    }
}

/// Column `number` of a lane whose first is `first`.
#[cube]
pub(super) fn column(first: u32, #[comptime] number: usize, #[comptime] plan: Plan) -> u32 {
    first + comptime!(plan.instruction.columns()[number] as u32)
}

/// The owned columns of K and V, of which `key` is the first.
#[cube]
pub(super) fn own_keys<E: Numeric, V: Size, NB: Size>(
    k: &[Vector<E, V>],
    v: &[Vector<E, V>],
    sequence: &score::Sequence,
    kv_head: u32,
    key: u32,
    geometry: &Geometry,
    #[comptime] plan: Plan,
) -> Own<E, NB> {
    let k_rows = key_rows(sequence, kv_head, &geometry.k, plan);
    let v_rows = key_rows(sequence, kv_head, &geometry.v, plan);
    Own::<E, NB> {
        x: own_fragments::<E, V, NB>(k, &k_rows, key, plan),
        y: own_fragments::<E, V, NB>(v, &v_rows, key, plan),
    }
}

/// The columns of a lane whose first is `first`, of which nothing is known but where they are.
#[cube]
pub(super) fn positions(first: u32, #[comptime] plan: Plan) -> Columns {
    let mut columns = Columns::new();
    #[unroll]
    for c in 0..comptime!(plan.lane_columns()) {
        columns.push(Column {
            position: column(first, c, plan),
            term: f32::new(0.0),
            delta: f32::new(0.0),
        });
    }
    columns
}

/// The columns of a lane whose first key is `key`, for the queries of a head.
#[cube]
pub(super) fn key_columns<E: Numeric>(
    bias1: &[E],
    bias2: &[E],
    geometry: &Geometry,
    place: &Place,
    key: u32,
    #[comptime] plan: Plan,
) -> Columns {
    let mut columns = Columns::new();
    #[unroll]
    for c in 0..comptime!(plan.lane_columns()) {
        let key = column(key, c, plan);
        let mut term = f32::new(0.0);
        if comptime!(plan.has_bias(Form::Keys)) {
            term = biases(bias1, bias2, geometry, place, 0u32, key, Form::Keys, plan);
        }
        columns.push(Column {
            position: key,
            term,
            delta: f32::new(0.0),
        });
    }
    columns
}

/// The queries of `head`, and the gradients of their rows of O.
#[cube]
pub(super) fn query_stream(
    sequence: &score::Sequence,
    head: u32,
    geometry: &Geometry,
    gradient: &GradientStrides,
    #[comptime] plan: Plan,
) -> Stream {
    Stream {
        x: query_rows(sequence, head, &geometry.q, plan),
        y: query_rows(sequence, head, &gradient.o, plan),
        statistics: query_rows(sequence, head, &geometry.lse, plan),
    }
}

/// Writes column `number` of a lane's sums, `[head_dim]`, to `row`.
#[cube]
pub(super) fn write<E: Numeric, V: Size, ND: Size>(
    sums: &Array<Vector<f32, ND>>,
    to: &mut [Vector<E, V>],
    rows: &Rows,
    row: u32,
    lane: &Lane,
    factor: f32,
    #[comptime] number: usize,
    #[comptime] plan: Plan,
) {
    let (tall, width) = comptime!((plan.tile_rows(), plan.width));
    let base = rows.base + row * rows.stride;
    #[unroll]
    for tile in 0..comptime!(plan.own_part() / tall) {
        #[unroll]
        for part in 0..comptime!(plan.lane_rows() / width) {
            let d = lane.first + comptime!((tile * tall + part * width) as u32);
            let d = if comptime!(plan.split > 1) {
                d + own_first(plan)
            } else {
                d
            };
            let mut elements = Sequence::<E>::new();
            #[unroll]
            for r in 0..width {
                let (of_tile, e) = comptime!(plan.element_at(part * width + r, number));
                let sum = sums[comptime!(tile * plan.tile_parts() + of_tile)].extract(e);
                elements.push(E::cast_from(sum * factor));
            }
            if d < comptime!(plan.variant.head_dim as u32) {
                to[((base + d) / comptime!(width as u32)) as usize] = from_elements(&elements);
            }
        }
    }
}
