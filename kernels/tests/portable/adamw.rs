//! AdamW over many tensors, and the norm of their gradients.

use frontier_kernels::adamw::launch::{self, Buffers};
use frontier_kernels::matrix::instruction::{Element, Target};

use crate::cases::adamw::{Case, LOSS_SCALE, Run, STEP};
use crate::cases::{pack, unwritten};
use crate::device::{Buffer, Device};

impl Device {
    fn floats(&self, numbers: &[f64]) -> Buffer {
        self.buffer(Element::F32, &pack(Element::F32, numbers))
    }

    fn gradient(&self, case: &Case, gradient: &[f64]) -> Buffer {
        self.buffer(case.plan.gradient(), &pack(case.plan.gradient(), gradient))
    }
}

impl Run for Device {
    fn squares(&self, case: &Case, gradient: &[f64]) -> Vec<u8> {
        let gradient = self.gradient(case, gradient).arg();
        let square = self.floats(&[f64::NAN]);
        launch::squares(
            &self.client,
            &case.plan,
            &case.table,
            gradient,
            square.arg(),
        )
        .unwrap();
        square.bytes(self)
    }

    fn control(
        &self,
        case: &Case,
        square: Vec<u8>,
        control: &[f64],
        largest_norm: f64,
    ) -> Vec<f64> {
        let (square, control) = (self.buffer(Element::F32, &square), self.floats(control));
        let (target, largest) = (case.plan.target(), Some(largest_norm));
        launch::control(
            &self.client,
            target,
            square.arg(),
            control.arg(),
            &STEP,
            LOSS_SCALE,
            largest,
        )
        .unwrap();
        control.numbers(self)
    }

    fn update(
        &self,
        case: &Case,
        gradient: &[f64],
        state: &[Vec<f64>; 3],
        control: &[f64],
    ) -> Vec<Vec<f64>> {
        let [parameters, first, second] = [0, 1, 2].map(|i| self.floats(&state[i]));
        let weights = case
            .plan
            .weights()
            .map(|element| self.buffer(element, &unwritten(element, case.count)));
        let buffers = Buffers {
            gradient: self.gradient(case, gradient).arg(),
            parameters: parameters.arg(),
            first: first.arg(),
            second: second.arg(),
            weights: weights.as_ref().map(Buffer::arg),
        };
        let control = self.floats(control).arg();
        launch::update(
            &self.client,
            &case.plan,
            &case.table,
            control,
            buffers,
            &STEP,
        )
        .unwrap();
        [parameters, first, second]
            .iter()
            .chain(&weights)
            .map(|buffer| buffer.numbers(self))
            .collect()
    }
}

#[test]
fn steps_of_many_tensors_equal_the_definition_and_an_overflow_skips_one() {
    let Some(device) = Device::find() else { return };
    for element in device.elements() {
        let weights = (element != Element::F32).then_some(element);
        for aligned in [true, false] {
            let case = Case::new(Target::Portable, element, weights, aligned);
            case.check(&device);
            case.check_skip(&device);
        }
    }
}
