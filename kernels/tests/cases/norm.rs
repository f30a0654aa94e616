//! Problems of layer norm and RMS norm.

use frontier_kernels::matrix::instruction::Element;
use frontier_kernels::norm::{Kind, Plan, Problem, reference};

use super::dropout::factor;
use super::{assert_close, draw, pack, unpack};

/// What executes the kernels.
pub trait Run {
    /// y, the norm's input and the statistics.
    fn forward(&self, case: &Case) -> (Vec<f64>, Vec<f64>, Vec<u8>);

    /// Gradients of x, the residual, weight and bias, from those of y and of the norm's input `s`.
    fn backward(
        &self,
        case: &Case,
        dy: &[f64],
        s: &[f64],
        stats: Vec<u8>,
        d_sum: &[f64],
    ) -> [Vec<f64>; 4];
}

pub const EPSILON: f64 = 1e-5;
/// One problem with its inputs.
pub struct Case {
    pub plan: Plan,
    pub rows: usize,
    pub x: Vec<f64>,
    pub residual: Vec<f64>,
    pub weight: Vec<f64>,
    pub bias: Vec<f64>,
}

impl Case {
    pub fn new(plan: Plan, rows: usize) -> Self {
        let hidden = plan.problem().hidden;
        let draw = |count, seed| draw(plan.element(), count, seed + hidden as u64);
        // Off centre, so that a wrong mean shows.
        let x = draw(rows * hidden, 1)
            .iter()
            .map(|x| x + 0.5)
            .collect::<Vec<_>>();
        let x = unpack(plan.element(), &pack(plan.element(), &x));
        let (residual, weight, bias) = (draw(rows * hidden, 2), draw(hidden, 3), draw(hidden, 4));
        let bias = if plan.problem().kind == Kind::Layer {
            bias
        } else {
            vec![0.0; hidden]
        };
        Self {
            plan,
            rows,
            x,
            residual,
            weight,
            bias,
        }
    }

    /// `dropout(x) + residual`, exactly.
    fn sum(&self) -> Vec<f64> {
        let Problem {
            residual, dropout, ..
        } = self.plan.problem();
        let of = |i: usize, x: f64| {
            let x = if dropout {
                x * factor(i, self.plan.problem().hidden)
            } else {
                x
            };
            if residual { x + self.residual[i] } else { x }
        };
        self.x.iter().enumerate().map(|(i, &x)| of(i, x)).collect()
    }

    /// Forward and backward agree with the definition.
    pub fn check(&self, run: &impl Run) {
        let Problem {
            kind,
            residual,
            dropout,
            ..
        } = self.plan.problem();
        let element = self.plan.element();
        let name = format!("{:?}, {} rows", self.plan, self.rows);
        let (y, sum, stats) = run.forward(self);
        let (expected, _) =
            reference::forward(kind, &self.sum(), &self.weight, &self.bias, EPSILON);
        assert_close(&format!("y of {name}"), element, &y, &expected);
        assert_close(&format!("sum of {name}"), element, &sum, &self.sum());

        let dy = draw(element, sum.len(), 5);
        let d_sum = if residual {
            draw(element, sum.len(), 6)
        } else {
            vec![0.0; sum.len()]
        };
        let [dx, d_residual, weight, bias] = run.backward(self, &dy, &sum, stats, &d_sum);
        let [ds, dw, db] = reference::backward(kind, &dy, &sum, &self.weight, EPSILON);
        let ds: Vec<f64> = ds.iter().zip(&d_sum).map(|(a, b)| a + b).collect();
        let hidden = self.weight.len();
        let kept = |i| if dropout { factor(i, hidden) } else { 1.0 };
        let expected: Vec<f64> = ds.iter().enumerate().map(|(i, d)| d * kept(i)).collect();
        assert_close(&format!("dx of {name}"), element, &dx, &expected);
        if residual {
            assert_close(&format!("d residual of {name}"), element, &d_residual, &ds);
        }
        assert_close(&format!("d weight of {name}"), Element::F32, &weight, &dw);
        if kind == Kind::Layer {
            assert_close(&format!("d bias of {name}"), Element::F32, &bias, &db);
        }
    }
}

pub fn problem(kind: Kind, hidden: usize, fused: bool) -> Problem {
    Problem {
        kind,
        hidden,
        residual: fused,
        dropout: fused,
    }
}
