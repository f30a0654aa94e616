//! Fragments of the two products of a wave: S^T = K Q^T and O^T += V^T P^T.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use super::softmax::query_of;
use super::state::Work;
use super::tile::{Layout, Quad, load_quad, operand};
use crate::attention::plan::{Plan, QUAD};
use crate::matrix::lanes::lane_part;
use crate::matrix::spread::{gather, scatter};
use crate::matrix::vector::from_elements;

/// Where a lane stands in the fragments.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Lane {
    /// Lane of the wave.
    pub lane: u32,
    /// Row of A that it holds.
    pub row: u32,
    /// Contraction group whose part of A and B it holds.
    pub group: u32,
}

/// This unit's lane.
#[cube]
pub(crate) fn lane(#[comptime] plan: Plan) -> Lane {
    let instruction = comptime!(plan.instruction);
    let (divide, modulo) = comptime!((
        instruction.a.column.divide as u32,
        instruction.a.column.modulo as u32
    ));
    let lane = UNIT_POS % comptime!(instruction.lanes as u32);
    let group = if comptime!(modulo == 1) {
        0u32.runtime()
    } else {
        lane / divide % modulo
    };
    Lane {
        lane,
        row: lane_part(lane, instruction.a.row),
        group,
    }
}

/// Fragments of Q^T for the lane's queries; zeros for those beyond the sequence. Row 0 of Q begins at element `base`.
#[cube]
pub(crate) fn queries<E: Numeric, W: Size, NB: Size>(
    q: &[Vector<E, W>],
    base: u32,
    stride: u32,
    work: &Work,
    fragments: &mut Array<Vector<E, NB>>,
    #[comptime] plan: Plan,
) {
    let (unit, groups) = comptime!((plan.unit(), plan.groups()));
    let b = comptime!(plan.instruction.b);
    let (count, of_a_column) = comptime!((b.elements, b.elements / plan.columns()));
    let head_dim = comptime!(plan.variant.head_dim);
    let mut begin = Sequence::<u32>::new();
    let mut valid = Sequence::<bool>::new();
    #[unroll]
    for c in 0..comptime!(plan.columns()) {
        let query = query_of(work, c, comptime!(plan.clone()));
        begin.push((base + query * stride) / comptime!(plan.width as u32));
        valid.push(query < work.sequence.queries);
    }
    #[unroll]
    for s in 0..comptime!(plan.depth() / plan.instruction.k) {
        let mut fragment = Sequence::<E>::new();
        #[unroll]
        for e in 0..count {
            let column = comptime!(b.column.number(count, e));
            let at = comptime!(s * of_a_column + b.row.number(count, e));
            let chunk = comptime!((at / QUAD / unit * groups) as u32) + work.lane.group;
            let element = chunk * comptime!((unit * QUAD) as u32);
            let within = comptime!(at / QUAD % unit);
            let quad = load_quad(
                q,
                *begin.index(column),
                element,
                *valid.index(column),
                within,
                comptime!(plan.width),
                head_dim,
            );
            fragment.push(quad.extract(comptime!(at % QUAD)));
        }
        fragments[s] = from_elements::<E, NB>(&fragment);
    }
}

/// The order in which a product reads A: a 16-byte read gives the fragments of `steps` contraction steps of a row tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Order {
    /// Row tiles.
    pub tiles: usize,
    /// Contraction steps of a read.
    pub steps: usize,
    /// Reads.
    pub reads: usize,
    /// Rows of a row tile.
    pub rows: usize,
    /// Whether the operand's elements run along its rows.
    pub along_rows: bool,
}

impl Order {
    /// Row tile and first contraction step of read `read`.
    pub fn of(&self, read: usize) -> (usize, usize) {
        (read % self.tiles, read / self.tiles * self.steps)
    }

    /// Matrix instructions.
    pub fn products(&self) -> usize {
        self.reads * self.steps
    }
}

impl Plan {
    /// How K is read.
    pub(crate) fn key_order(&self) -> Order {
        let mut order = self.order(self.sum_tiles(), self.depth() / self.instruction.k);
        if self.spreads() {
            // Four rows give four steps.
            (order.rows, order.along_rows, order.steps) = (QUAD, false, QUAD);
            order.reads /= QUAD;
        }
        order
    }

    /// How V is read.
    pub(crate) fn value_order(&self) -> Order {
        self.order(self.output_tiles(), self.value_steps())
    }

