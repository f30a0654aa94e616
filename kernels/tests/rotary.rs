//! Rotary embedding, executed on the CPU as its text says.

#![allow(missing_docs)]

mod cases;

use cases::rotary::{Run, check};
use cases::{ELEMENTS, pack, unpack, unwritten};
use frontier_kernels::hip::run::{Launch, Sanitizer, Scalars};
use frontier_kernels::matrix::instruction::{Element, Target};
use frontier_kernels::rotary::{Plan, Shape, Strides};

/// Executes the kernel's text on the CPU.
struct Harness(Sanitizer);

impl Run for Harness {
    fn rotate(
        &self,
        plan: &Plan,
        shape: Shape,
        strides: [Strides; 2],
        x: &[f64],
        tables: [&[f64]; 2],
    ) -> Vec<f64> {
        let Shape { batch, seq, .. } = shape;
        let [cos, sin] = tables.map(|table| pack(Element::F32, table));
        let buffers = vec![
            pack(plan.element(), x),
            cos,
            sin,
            unwritten(plan.element(), shape.count()),
        ];
        let source = plan.source().unwrap();
        let mut launch = Launch::new(&source, [(batch * seq) as u32, 1, 1], buffers);
        let steps = strides.map(|s| [s.batch, s.head, s.token].map(|x| (x / plan.vector()) as u32));
        let u32 = [vec![seq as u32, (batch * seq) as u32], steps.concat()].concat();
        launch.scalars = Scalars {
            u32,
            ..Scalars::default()
        };
        (launch.lane_order, launch.sanitizer) = (seq as u64, self.0);
        unpack(plan.element(), &launch.run().unwrap()[3])
    }
}

#[test]
fn heads_of_any_length_are_rotated_and_rotated_back_in_both_layouts() {
    for (element, head_dim) in ELEMENTS.into_iter().zip([24, 128, 90]) {
        let shape = Shape {
            batch: 2,
            heads: 3,
            seq: 5,
            head_dim,
        };
        let (heads, tokens) = (shape.heads_first(), shape.tokens_first());
        check(
            &Harness(Sanitizer::None),
            Target::Gfx90a,
            element,
            shape,
            [heads, heads],
        );
        check(
            &Harness(Sanitizer::None),
            Target::Gfx90a,
            element,
            shape,
            [tokens, heads],
        );
    }
    let shape = Shape {
        batch: 1,
        heads: 40,
        seq: 3,
        head_dim: 64,
    };
    for target in [Target::Gfx1100, Target::Cuda] {
        check(
            &Harness(Sanitizer::None),
            target,
            Element::F16,
            shape,
            [shape.tokens_first(); 2],
        );
    }
}

#[test]
fn no_unit_leaves_its_buffers() {
    let shape = Shape {
        batch: 2,
        heads: 3,
        seq: 5,
        head_dim: 16,
    };
    let strides = [shape.heads_first(), shape.tokens_first()];
    for sanitizer in [Sanitizer::Thread, Sanitizer::Address] {
        check(
            &Harness(sanitizer),
            Target::Gfx90a,
            Element::Bf16,
            shape,
            strides,
        );
    }
}

#[test]
fn a_head_without_halves_is_refused() {
    let shape = Shape {
        batch: 1,
        heads: 1,
        seq: 1,
        head_dim: 7,
    };
    let plan = Plan::choose(
        Target::Gfx90a,
        Element::F32,
        shape,
        [shape.heads_first(); 2],
        false,
    );
    assert!(plan.unwrap_err().to_string().contains("7 elements"));
}
