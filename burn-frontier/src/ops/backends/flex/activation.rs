//! GELU.

use burn::tensor::Tensor;

use super::math::exp;
use super::{close, elements, for_rows, open, overwrite};
use crate::ops::activation::{CUBIC, SCALE};

/// Elements that are taken together.
const PIECE: usize = 1024;

/// `(1 + tanh u) / 2` of GELU's `u = scale (x + cubic x^3)`, which is `1 / (1 + e^-2u)`.
#[inline(always)]
fn gate(x: f32) -> f32 {
    1.0 / (1.0 + exp(-2.0 * SCALE as f32 * x * (1.0 + CUBIC as f32 * x * x)))
}

/// GELU of each element.
pub(crate) fn gelu<const D: usize>(x: &Tensor<D>) -> Option<Tensor<D>> {
    let input = open(x)?;
    let input = elements(&input);
    let mut y = vec![0.0; input.len()];
    for_rows(
        &mut y,
        PIECE,
        #[inline(always)]
        |piece, y| {
            for (y, &x) in y.iter_mut().zip(&input[piece * PIECE..]) {
                *y = x * gate(x);
            }
        },
    );
    Some(close(y, x.shape()))
}

/// The gradient of GELU's argument, written over that of its value.
pub(crate) fn gelu_gradient<const D: usize>(
    x: &Tensor<D>,
    g: Tensor<D>,
) -> Result<Tensor<D>, Box<Tensor<D>>> {
    let Some(x) = open(x) else {
        return Err(Box::new(g));
    };
    let x = elements(&x);
    overwrite(g, |g| {
        for_rows(
            g,
            PIECE,
            #[inline(always)]
            |piece, g| {
                for (g, &x) in g.iter_mut().zip(&x[piece * PIECE..]) {
                    let s = gate(x);
                    let slope = 2.0 * SCALE as f32 * (1.0 + 3.0 * CUBIC as f32 * x * x);
                    *g *= s + x * s * (1.0 - s) * slope;
                }
            },
        );
    })
}
