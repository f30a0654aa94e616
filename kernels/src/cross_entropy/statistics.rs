//! The first kernel: what a rank knows of each token's logits, in one pass over them.

use cubecl_core as cubecl;
use cubecl_core::ir::ElemType;
use cubecl_core::prelude::*;

use super::{Plan, Shard, local_target};
use crate::matrix::instruction::Target;
use crate::matrix::lanes::Join;
use crate::matrix::math::exp;
use crate::matrix::vector::from_elements;
use crate::rows::{join_row, workgroup};

/// Vectors that a unit reads at a time.
pub(super) const AHEAD: u32 = 4;
/// The maximum of no logits: low enough, and yet far above what stands for a column that takes no part.
const LOWEST: f32 = f32::MIN / 2.0;
/// What stands for a column that takes no part: its exponential is 0, whatever the maximum.
const NOTHING: f32 = f32::MIN;

/// `stats` `[3, tokens]`: per token the largest logit, the sum of `exp(logit - largest)`, and the target's logit, or 0 if
/// this shard does not have it.
#[cube(launch_unchecked)]
pub(crate) fn cross_entropy_statistics<E: Float, N: Size>(
    logits: &[Vector<E, N>],
    targets: &[u32],
    stats: &mut [f32],
    tokens: u32,
    shard: Shard,
    #[comptime] plan: Plan,
    #[define(E)] _type: ElemType,
    #[define(N)] _width: usize,
) {
    let layout = comptime!(plan.rows);
    let vectors = comptime!(layout.vectors());
    let mut shared = Shared::<[f32]>::new_slice(comptime!(layout.shared(plan.target)));
    let unit = UNIT_POS % layout.row_units;
    let own = workgroup() * comptime!(layout.per_workgroup()) + UNIT_POS / layout.row_units;
    // Units beyond the last token repeat it without stores, since all of a wave must take part in its exchanges.
    let token = min(own, tokens - 1);
    let base = token * vectors;

    let mut largest = f32::new(LOWEST);
    let mut sum = 0.0f32;
    for step in 0..comptime!(layout.chunks().div_ceil(AHEAD)) {
        let first = step * comptime!(AHEAD * layout.row_units) + unit;
        let mut values = Array::<Vector<f32, N>>::new(comptime!(AHEAD as usize));
        #[unroll]
        for i in 0..AHEAD {
            let at = first + i * layout.row_units;
            values[i as usize] = Vector::new(f32::new(NOTHING));
            if at < vectors {
                let value = Vector::cast_from(logits[(base + at) as usize]);
                values[i as usize] = masked::<N>(value, at, shard.valid);
            }
        }
        let mut all = values[0];
        #[unroll]
        for i in 1..AHEAD {
            all = max(all, values[i as usize]);
        }
        let mut found = all.extract(0usize);
        #[unroll]
        for e in 1..all.vector_size() {
            found = max(found, all.extract(e));
        }
        let next = max(largest, found);
        sum *= exp(largest - next, plan.target);
        largest = next;
        #[unroll]
        for i in 0..AHEAD {
            sum += exponentials::<N>(values[i as usize], largest, plan.target);
        }
    }
    let joined = join_row(largest, &mut shared, layout, Join::Max, plan.target);
    let sum = sum * exp(largest - joined, plan.target);
    let sum = join_row(sum, &mut shared, layout, Join::Sum, plan.target);
    if unit == 0 && own < tokens {
        stats[token as usize] = joined;
        stats[(tokens + token) as usize] = sum;
        let local = local_target(targets[token as usize], &shard);
        let mut logit = 0.0f32;
        if local < shard.valid {
            logit = element::<E, N>(logits, base, local);
        }
        stats[(2 * tokens + token) as usize] = logit;
    }
}

/// Vector `at` of a row, with the lowest number in place of columns that take no part.
#[cube]
fn masked<N: Size>(value: Vector<f32, N>, at: u32, valid: u32) -> Vector<f32, N> {
    let mut kept = value;
    let width = value.vector_size().comptime();
    let first = at * comptime!(width as u32);
    if first + comptime!(width as u32) > valid {
        let mut elements = Sequence::<f32>::new();
        #[unroll]
        for e in 0..width {
            let column = first + comptime!(e as u32);
            elements.push(select(column < valid, value.extract(e), f32::new(NOTHING)));
        }
        kept = from_elements::<f32, N>(&elements);
    }
    kept
}

/// The sum of `exp(value - largest)`.
#[cube]
fn exponentials<N: Size>(value: Vector<f32, N>, largest: f32, #[comptime] target: Target) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for e in 0..value.vector_size() {
        sum += exp(value.extract(e) - largest, target);
    }
    sum
}

/// Element `column` of the row at vector `base`.
#[cube]
fn element<E: Float, N: Size>(logits: &[Vector<E, N>], base: u32, column: u32) -> f32 {
    let width = logits.vector_size().comptime();
    let value = Vector::<f32, N>::cast_from(logits[(base + column / width as u32) as usize]);
    let mut found = value.extract(0usize);
    #[unroll]
    for e in 1..width {
        found = select(column % width as u32 == e as u32, value.extract(e), found);
    }
    found
}