    fn order(&self, tiles: usize, contraction: usize) -> Order {
        let of_a_read = match self.along_rows() {
            true => 1,
            false => (self.unit() * QUAD / self.instruction.a.elements).clamp(1, contraction),
        };
        Order {
            tiles,
            steps: of_a_read,
            reads: contraction / of_a_read * tiles,
            rows: self.instruction.m,
            along_rows: self.along_rows(),
        }
    }
}

/// Reads the fragments of A that `read` of `order` gives, if there is such a read, of the tile that begins at quad `base`.
#[cube]
pub(crate) fn read<E: Numeric, NA: Size>(
    tile: &Shared<[Quad<E>]>,
    base: u32,
    lane: &Lane,
    fragments: &mut Array<Vector<E, NA>>,
    #[comptime] read: usize,
    #[comptime] order: Order,
    #[comptime] layout: Layout,
) {
    if comptime!(read < order.reads) {
        let (row_tile, first) = comptime!(order.of(read));
        let row = comptime!(row_tile * order.rows);
        #[unroll]
        for step in 0..comptime!(order.steps) {
            fragments[comptime!(read * order.steps + step)] = operand::<E, NA>(
                tile,
                base,
                lane.row,
                lane.group,
                row,
                comptime!(first + step),
                comptime!(order.along_rows),
                layout,
            );
        }
    }
}

/// The scores from what [`Plan::sum_tiles`] hold.
#[cube]
pub(crate) fn settled<ND: Size>(
    sums: Array<Vector<f32, ND>>,
    #[comptime] plan: Plan,
) -> Array<Vector<f32, ND>> {
    if comptime!(plan.spreads()) {
        let (instruction, held) = comptime!((plan.instruction, plan.instruction.d.elements));
        let mut scores = Array::<Vector<f32, ND>>::new(comptime!(plan.score_tiles()));
        #[unroll]
        for t in 0..comptime!(plan.score_tiles()) {
            let mut rows = Array::<f32>::new(comptime!(instruction.m));
            #[unroll]
            for row in 0..comptime!(instruction.m) {
                let at = comptime!(t * instruction.m + row);
                rows[row] = sums[comptime!(at / held)].extract(comptime!(at % held));
            }
            let own = scatter(&rows, instruction, comptime!(plan.target));
            let mut elements = Sequence::<f32>::new();
            #[unroll]
            for e in 0..held {
                elements.push(own[e]);
            }
            scores[t] = from_elements::<f32, ND>(&elements);
        }
        scores
    } else {
        sums
    }
}

/// Elements of D in the order in which B takes them, where several lanes hold the rows of a column: on RDNA3 those 16 apart have
/// the even and the odd ones.
#[cube]
pub(crate) fn in_b(values: &Array<f32>, lane: u32, #[comptime] plan: Plan) -> Array<f32> {
    if comptime!(plan.spreads()) {
        gathered(values, plan)
    } else {
        alternating(values, lane, plan)
    }
}

#[cube]
fn gathered(values: &Array<f32>, #[comptime] plan: Plan) -> Array<f32> {
    let (instruction, held) = comptime!((plan.instruction, plan.instruction.d.elements));
    let mut all = Array::<f32>::new(comptime!(plan.keys));
    #[unroll]
    for t in 0..comptime!(plan.score_tiles()) {
        let mut own = Array::<f32>::new(held);
        #[unroll]
        for e in 0..held {
            own[e] = values[comptime!(t * held + e)];
        }
        let column = gather(&own, instruction, comptime!(plan.target));
        #[unroll]
        for row in 0..comptime!(instruction.m) {
            all[comptime!(t * instruction.m + row)] = column[row];
        }
    }
    all
}

#[cube]
fn alternating(values: &Array<f32>, lane: u32, #[comptime] plan: Plan) -> Array<f32> {
    let held = comptime!(plan.score_tiles() * plan.instruction.d.elements);
    let mut all = Array::<f32>::new(comptime!(2 * held));
    let upper = lane >= 16;
    #[unroll]
    for i in 0..held {
        let own = values[i];
        let other = plane_shuffle_xor(own, 16u32);
        all[comptime!(2 * i)] = select(upper, other, own);
        all[comptime!(2 * i + 1)] = select(upper, own, other);
    }
    all
}
