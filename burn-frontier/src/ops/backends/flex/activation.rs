//! GELU, SwiGLU and leaky ReLU.

use burn::backend::DispatchTensor;
use burn::tensor::Tensor;

use super::{close, elements, for_rows, open, overwrite};
use frontier_kernels_cpu::linear::{gelu as value, gelu_and_slope, sigmoid};
use frontier_kernels_cpu::parallel::zeros;

/// Elements that are taken together.
const PIECE: usize = 1024;

/// A tensor of any rank, which is a label only.
fn labelled(x: DispatchTensor) -> Tensor<1> {
    Tensor::from_dispatch(x)
}

/// GELU of each element.
pub(super) fn gelu(x: DispatchTensor) -> Option<DispatchTensor> {
    let x = labelled(x);
    let input = open(&x)?;
    let input = elements(&input);
    let mut y = zeros(input.len());
    for_rows(
        &mut y,
        PIECE,
        #[inline(always)]
        |piece, y| {
            for (y, &x) in y.iter_mut().zip(&input[piece * PIECE..]) {
                *y = value(x);
            }
        },
    );
    Some(close::<1>(y, x.shape()).into_dispatch())
}

/// The gradient of GELU's argument, written over that of its value.
pub(super) fn gelu_gradient(
    x: DispatchTensor,
    g: DispatchTensor,
) -> Result<DispatchTensor, Box<DispatchTensor>> {
    let Some(x) = open(&labelled(x)) else {
        return Err(Box::new(g));
    };
    let x = elements(&x);
    let done = overwrite(labelled(g), |g| {
        for_rows(
            g,
            PIECE,
            #[inline(always)]
            |piece, g| {
                for (g, &x) in g.iter_mut().zip(&x[piece * PIECE..]) {
                    *g *= gelu_and_slope(x).1;
                }
            },
        );
    });
    match done {
        Ok(dx) => Ok(dx.into_dispatch()),
        Err(g) => Err(Box::new(g.into_dispatch())),
    }
}

/// x, and `slope x` where it is negative.
pub(super) fn leaky_relu(x: DispatchTensor, slope: f32) -> Option<DispatchTensor> {
    let x = labelled(x);
    let input = open(&x)?;
    let input = elements(&input);
    let mut y = zeros(input.len());
    for_rows(
        &mut y,
        PIECE,
        #[inline(always)]
        |piece, y| {
            for (y, &x) in y.iter_mut().zip(&input[piece * PIECE..]) {
                *y = if x < 0.0 { slope * x } else { x };
            }
        },
    );
    Some(close::<1>(y, x.shape()).into_dispatch())
}

/// The gradient of a leaky ReLU's argument, written over that of its value.
pub(super) fn leaky_relu_gradient(
    x: DispatchTensor,
    g: DispatchTensor,
    slope: f32,
) -> Option<DispatchTensor> {
    let x = open(&labelled(x))?;
    let x = elements(&x);
    let done = overwrite(labelled(g), |g| {
        for_rows(
            g,
            PIECE,
            #[inline(always)]
            |piece, g| {
                for (g, &x) in g.iter_mut().zip(&x[piece * PIECE..]) {
                    *g *= if x < 0.0 { slope } else { 1.0 };
                }
            },
        );
    });
    Some(done.ok()?.into_dispatch())
}

/// SwiGLU of x `[batch, seq, 2 * ffn]`, gate and up side by side.
pub(super) fn swiglu(x: &Tensor<3>) -> Option<Tensor<3>> {
    let [batch, seq, width] = x.dims();
    let y = gated(elements(&open(x)?), width);
    Some(close(y, [batch, seq, width / 2]))
}

/// The gradient of SwiGLU's argument from that of its value.
pub(super) fn swiglu_gradient(x: &Tensor<3>, g: &Tensor<3>) -> Option<Tensor<3>> {
    let ([_, _, width], shape) = (x.dims(), x.shape());
    let (x, g) = (open(x)?, open(g)?);
    Some(close(
        gated_gradient(elements(&x), elements(&g), width),
        shape,
    ))
}

/// SwiGLU of rows of so many elements.
pub(super) fn gated(x: &[f32], width: usize) -> Vec<f32> {
    let ffn = width / 2;
    let mut y = zeros(x.len() / 2);
    for_rows(
        &mut y,
        ffn,
        #[inline(always)]
        |row, y| {
            let (gate, up) = x[row * width..][..width].split_at(ffn);
            for (y, (&gate, &up)) in y.iter_mut().zip(gate.iter().zip(up)) {
                *y = gate * sigmoid(gate) * up;
            }
        },
    );
    y
}

/// The gradient of [`gated`]'s argument x from that of its value.
pub(super) fn gated_gradient(x: &[f32], g: &[f32], width: usize) -> Vec<f32> {
    let ffn = width / 2;
    let mut dx = zeros(x.len());
    for_rows(
        &mut dx,
        width,
        #[inline(always)]
        |row, dx| {
            let (gate, up) = x[row * width..][..width].split_at(ffn);
            let (d_gate, d_up) = dx.split_at_mut(ffn);
            let g = &g[row * ffn..][..ffn];
            let gradients = d_gate.iter_mut().zip(d_up).zip(g);
            for (((d_gate, d_up), &g), (&gate, &up)) in gradients.zip(gate.iter().zip(up)) {
                let s = sigmoid(gate);
                *d_gate = g * up * s * (1.0 + gate * (1.0 - s));
                *d_up = g * gate * s;
            }
        },
    );
    dx
}
