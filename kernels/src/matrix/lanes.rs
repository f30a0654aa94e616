//! Where a lane stands in a fragment, and what lanes tell one another.

use cubecl_core as cubecl;
use cubecl_core::ir::attributes::IndexAttr;
use cubecl_core::ir::{CanMaterialize, NoMemoryEffect, NoSideEffects, pliron, prelude::*};
use cubecl_core::prelude::*;
use cubecl_cpp::shared::{CppValue, operation::OpToCPP};
use cubecl_cpp::target::Cuda;

use super::instruction::{Instruction, Target};
use super::map::Axis;

/// What another lane holds, of all lanes of the warp: CubeCL's own asks for those that happen to be active, which may be some of
/// a warp that has parted and is not yet together again.
#[cube_op(name = "frontier.exchange")]
#[result_ty(same_as = input)]
#[op_traits(CanMaterialize, NoMemoryEffect, NoSideEffects)]
pub struct ExchangeOp {
    /// The value.
    pub input: Value,
    /// Distance of the other lane, by exclusive or.
    pub mask: IndexAttr,
}

#[op_interface_impl]
impl OpToCPP<Cuda> for ExchangeOp {
    fn to_cpp(&self, ctx: &Context) -> String {
        format!(
            "{} = __shfl_xor_sync(0xffffffffu, {}, {});\n",
            self.get_result(ctx).fmt_left(ctx),
            self.input(ctx).name(ctx),
            self.mask(ctx).0
        )
    }
}

#[cube]
#[allow(unused_variables)]
fn cuda_exchange(value: f32, #[comptime] mask: u32) -> f32 {
    intrinsic!(|scope| {
        let value = value.read_value(scope);
        let op = ExchangeOp::new(scope.ctx_mut(), value, IndexAttr(mask as usize));
        scope.register_with_result(&op).into()
    })
}

/// `value` of the lane at distance `mask`, by exclusive or. All lanes of the wave must take part.
#[cube]
pub fn exchange(value: f32, #[comptime] mask: u32, #[comptime] target: Target) -> f32 {
    if comptime!(target == Target::Cuda) {
        cuda_exchange(value, mask)
    } else {
        plane_shuffle_xor(value, mask)
    }
}

impl Instruction {
    /// Columns of D that a lane has, as distances to its first.
    pub fn columns(&self) -> Vec<usize> {
        self.d.column.distinct(self.d.elements)
    }

    /// Which of the lane's columns element `element` of D belongs to.
    pub fn column_of(&self, element: usize) -> usize {
        self.d.column.number(self.d.elements, element)
    }

    /// The elements of D that a lane has of its column `column`.
    pub fn elements_of(&self, column: usize) -> Vec<usize> {
        let all = 0..self.d.elements;
        all.filter(|&e| self.column_of(e) == column).collect()
    }

    /// Rows of D that a lane holds one after the other.
    pub fn run(&self) -> usize {
        let consecutive = |e: &usize| self.d.row.offset(*e) == *e;
        (0..self.d.elements).take_while(consecutive).count()
    }

    /// Lane distances (by exclusive or) over which a column of D is spread: after an exchange over each of them, every lane
    /// that holds a part of the column has the whole.
    pub fn column_masks(&self) -> Vec<u32> {
        let column = self.d.column.divide..self.d.column.divide * self.d.column.modulo;
        let bits = (0..usize::BITS).map(|bit| 1 << bit);
        bits.take_while(|&bit| bit < self.lanes)
            .filter(|bit| !column.contains(bit))
            .map(|bit| bit as u32)
            .collect()
    }
}

/// The coordinate of element `element` in `lane` (`0..` [`Instruction::lanes`]).
#[cube]
pub fn coordinate(lane: u32, #[comptime] element: usize, #[comptime] axis: Axis) -> u32 {
    lane_part(lane, axis) + comptime!(axis.offset(element) as u32)
}

/// The coordinate of the lane's element 0.
#[cube]
pub fn lane_part(lane: u32, #[comptime] axis: Axis) -> u32 {
    let (divide, modulo, scale) =
        comptime!((axis.divide as u32, axis.modulo as u32, axis.scale as u32));
    if comptime!(modulo == 1 || scale == 0) {
        0u32.into()
    } else if comptime!(divide == 1) {
        lane % modulo * scale
    } else {
        lane / divide % modulo * scale
    }
}

/// How lanes join their values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Join {
    /// The sum.
    Sum,
    /// The maximum.
    Max,
}

#[cube]
fn join(a: f32, b: f32, #[comptime] how: Join) -> f32 {
    match how {
        Join::Sum => a + b,
        Join::Max => max(a, b),
    }
}

/// Joins `value` over the lanes that hold the same column of D; all of them get the result.
#[cube]
pub fn join_column(
    value: f32,
    #[comptime] how: Join,
    #[comptime] instruction: Instruction,
    #[comptime] target: Target,
) -> f32 {
    let masks = comptime!(instruction.column_masks());
    let mut all = value;
    #[unroll]
    for i in 0..comptime!(masks.len()) {
        let mask = comptime!(masks[i]);
        all = join(all, exchange(all, mask, target), how);
    }
    all
}

/// Joins `value` over the wave; all lanes get the result. On a target without planes a wave is one lane.
#[cube]
pub fn join_wave(value: f32, #[comptime] how: Join, #[comptime] target: Target) -> f32 {
    let steps = comptime!(target.lanes().ilog2());
    let mut all = value;
    #[unroll]
    for step in 0..steps {
        all = join(all, exchange(all, comptime!(1u32 << step), target), how);
    }
    all
}

/// Joins `value` over the workgroup of `units` (a power of two); all units get the result, added in the same order.
///
/// `shared` has room for a value per wave, `units / target.lanes()`. All units must take part; a barrier stands before and
/// behind its use, so that it can be used again at once.
#[cube]
pub fn join_workgroup(
    value: f32,
    shared: &mut Shared<[f32]>,
    #[comptime] units: u32,
    #[comptime] how: Join,
    #[comptime] target: Target,
) -> f32 {
    let lanes = comptime!(target.lanes() as u32);
    let waves = comptime!(units / lanes);
    let wave = join_wave(value, how, target);
    if comptime!(waves <= 1) {
        wave
    } else {
        if UNIT_POS % lanes == 0 {
            shared[(UNIT_POS / lanes) as usize] = wave;
        }
        sync_cube();
        // A tree over the waves' values, so that its length is the logarithm of their number.
        #[unroll]
        for step in 0..comptime!(waves.ilog2()) {
            let half = comptime!(waves >> (step + 1));
            if UNIT_POS < half {
                let other = shared[(UNIT_POS + half) as usize];
                shared[UNIT_POS as usize] = join(shared[UNIT_POS as usize], other, how);
            }
            sync_cube();
        }
        let all = shared[0];
        sync_cube();
        all
    }
}
