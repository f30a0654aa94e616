//! Layer norm and RMS norm, forward and backward, executed on the CPU as their text says.

#![allow(missing_docs)]

mod cases;

use cases::dropout::{DROPOUT, ROWS, samples};
use cases::norm::{Case, EPSILON, Run, problem};
use cases::{ELEMENTS, pack, unpack, unwritten};
use frontier_kernels::hip::compile::compile;
use frontier_kernels::hip::run::{Launch, Sanitizer, Scalars};
use frontier_kernels::matrix::instruction::{Element, Target};
use frontier_kernels::norm::{Kind, Pass, Plan, Problem};
use frontier_kernels::rows::grid;

fn scalars(first: &[u32], f32: &[f32]) -> Scalars {
    let [key0, key1] = DROPOUT.key;
    let site = [
        key0,
        key1,
        DROPOUT.threshold(),
        DROPOUT.tokens,
        DROPOUT.first,
    ];
    let (u32, f32) = ([first, &site].concat(), [f32, &[DROPOUT.scale()]].concat());
    Scalars {
        u32,
        f32,
        ..Scalars::default()
    }
}

/// Executes the kernels' text on the CPU.
struct Harness(Sanitizer);

impl Run for Harness {
    fn forward(&self, case: &Case) -> (Vec<f64>, Vec<f64>, Vec<u8>) {
        let Problem {
            kind,
            residual,
            dropout,
            ..
        } = case.plan.problem();
        let element = case.plan.element();
        let source = case.plan.source(Pass::Forward).unwrap();
        let all = case.x.len();
        let mut buffers = vec![pack(element, &case.x)];
        buffers.extend(residual.then(|| pack(element, &case.residual)));
        buffers.extend(dropout.then(samples));
        buffers.push(pack(element, &case.weight));
        buffers.extend((kind == Kind::Layer).then(|| pack(element, &case.bias)));
        let y = buffers.len();
        buffers.push(unwritten(element, all));
        buffers.extend((residual || dropout).then(|| unwritten(element, all)));
        buffers.push(unwritten(Element::F32, case.rows * case.plan.stats()));
        let groups = grid((case.rows as u32).div_ceil(case.plan.rows()[0].per_workgroup()));
        let mut launch = Launch::new(&source, groups, buffers);
        launch.scalars = scalars(&[case.rows as u32], &[EPSILON as f32]);
        launch.lane_order = case.x.len() as u64;
        launch.sanitizer = self.0;
        let mut after = launch.run().unwrap();
        let stats = after.pop().unwrap();
        let sum = if residual || dropout {
            unpack(element, &after[y + 1])
        } else {
            case.x.clone()
        };
        (unpack(element, &after[y]), sum, stats)
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
        let source = case.plan.source(Pass::Backward).unwrap();
        let groups = case.plan.groups(case.rows as u32);
        let width = hidden * case.plan.stats();
        let mut buffers = vec![
            pack(element, dy),
            pack(element, s),
            stats,
            pack(element, &case.weight),
        ];
        buffers.extend(dropout.then(samples));
        buffers.extend(residual.then(|| pack(element, d_sum)));
        let dx = buffers.len();
        buffers.push(unwritten(element, s.len()));
        buffers.extend((residual && dropout).then(|| unwritten(element, s.len())));
        buffers.push(unwritten(Element::F32, groups as usize * width));
        let mut launch = Launch::new(&source, [groups, 1, 1], buffers);
        launch.scalars = scalars(&[case.rows as u32, groups], &[]);
        launch.lane_order = s.len() as u64;
        launch.sanitizer = self.0;
        let mut after = launch.run().unwrap();
        let partials = after.pop().unwrap();

        let source = case.plan.source(Pass::Reduce).unwrap();
        let buffers = vec![partials, unwritten(Element::F32, width)];
        let mut launch = Launch::new(&source, [(width as u32).div_ceil(32), 1, 1], buffers);
        launch.scalars = Scalars {
            u32: vec![groups, width as u32],
            ..Scalars::default()
        };
        let parameters = unpack(Element::F32, &launch.run().unwrap()[1]);
        let (weight, bias) = parameters.split_at(hidden);
        let bias = if kind == Kind::Layer {
            bias.to_vec()
        } else {
            vec![0.0; hidden]
        };
        let last = unpack(element, &after[after.len() - 1]);
        [unpack(element, &after[dx]), last, weight.to_vec(), bias]
    }
}

