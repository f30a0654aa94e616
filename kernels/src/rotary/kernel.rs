//! The kernel: a workgroup rotates all heads of a token.

use cubecl_core as cubecl;
use cubecl_core::ir::ElemType;
use cubecl_core::prelude::*;

use super::Plan;
use crate::rows::workgroup;

/// Distances of neighbours, in vectors.
#[derive(CubeLaunch, CubeType)]
pub(crate) struct Steps {
    pub batch: u32,
    pub head: u32,
    pub token: u32,
}

/// `y = (a cos - b sin, b cos + a sin)` of the halves `(a, b)` of each head of x; the inverse has the other sign of sin.
/// `cos` and `sin` are `[seq, head_dim / 2]`.
#[cube(launch_unchecked)]
pub(crate) fn rotary_rotate<E: Float, N: Size>(
    x: &[Vector<E, N>],
    cos: &[Vector<f32, N>],
    sin: &[Vector<f32, N>],
    y: &mut [Vector<E, N>],
    seq: u32,
    tokens: u32,
    from: Steps,
    to: Steps,
    #[comptime] plan: Plan,
    #[define(E)] _type: ElemType,
    #[define(N)] _width: usize,
) {
    let half = comptime!((plan.head_dim / 2 / plan.vector) as u32);
    let token = workgroup();
    if token < tokens {
        let (sample, position) = (token / seq, token % seq);
        let first = sample * from.batch + position * from.token;
        let target = sample * to.batch + position * to.token;
        for i in range_stepped(UNIT_POS, comptime!(plan.heads * half), plan.units) {
            let (head, at) = (i / half, i % half);
            let source = first + head * from.head + at;
            let a = Vector::<f32, N>::cast_from(x[source as usize]);
            let b = Vector::<f32, N>::cast_from(x[(source + half) as usize]);
            let place = (position * half + at) as usize;
            let (cos, mut sin) = (cos[place], sin[place]);
            if comptime!(plan.inverse) {
                sin = Vector::zero() - sin;
            }
            let to = target + head * to.head + at;
            y[to as usize] = Vector::cast_from(a * cos - b * sin);
            y[(to + half) as usize] = Vector::cast_from(b * cos + a * sin);
        }
    }
}
