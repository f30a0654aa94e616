//! The second kernel: the gradient, over the logits.

use cubecl_core as cubecl;
use cubecl_core::ir::ElemType;
use cubecl_core::prelude::*;

use super::statistics::AHEAD;
use super::{Plan, Shard, ignored, local_target};
use crate::matrix::math::{exp, reciprocal};
use crate::rows::workgroup;

/// `logits = (exp(logits - largest) / sum - onehot(target)) * scale`, of the whole vocabulary's `largest` and `sum`, all
/// `[tokens]`; 0 for a token that is ignored and in columns that take no part.
#[cube(launch_unchecked)]
pub(crate) fn cross_entropy_gradient<E: Float, N: Size>(
    logits: &mut [Vector<E, N>],
    targets: &[u32],
    largest: &[f32],
    sum: &[f32],
    scale: &[f32],
    tokens: u32,
    shard: Shard,
    #[comptime] plan: Plan,
    #[define(E)] _type: ElemType,
    #[define(N)] _width: usize,
) {
    let layout = comptime!(plan.rows);
    let vectors = comptime!(layout.vectors());
    let unit = UNIT_POS % layout.row_units;
    let token = workgroup() * comptime!(layout.per_workgroup()) + UNIT_POS / layout.row_units;
    if token < tokens {
        let target = targets[token as usize];
        let local = local_target(target, &shard);
        let largest = largest[token as usize];
        let factor = reciprocal(sum[token as usize], plan.target);
        let scale = scale[token as usize];
        let counts = select(ignored(target, shard.ignore), 0u32, shard.valid);
        for step in 0..comptime!(layout.chunks().div_ceil(AHEAD)) {
            let first = step * comptime!(AHEAD * layout.row_units) + unit;
            let mut values = Array::<Vector<E, N>>::new(comptime!(AHEAD as usize));
            #[unroll]
            for i in 0..AHEAD {
                let at = first + i * layout.row_units;
                values[i as usize] = Vector::zero();
                if at < vectors {
                    values[i as usize] = logits[(token * vectors + at) as usize];
                }
            }
            #[unroll]
            for i in 0..AHEAD {
                let at = first + i * layout.row_units;
                if at < vectors {
                    let value = Vector::<f32, N>::cast_from(values[i as usize]);
                    let width = value.vector_size().comptime();
                    let mut gradient = Vector::<f32, N>::zero();
                    #[unroll]
                    for e in 0..width {
                        let column = at * width as u32 + e as u32;
                        let p = exp(value.extract(e) - largest, plan.target) * factor;
                        let hit = select(column == local, 1.0f32, 0.0f32);
                        gradient.insert(e, select(column < counts, (p - hit) * scale, 0.0f32));
                    }
                    logits[(token * vectors + at) as usize] = Vector::cast_from(gradient);
                }
            }
        }
    }
}
