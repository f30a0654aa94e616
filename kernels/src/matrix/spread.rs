//! Products of multiply-adds in which several lanes share a column, as [`SPREAD`](super::instruction::SPREAD) lays them out.
//!
//! A lane that has a column of its own needs all of its contraction and all of its rows in registers. Here lanes first sum
//! over their parts of the contraction for all rows of a tile; [`scatter()`] adds up those sums, and leaves each lane its rows of
//! D. Where D is to be B, [`gather()`] gives each lane its whole column. A lane so holds a quarter of each matrix.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use super::instruction::{Instruction, Target};
use super::lanes::exchange;

/// The lane's rows of D, from what the lanes of its column have summed for all `m` rows.
#[cube]
pub fn scatter(
    sums: &Array<f32>,
    #[comptime] instruction: Instruction,
    #[comptime] target: Target,
) -> Array<f32> {
    let (rows, m) = comptime!((instruction.d.row, instruction.m));
    let mut all = Array::<f32>::new(m);
    #[unroll]
    for i in 0..m {
        all[i] = sums[i];
    }
    #[unroll]
    for step in 0..comptime!(rows.modulo.ilog2()) {
        // The lanes at this distance part the rows that they have left between them.
        let (half, mask) = comptime!((
            m >> (step + 1),
            (rows.divide * rows.modulo) as u32 >> (step + 1)
        ));
        let upper = UNIT_POS & mask != 0;
        #[unroll]
        for i in 0..half {
            let (first, second) = (all[i], all[comptime!(i + half)]);
            let other = exchange(select(upper, first, second), mask, target);
            all[i] = select(upper, second, first) + other;
        }
    }
    all
}

/// The lane's whole column of D, from the rows that each of its lanes holds.
#[cube]
pub fn gather(
    values: &Array<f32>,
    #[comptime] instruction: Instruction,
    #[comptime] target: Target,
) -> Array<f32> {
    let (rows, held) = comptime!((instruction.d.row, instruction.d.elements));
    let mut all = Array::<f32>::new(comptime!(instruction.m));
    #[unroll]
    for i in 0..held {
        all[i] = values[i];
    }
    #[unroll]
    for step in 0..comptime!(rows.modulo.ilog2()) {
        let (count, mask) = comptime!((held << step, (rows.divide as u32) << step));
        let upper = UNIT_POS & mask != 0;
        #[unroll]
        for i in 0..count {
            let own = all[i];
            let other = exchange(own, mask, target);
            all[i] = select(upper, other, own);
            all[comptime!(i + count)] = select(upper, own, other);
        }
    }
    all
}
