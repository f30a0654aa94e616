//! AdamW over many tensors, and the norm of their gradients, executed on the CPU as their text says.

#![allow(missing_docs)]

mod cases;

use cases::adamw::{Case, LOSS_SCALE, Run, STEP};
use cases::{pack, unpack, unwritten};
use frontier_kernels::adamw::launch::Step;
use frontier_kernels::adamw::{Pass, Table, Tensor};
use frontier_kernels::hip::run::{Launch, Sanitizer, Scalars, bytes};
use frontier_kernels::matrix::instruction::{Element, Target};

/// Executes the kernels' text on the CPU.
struct Harness(Sanitizer);

impl Harness {
    fn launch(
        &self,
        case: &Case,
        pass: Pass,
        groups: u32,
        buffers: Vec<Vec<u8>>,
        u32: Vec<u32>,
        f32: Vec<f32>,
    ) -> Vec<Vec<u8>> {
        let source = case.plan.source(pass).unwrap();
        let mut launch = Launch::new(&source, [groups, 1, 1], buffers);
        launch.scalars = Scalars {
            u32,
            f32,
            ..Scalars::default()
        };
        (launch.lane_order, launch.sanitizer) = (case.count as u64, self.0);
        launch.run().unwrap()
    }
}

impl Run for Harness {
    fn squares(&self, case: &Case, gradient: &[f64]) -> Vec<u8> {
        // Two workgroups that each have several tiles.
        let f32 = |count| unwritten(Element::F32, count);
        let buffers = vec![
            bytes(case.table.words()),
            pack(case.plan.gradient(), gradient),
            f32(2),
        ];
        let u32 = vec![case.table.tensors(), case.table.tiles(), 2];
        let partials = self
            .launch(case, Pass::Squares, 2, buffers, u32, vec![])
            .remove(2);
        self.launch(
            case,
            Pass::Total,
            1,
            vec![partials, f32(1)],
            vec![2],
            vec![],
        )
        .remove(1)
    }

    fn control(
        &self,
        case: &Case,
        square: Vec<u8>,
        control: &[f64],
        largest_norm: f64,
    ) -> Vec<f64> {
        let buffers = vec![square, pack(Element::F32, control)];
        let numbers = [
            1.0 / LOSS_SCALE,
            largest_norm,
            1.0 - STEP.beta1,
            1.0 - STEP.beta2,
        ];
        let after = self.launch(
            case,
            Pass::Control,
            1,
            buffers,
            vec![],
            numbers.map(|x| x as f32).to_vec(),
        );
        unpack(Element::F32, &after[1])
    }

    fn update(
        &self,
        case: &Case,
        gradient: &[f64],
        state: &[Vec<f64>; 3],
        control: &[f64],
    ) -> Vec<Vec<f64>> {
        let f32 = |x: &[f64]| pack(Element::F32, x);
        let mut buffers = vec![
            bytes(case.table.words()),
            f32(control),
            pack(case.plan.gradient(), gradient),
        ];
        buffers.extend(state.iter().map(|x| f32(x)));
        let weights = case
            .plan
            .weights()
            .map(|element| unwritten(element, case.count));
        buffers.extend(weights);
        let Step {
            learning_rate: rate,
            weight_decay,
            beta1,
            beta2,
            epsilon,
        } = STEP;
        let numbers = [
            rate,
            1.0 - rate * weight_decay,
            beta1,
            beta2,
            1.0 - beta1,
            1.0 - beta2,
            epsilon,
        ];
        let u32 = vec![case.table.tensors(), case.table.tiles()];
        let f32 = numbers.map(|x| x as f32).to_vec();
        let after = self.launch(case, Pass::Update, case.table.tiles(), buffers, u32, f32);
        let types = [Element::F32; 3].into_iter().chain(case.plan.weights());
        after[3..]
            .iter()
            .zip(types)
            .map(|(buffer, element)| unpack(element, buffer))
            .collect()
    }
}

fn case(gradient: Element, weights: Option<Element>, aligned: bool) -> Case {
    Case::new(Target::Gfx90a, gradient, weights, aligned)
}

#[test]
fn three_steps_of_many_tensors_equal_the_definition() {
    let run = Harness(Sanitizer::None);
    case(Element::F32, None, true).check(&run);
    case(Element::Bf16, Some(Element::Bf16), true).check(&run);
    case(Element::F16, Some(Element::F16), false).check(&run);
    Case::new(Target::Cuda, Element::Bf16, Some(Element::Bf16), true).check(&run);
}

#[test]
fn a_step_whose_gradient_overflowed_changes_nothing_and_is_not_counted() {
    case(Element::F16, Some(Element::F16), true).check_skip(&Harness(Sanitizer::None));
}

#[test]
fn no_unit_races_or_leaves_its_buffers() {
    for sanitizer in [Sanitizer::Thread, Sanitizer::Address] {
        case(Element::Bf16, Some(Element::Bf16), true).check(&Harness(sanitizer));
    }
}

#[test]
fn more_elements_than_places_are_refused() {
    let tensor = Tensor {
        offset: 1 << 31,
        length: 1 << 31,
        decays: false,
        counts: true,
    };
    assert!(
        Table::new(&[tensor])
            .unwrap_err()
            .to_string()
            .contains("32-bit")
    );
}
