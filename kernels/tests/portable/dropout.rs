//! Dropout.

use frontier_kernels::dropout::Plan;
use frontier_kernels::dropout::launch::{self, Buffers};
use frontier_kernels::matrix::instruction::{Element, Target};

use crate::cases::dropout::{DROPOUT, ROWS, Run, check, samples};
use crate::cases::{pack, unwritten};
use crate::device::Device;

impl Run for Device {
    fn add(&self, plan: &Plan, x: &[f64], residual: &[f64]) -> Vec<f64> {
        let given = |numbers: &[f64]| self.buffer(plan.element(), &pack(plan.element(), numbers));
        let y = self.buffer(plan.element(), &unwritten(plan.element(), x.len()));
        let buffers = Buffers {
            x: given(x).arg(),
            residual: plan.residual().then(|| given(residual).arg()),
            samples: self.buffer(Element::I32, &samples()).arg(),
            y: y.arg(),
        };
        launch::add(&self.client, plan, buffers, ROWS, &DROPOUT).unwrap();
        y.numbers(self)
    }
}

#[test]
fn rows_of_any_length_lose_what_the_definition_drops() {
    let Some(device) = Device::find() else { return };
    for element in device.elements() {
        for (hidden, residual) in [(5, false), (6, true), (128, true), (1000, false)] {
            let plan = Plan::choose(Target::Portable, element, hidden, residual);
            check(&device, &plan);
        }
    }
}
