//! Shapes, layouts, types and units.

use frontier_kernels::gemm::{Epilogue, Layout, Plan, Shape};
use frontier_kernels::hip::run::Sanitizer;
use frontier_kernels::matrix::instruction::{Element, INSTRUCTIONS, Target, Unit};

use super::fixture::{Case, check, instruction};

const LAYOUTS: [Layout; 3] = [Layout::Nt, Layout::Nn, Layout::Tn];
const ELEMENTS: [Element; 3] = [Element::F16, Element::Bf16, Element::F32];

/// Shapes with the widest accesses: smaller than a tile, whole tiles, tails in every direction.
const ALIGNED: [(usize, usize, usize); 4] =
    [(8, 8, 8), (64, 64, 128), (136, 72, 200), (72, 200, 328)];
/// Shapes with no common factor.
const ODD: [(usize, usize, usize); 3] = [(1, 1, 1), (67, 31, 129), (3, 131, 65)];

fn shapes(layout: Layout, all: &[(usize, usize, usize)]) -> impl Iterator<Item = Shape> {
    all.iter()
        .map(move |&(m, n, k)| Shape::contiguous(layout, 1, m, n, k, false))
}

#[test]
fn every_layout_and_type_gives_the_product_for_aligned_and_odd_shapes() {
    for element in ELEMENTS {
        for layout in LAYOUTS {
            let instruction = instruction(Target::Gfx90a, element, false);
            for shapes in [
                shapes(layout, &ALIGNED).collect::<Vec<_>>(),
                shapes(layout, &ODD).collect(),
            ] {
                let plan = Plan::with(
                    Target::Gfx90a,
                    instruction,
                    element,
                    layout,
                    &shapes[0],
                    Epilogue::default(),
                )
                .unwrap();
                let source = plan.source(format!("gemm_{layout:?}_{element:?}")).unwrap();
                for (seed, shape) in (7..).zip(shapes) {
                    Case::new(plan, shape, seed).check(&source, None, 1);
                }
            }
        }
    }
}

#[test]
fn the_large_tile_gives_the_product_with_tails() {
    for layout in LAYOUTS {
        let instruction = instruction(Target::Gfx90a, Element::Bf16, false);
        let large = Shape::contiguous(layout, 1, 4096, 4096, 4096, false);
        let plan = Plan::with(
            Target::Gfx90a,
            instruction,
            Element::F32,
            layout,
            &large,
            Epilogue::default(),
        )
        .unwrap();
        assert_eq!(plan.workgroup_tile(), (128, 128));
        let source = plan.source(format!("gemm_large_{layout:?}")).unwrap();
        for (m, n, k) in [(128, 128, 64), (136, 264, 392)] {
            Case::new(plan, Shape::contiguous(layout, 1, m, n, k, false), 5)
                .check(&source, None, 1);
        }
    }
}

#[test]
fn multiply_adds_and_the_wmma_of_rdna3_give_the_product() {
    for (target, element, fma) in [
        (Target::Gfx90a, Element::F32, true),
        (Target::Gfx90a, Element::F16, true),
        (Target::Gfx1100, Element::Bf16, true),
        (Target::Gfx1100, Element::F16, false),
        (Target::Gfx1100, Element::Bf16, false),
    ] {
        for layout in LAYOUTS {
            let shape = Shape::contiguous(layout, 1, 72, 136, 104, false);
            check(
                target,
                instruction(target, element, fma),
                element,
                layout,
                Epilogue::default(),
                shape,
            );
        }
    }
}

