//! Rotary embedding.

use frontier_kernels::matrix::instruction::{Element, Target};
use frontier_kernels::rotary::launch::{self, Buffers};
use frontier_kernels::rotary::{Plan, Shape, Strides};

use crate::cases::rotary::{Run, check};
use crate::cases::{pack, unwritten};
use crate::device::Device;

impl Run for Device {
    fn rotate(
        &self,
        plan: &Plan,
        shape: Shape,
        strides: [Strides; 2],
        x: &[f64],
        tables: [&[f64]; 2],
    ) -> Vec<f64> {
        let [cos, sin] =
            tables.map(|table| self.buffer(Element::F32, &pack(Element::F32, table)).arg());
        let y = self.buffer(plan.element(), &unwritten(plan.element(), shape.count()));
        let x = self.buffer(plan.element(), &pack(plan.element(), x)).arg();
        let buffers = Buffers {
            x,
            cos,
            sin,
            y: y.arg(),
        };
        launch::rotate(&self.client, plan, buffers, shape, strides).unwrap();
        y.numbers(self)
    }
}

#[test]
fn heads_of_any_length_are_rotated_and_rotated_back_in_both_layouts() {
    let Some(device) = Device::find() else { return };
    for element in device.elements() {
        for head_dim in [24, 90, 128] {
            let shape = Shape {
                batch: 2,
                heads: 3,
                seq: 5,
                head_dim,
            };
            let (heads, tokens) = (shape.heads_first(), shape.tokens_first());
            for strides in [[heads, heads], [tokens, heads]] {
                check(&device, Target::Portable, element, shape, strides);
            }
        }
    }
}