/// A part of a wave, a wave, several chunks, odd lengths, a workgroup a row.
const HIDDEN: [usize; 6] = [5, 24, 128, 200, 333, 5120];

#[test]
fn every_type_length_and_kind_equals_the_definition() {
    for (i, element) in ELEMENTS.into_iter().enumerate() {
        for (j, hidden) in HIDDEN.into_iter().enumerate() {
            // Each of the four forms meets every type and every length.
            let (kind, fused) = [
                (Kind::Layer, false),
                (Kind::Rms, true),
                (Kind::Layer, true),
                (Kind::Rms, false),
            ][(i + j) % 4];
            let mut plan = Plan::choose(Target::Gfx90a, element, problem(kind, hidden, fused));
            // Workgroups with several rows, one after the other.
            plan = plan.with_most_groups(2);
            for rows in [3, ROWS] {
                Case::new(plan, rows).check(&Harness(Sanitizer::None));
            }
        }
    }
}

#[test]
fn residual_and_dropout_work_alone_and_on_waves_of_32_lanes() {
    for (residual, dropout, kind) in [(true, false, Kind::Layer), (false, true, Kind::Rms)] {
        let problem = Problem {
            kind,
            hidden: 264,
            residual,
            dropout,
        };
        for target in [Target::Gfx1100, Target::Cuda] {
            Case::new(Plan::choose(target, Element::F16, problem), ROWS)
                .check(&Harness(Sanitizer::None));
        }
    }
}

#[test]
fn nvidias_text_equals_the_definition() {
    for (element, kind, hidden) in [
        (Element::Bf16, Kind::Layer, 1032),
        (Element::F32, Kind::Rms, 264),
    ] {
        let mut plan = Plan::choose(Target::Cuda, element, problem(kind, hidden, true));
        plan = plan.with_most_groups(2);
        Case::new(plan, ROWS).check(&Harness(Sanitizer::None));
    }
}

#[test]
fn a_row_too_long_for_registers_is_read_again() {
    let mut plan = Plan::choose(
        Target::Gfx90a,
        Element::F32,
        problem(Kind::Layer, 4200, true),
    );
    for layout in [&mut plan.rows()[0], &mut plan.rows()[1]] {
        (layout.vector, layout.row_units, layout.units) = (1, 64, 64);
    }
    plan = plan.with_most_groups(2);
    Case::new(plan, 3).check(&Harness(Sanitizer::None));
}

#[test]
fn no_unit_races_or_leaves_its_buffers() {
    for (hidden, element) in [(264, Element::Bf16), (1032, Element::F32)] {
        let mut plan = Plan::choose(Target::Gfx90a, element, problem(Kind::Layer, hidden, true));
        plan = plan.with_most_groups(1);
        for sanitizer in [Sanitizer::Thread, Sanitizer::Address] {
            Case::new(plan, ROWS).check(&Harness(sanitizer));
        }
    }
}

#[test]
fn forward_moves_each_byte_once() {
    for (hidden, kind) in [
        (4096, Kind::Layer),
        (25_600, Kind::Layer),
        (4096, Kind::Rms),
    ] {
        let plan = Plan::choose(Target::Gfx90a, Element::Bf16, problem(kind, hidden, false));
        let traffic = compile(&plan.source(Pass::Forward).unwrap())
            .unwrap()
            .assembly
            .traffic();
        // Of a row: x, weight and, of a layer norm, bias are read; y is written; 16 bytes an access, each instruction once.
        let chunks = plan.rows()[0].chunks() as usize;
        let read = if kind == Kind::Layer { 3 } else { 2 };
        assert_eq!(
            (traffic.loads, traffic.loaded),
            (read * chunks, 16 * read * chunks),
            "{plan:?}"
        );
        let stats = 4 * plan.stats();
        assert_eq!(
            (traffic.stores, traffic.stored),
            (chunks + 1, 16 * chunks + stats),
            "{plan:?}"
        );
        let units = plan.rows()[0].row_units as usize;
        assert!(
            8 * units * (chunks - 1) < hidden && hidden <= 8 * units * chunks,
            "{plan:?}"
        );
    }
}
