//! Where a lane stands in a fragment, and what lanes tell one another.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use super::instruction::{Instruction, Target};
use super::map::Axis;

impl Instruction {
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
pub fn join_column(value: f32, #[comptime] how: Join, #[comptime] instruction: Instruction) -> f32 {
    let masks = comptime!(instruction.column_masks());
    let mut all = value;
    #[unroll]
    for i in 0..comptime!(masks.len()) {
        let mask = comptime!(masks[i]);
        all = join(all, plane_shuffle_xor(all, mask), how);
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
        all = join(all, plane_shuffle_xor(all, comptime!(1u32 << step)), how);
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