#[test]
fn nvidias_text_gives_the_product_for_aligned_and_odd_shapes() {
    let (target, epilogue) = (Target::Cuda, Epilogue::default());
    for (layout, element) in [
        (Layout::Nt, Element::Bf16),
        (Layout::Nn, Element::F16),
        (Layout::Tn, Element::Bf16),
    ] {
        let instruction = instruction(target, element, false);
        assert_eq!(instruction.unit, Unit::Mma);
        for shapes in [
            shapes(layout, &ALIGNED).collect::<Vec<_>>(),
            shapes(layout, &ODD).collect(),
        ] {
            let plan =
                Plan::with(target, instruction, element, layout, &shapes[0], epilogue).unwrap();
            let source = plan.source(format!("gemm_{layout:?}_{element:?}")).unwrap();
            for (seed, shape) in (7..).zip(shapes) {
                Case::new(plan, shape, seed).check(&source, None, 1);
            }
        }
        let large = Shape::contiguous(layout, 1, 4096, 4096, 4096, false);
        let plan = Plan::choose(target, (element, Element::F32), layout, &large, epilogue).unwrap();
        assert_eq!(plan.workgroup_tile(), (128, 128));
        let source = plan.source(format!("gemm_large_{layout:?}")).unwrap();
        let shape = Shape::contiguous(layout, 1, 136, 264, 200, false);
        Case::new(plan, shape, 5).check(&source, None, 1);
    }
    let instruction = instruction(target, Element::F32, true);
    let shape = Shape::contiguous(Layout::Nt, 1, 72, 136, 104, false);
    check(
        target,
        instruction,
        Element::F32,
        Layout::Nt,
        epilogue,
        shape,
    );
}

#[test]
fn the_16x16_forms_give_the_product() {
    for element in ELEMENTS {
        let form = INSTRUCTIONS
            .iter()
            .find(|i| i.operand == element && i.m == 16 && i.exists_on(Target::Gfx942));
        let shape = Shape::contiguous(Layout::Nt, 1, 72, 136, 104, false);
        check(
            Target::Gfx942,
            *form.unwrap(),
            element,
            Layout::Nt,
            Epilogue::default(),
            shape,
        );
    }
}

#[test]
fn plain_multiply_adds_in_loops_give_the_product_with_tails() {
    for (element, layout, shape) in [
        (Element::F32, Layout::Nt, (72, 136, 104)),
        (Element::F16, Layout::Nn, (67, 31, 129)),
        (Element::Bf16, Layout::Tn, (136, 72, 200)),
        (Element::F32, Layout::Tn, (3, 131, 5)),
    ] {
        let form = INSTRUCTIONS.iter().rfind(|i| i.operand == element);
        let (m, n, k) = shape;
        let shape = Shape::contiguous(layout, 1, m, n, k, false);
        check(
            Target::Gfx90a,
            *form.unwrap(),
            element,
            layout,
            Epilogue::default(),
            shape,
        );
    }
}

#[test]
fn batches_and_strides_are_followed() {
    let instruction = instruction(Target::Gfx90a, Element::F16, false);
    // A of rows that are parts of longer ones; one B for all batches.
    let shape = Shape {
        batches: 3,
        m: 40,
        n: 24,
        k: 72,
        a: (80, 40 * 80),
        b: (72, 0),
    };
    check(
        Target::Gfx90a,
        instruction,
        Element::F16,
        Layout::Nt,
        Epilogue::default(),
        shape,
    );
    let shape = Shape::contiguous(Layout::Tn, 2, 40, 24, 72, false);
    check(
        Target::Gfx90a,
        instruction,
        Element::F32,
        Layout::Tn,
        Epilogue::default(),
        shape,
    );
}

#[test]
fn no_kernel_races_or_leaves_its_buffers() {
    for (layout, (m, n, k)) in [(Layout::Nt, (67, 31, 129)), (Layout::Tn, (68, 36, 140))] {
        let instruction = instruction(Target::Gfx90a, Element::F16, false);
        let shape = Shape::contiguous(layout, 1, m, n, k, false);
        let plan = Plan::with(
            Target::Gfx90a,
            instruction,
            Element::F16,
            layout,
            &shape,
            Epilogue::default(),
        )
        .unwrap();
        let source = plan.source(format!("gemm_{layout:?}")).unwrap();
        for sanitizer in [Sanitizer::Thread, Sanitizer::Address] {
            let case = Case {
                sanitizer,
                ..Case::new(plan, shape, 13)
            };
            case.check(&source, None, 1);
        }
    }
}
