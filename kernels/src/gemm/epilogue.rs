//! What becomes of a sum before it is written.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use super::problem::{Activation, Epilogue};
use crate::matrix::instruction::Target;
use crate::matrix::math::{exp, reciprocal, tanh};

/// sqrt(2 / pi).
const SQRT_2_OVER_PI: f32 = 0.797_884_6;
/// The cubic term of the tanh form of GELU.
const CUBIC: f32 = 0.044_715;

/// Where a problem's results lie, in elements.
#[derive(CubeType)]
pub struct Results {
    /// Rows of C.
    pub m: u32,
    /// Columns of C; where a result has two halves (SwiGLU), columns of one.
    pub n: u32,
    /// First element of C in a tensor of `n` columns; twice as far in one of `2 n` columns.
    pub start: u32,
    /// First element of the bias.
    pub bias: u32,
}

/// GELU (tanh form) of `x`, and its derivative.
#[cube]
fn gelu(x: f32, #[comptime] target: Target) -> (f32, f32) {
    let square = x * x;
    let t = tanh(SQRT_2_OVER_PI * x * (1.0 + CUBIC * square), target);
    let inner = SQRT_2_OVER_PI * (1.0 + comptime!(3.0 * CUBIC) * square);
    (
        0.5 * x * (1.0 + t),
        0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner,
    )
}

/// SiLU of `x`, and its derivative.
#[cube]
fn silu(x: f32, #[comptime] target: Target) -> (f32, f32) {
    let sigmoid = reciprocal(1.0 + exp(-x, target), target);
    (x * sigmoid, sigmoid * (1.0 + x * (1.0 - sigmoid)))
}

/// Applies the epilogue to the sum of element (`row`, `column`) and writes what follows. `up` is the sum `n` columns further
/// right, where the activation takes two.
#[cube]
pub fn finish<E: Numeric, O: Numeric>(
    sum: f32,
    up: f32,
    row: u32,
    column: u32,
    results: &Results,
    scale: f32,
    out: &mut [O],
    bias: &ComptimeOption<&[E]>,
    other: &ComptimeOption<&[E]>,
    saved: &mut ComptimeOption<&mut [E]>,
    #[comptime] epilogue: Epilogue,
    #[comptime] target: Target,
) {
    let narrow = results.start + row * results.n + column;
    // The same element of a tensor with two halves; the second half's follows `n` elements behind.
    let wide = 2 * (results.start + row * results.n) + column;
    let mut x = sum;
    let mut second = up;
    if comptime!(epilogue.scale) {
        x *= scale;
        second *= scale;
    }
    if comptime!(epilogue.bias) {
        let bias = bias.unwrap();
        x += f32::cast_from(bias[(results.bias + column) as usize]);
        if comptime!(epilogue.activation == Activation::SwiGlu) {
            second += f32::cast_from(bias[(results.bias + results.n + column) as usize]);
        }
    }
    match epilogue.activation {
        Activation::None => {}
        Activation::Gelu => {
            if comptime!(epilogue.save) {
                saved.as_mut().unwrap()[narrow as usize] = E::cast_from(x);
            }
            x = gelu(x, target).0;
        }
        Activation::SwiGlu => {
            if comptime!(epilogue.save) {
                let saved = saved.as_mut().unwrap();
                saved[wide as usize] = E::cast_from(x);
                saved[(wide + results.n) as usize] = E::cast_from(second);
            }
            x = silu(x, target).0 * second;
        }
        Activation::GeluBackward => {
            let before = f32::cast_from(other.unwrap()[narrow as usize]);
            x *= gelu(before, target).1;
        }
        Activation::SwiGluBackward => {
            let other = other.unwrap();
            let gate = f32::cast_from(other[wide as usize]);
            let up = f32::cast_from(other[(wide + results.n) as usize]);
            let (value, slope) = silu(gate, target);
            out[(wide + results.n) as usize] = O::cast_from(x * value);
            x *= up * slope;
        }
    }
    if comptime!(epilogue.residual) {
        x += f32::cast_from(other.unwrap()[narrow as usize]);
    }
    let place = if comptime!(epilogue.activation == Activation::SwiGluBackward) {
        wide
    } else {
        narrow
    };
    if comptime!(epilogue.accumulate) {
        x += f32::cast_from(out[place as usize]);
    }
    out[place as usize] = O::cast_from(x);
}
