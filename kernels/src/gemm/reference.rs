//! What the kernels compute, as plain Rust in f64 on the host.

use super::problem::{Activation, Layout, Shape};

/// The sums `[batches, m, columns]` of a product of `columns` columns (SwiGLU: `2 n`).
pub fn product(layout: Layout, shape: &Shape, columns: usize, a: &[f64], b: &[f64]) -> Vec<f64> {
    let Shape { batches, m, k, .. } = *shape;
    let mut sums = Vec::with_capacity(batches * m * columns);
    for at in 0..batches * m * columns {
        let (batch, i, j) = (at / (m * columns), at / columns % m, at % columns);
        let of_a = |x| {
            if layout == Layout::Tn {
                x * shape.a.0 + i
            } else {
                i * shape.a.0 + x
            }
        };
        let of_b = |x| {
            if layout == Layout::Nt {
                j * shape.b.0 + x
            } else {
                x * shape.b.0 + j
            }
        };
        let term = |x| a[batch * shape.a.1 + of_a(x)] * b[batch * shape.b.1 + of_b(x)];
        sums.push((0..k).map(term).sum());
    }
    sums
}

/// The activation of `x` (and `up`), where a pre-activation `before` was saved. SwiGLU's backward gives two gradients, all
/// others one.
pub fn activate(activation: Activation, x: f64, up: f64, before: (f64, f64)) -> (f64, f64) {
    let gelu = |x: f64| {
        0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
    };
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let slope = |f: &dyn Fn(f64) -> f64, x: f64| (f(x + 1e-5) - f(x - 1e-5)) / 2e-5;
    match activation {
        Activation::None => (x, 0.0),
        Activation::Gelu => (gelu(x), 0.0),
        Activation::SwiGlu => (silu(x) * up, 0.0),
        Activation::GeluBackward => (x * slope(&gelu, before.0), 0.0),
        Activation::SwiGluBackward => (x * before.1 * slope(&silu, before.0), x * silu(before.0)),
    }
}
