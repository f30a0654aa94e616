//! Dropout, executed on the CPU as its text says.

#![allow(missing_docs)]

mod cases;

use cases::dropout::{DROPOUT, ROWS, Run, check, samples};
use cases::{ELEMENTS, pack, unpack, unwritten};
use frontier_kernels::dropout::Plan;
use frontier_kernels::hip::compile::compile;
use frontier_kernels::hip::run::{Launch, Sanitizer, Scalars};
use frontier_kernels::matrix::instruction::{Element, Target};
use frontier_kernels::rows::grid;

/// Executes the kernel's text on the CPU.
struct Harness(Sanitizer);

impl Run for Harness {
    fn add(&self, plan: &Plan, x: &[f64], residual: &[f64]) -> Vec<f64> {
        let mut buffers = vec![pack(plan.element(), x)];
        buffers.extend(plan.residual().then(|| pack(plan.element(), residual)));
        buffers.extend([samples(), unwritten(plan.element(), x.len())]);
        let source = plan.source().unwrap();
        let mut launch = Launch::new(&source, grid(plan.groups(ROWS as u32)), buffers);
        let [key0, key1] = DROPOUT.key;
        let numbers = [
            ROWS as u32,
            key0,
            key1,
            DROPOUT.threshold(),
            DROPOUT.tokens,
            DROPOUT.first,
        ];
        launch.scalars = Scalars {
            u32: numbers.to_vec(),
            f32: vec![DROPOUT.scale()],
            ..Scalars::default()
        };
        (launch.lane_order, launch.sanitizer) = (x.len() as u64, self.0);
        unpack(plan.element(), launch.run().unwrap().last().unwrap())
    }
}

#[test]
fn rows_of_any_length_lose_what_the_definition_drops() {
    for (i, hidden) in [5, 24, 200, 333, 1024].into_iter().enumerate() {
        let (element, residual) = (ELEMENTS[i % 3], i % 2 == 0);
        let plan = Plan::choose(Target::Gfx90a, element, hidden, residual);
        check(&Harness(Sanitizer::None), &plan);
    }
    let plan = Plan::choose(Target::Gfx1100, Element::F16, 66, true);
    check(&Harness(Sanitizer::None), &plan);
}

#[test]
fn no_unit_leaves_its_buffers() {
    for sanitizer in [Sanitizer::Thread, Sanitizer::Address] {
        let plan = Plan::choose(Target::Gfx90a, Element::Bf16, 264, true);
        check(&Harness(sanitizer), &plan);
    }
}

#[test]
fn each_byte_is_moved_once() {
    let plan = Plan::choose(Target::Gfx90a, Element::Bf16, 4096, true);
    let traffic = compile(&plan.source().unwrap()).unwrap().assembly.traffic();
    // x, the residual, and a sample's number; the output.
    assert_eq!((traffic.loads, traffic.loaded), (3, 16 + 16 + 8));
    assert_eq!((traffic.stores, traffic.stored), (1, 16));
}
