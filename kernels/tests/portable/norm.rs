//! Layer norm and RMS norm.

use frontier_kernels::matrix::instruction::{Element, Target};
use frontier_kernels::norm::launch::{self, Backward, Forward};
use frontier_kernels::norm::{Kind, Plan, Problem};

use crate::cases::dropout::{DROPOUT, ROWS, samples};
use crate::cases::norm::{Case, EPSILON, Run, problem};
use crate::cases::{pack, unwritten};
use crate::device::{Buffer, Device};

impl Run for Device {
    fn forward(&self, case: &Case) -> (Vec<f64>, Vec<f64>, Vec<u8>) {
        let Problem {
            kind,
            residual,
            dropout,
            ..
        } = case.plan.problem();
        let element = case.plan.element();
        let given = |numbers: &[f64]| self.buffer(element, &pack(element, numbers));
        let out = || self.buffer(element, &unwritten(element, case.x.len()));
        let (x, added, weight, bias) = (
            given(&case.x),
            given(&case.residual),
            given(&case.weight),
            given(&case.bias),
        );
        let numbers = self.buffer(Element::I32, &samples());
        let (y, sum) = (out(), out());
        let stats = unwritten(Element::F32, case.rows * case.plan.stats());
        let stats = self.buffer(Element::F32, &stats);
        let fused = residual || dropout;
        let buffers = Forward {
            x: x.arg(),
            residual: residual.then(|| added.arg()),
            samples: dropout.then(|| numbers.arg()),
            weight: weight.arg(),
            bias: (kind == Kind::Layer).then(|| bias.arg()),
            y: y.arg(),
            sum: fused.then(|| sum.arg()),
            stats: stats.arg(),
        };
        launch::forward(
            &self.client,
            &case.plan,
            buffers,
            case.rows,
            EPSILON as f32,
            &DROPOUT,
        )
        .unwrap();
        let sum = if fused { &sum } else { &x };
        (y.numbers(self), sum.numbers(self), stats.bytes(self))
    }

    fn backward(
        &self,
        case: &Case,
        dy: &[f64],
        s: &[f64],
        stats: Vec<u8>,
        d_sum: &[f64],
    ) -> [Vec<f64>; 4] {
        let Problem {
            kind,
            residual,
            dropout,
            hidden,
        } = case.plan.problem();
        let element = case.plan.element();
        let given = |numbers: &[f64]| self.buffer(element, &pack(element, numbers));
        let out = || self.buffer(element, &unwritten(element, s.len()));
        let (dx, d_residual): (Buffer, Buffer) = (out(), out());
        let width = hidden * case.plan.stats();
        let parameters = self.buffer(Element::F32, &unwritten(Element::F32, width));
        let both = residual && dropout;
        let buffers = Backward {
            dy: given(dy).arg(),
            s: given(s).arg(),
            stats: self.buffer(Element::F32, &stats).arg(),
            weight: given(&case.weight).arg(),
            samples: dropout.then(|| self.buffer(Element::I32, &samples()).arg()),
            d_sum: residual.then(|| given(d_sum).arg()),
            dx: dx.arg(),
            d_residual: both.then(|| d_residual.arg()),
            d_parameters: parameters.arg(),
        };
        launch::backward(&self.client, &case.plan, buffers, case.rows, &DROPOUT).unwrap();
        let mut weight = parameters.numbers(self);
        let bias = weight.split_off(hidden);
        let bias = if kind == Kind::Layer {
            bias
        } else {
            vec![0.0; hidden]
        };
        let last = if both { &d_residual } else { &dx };
        [dx.numbers(self), last.numbers(self), weight, bias]
    }
}

#[test]
fn norms_of_any_length_equal_the_definition() {
    let Some(device) = Device::find() else { return };
    for element in device.elements() {
        for (i, hidden) in [5, 128, 333, 1000, 5120].into_iter().enumerate() {
            for (kind, fused) in [(Kind::Layer, i % 2 == 0), (Kind::Rms, i % 2 == 1)] {
                let plan = Plan::choose(Target::Portable, element, problem(kind, hidden, fused));
                Case::new(plan, ROWS).check(&device);
            }
        }
    }
}

#[test]
fn buffers_of_another_problem_are_refused() {
    let Some(device) = Device::find() else { return };
    let plan = Plan::choose(Target::Portable, Element::F32, problem(Kind::Rms, 8, false));
    let buffer = device.buffer(Element::F32, &unwritten(Element::F32, 16));
    let buffers = Forward {
        x: buffer.arg(),
        residual: None,
        samples: None,
        weight: buffer.arg(),
        bias: None,
        y: buffer.arg(),
        sum: None,
        stats: buffer.arg(),
    };
    let error = launch::forward(&device.client, &plan, buffers, 2, 1e-5, &DROPOUT).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("weight has 16 elements, expected 8"),
        "{error}"
    );
}
