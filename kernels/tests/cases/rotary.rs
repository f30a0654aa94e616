//! Problems of rotary embedding.

use frontier_kernels::matrix::instruction::{Element, Target};
use frontier_kernels::rotary::{Plan, Shape, Strides, reference};

use super::{assert_close, draw};

const BASE: f64 = 10_000.0;

/// What executes the kernel.
pub trait Run {
    /// Rotates x with the tables of cosines and sines.
    fn rotate(
        &self,
        plan: &Plan,
        shape: Shape,
        strides: [Strides; 2],
        x: &[f64],
        tables: [&[f64]; 2],
    ) -> Vec<f64>;
}

/// Every head of x, rotated by the definition, in the places of `to`.
fn expected(shape: Shape, [from, to]: [Strides; 2], x: &[f64], sign: f64) -> Vec<f64> {
    let mut y = vec![0.0; x.len()];
    for i in 0..shape.batch * shape.heads * shape.seq {
        let (b, h, s) = (
            i / shape.seq / shape.heads,
            i / shape.seq % shape.heads,
            i % shape.seq,
        );
        let place = |strides: Strides| {
            let first = b * strides.batch + h * strides.head + s * strides.token;
            first..first + shape.head_dim
        };
        let angles: Vec<f64> = reference::angles(s, shape.head_dim, BASE)
            .iter()
            .map(|t| sign * t)
            .collect();
        y[place(to)].copy_from_slice(&reference::rotate(&x[place(from)], &angles));
    }
    y
}

/// Rotating, and rotating back, give the definition.
pub fn check(
    run: &impl Run,
    target: Target,
    element: Element,
    shape: Shape,
    strides: [Strides; 2],
) {
    let x = draw(element, shape.count(), shape.head_dim as u64);
    let angles: Vec<f64> = (0..shape.seq)
        .flat_map(|p| reference::angles(p, shape.head_dim, BASE))
        .collect();
    let [cos, sin] =
        [f64::cos, f64::sin].map(|f| angles.iter().copied().map(f).collect::<Vec<_>>());
    for (inverse, sign) in [(false, 1.0), (true, -1.0)] {
        let plan = Plan::choose(target, element, shape, strides, inverse).unwrap();
        let y = run.rotate(&plan, shape, strides, &x, [&cos, &sin]);
        assert_close(
            &format!("{plan:?}"),
            element,
            &y,
            &expected(shape, strides, &x, sign),
        );
    }
}
