//! Split K, sums over K, grouped products.

use frontier_kernels::gemm::grouped::{Group, Table};
use frontier_kernels::gemm::reference::product;
use frontier_kernels::gemm::tile::Role;
use frontier_kernels::gemm::{Activation, Epilogue, Layout, Plan, Shape};
use frontier_kernels::hip::run::{Launch, Scalars, bytes};
use frontier_kernels::matrix::instruction::{Element, Target};

use super::fixture::{Case, assert_close, instruction, numbers, random, unwritten};

fn plan(
    element: Element,
    output: Element,
    layout: Layout,
    shape: &Shape,
    epilogue: Epilogue,
) -> Plan {
    let instruction = instruction(Target::Gfx90a, element, false);
    Plan::with(Target::Gfx90a, instruction, output, layout, shape, epilogue).unwrap()
}

#[test]
fn a_split_product_gives_the_same_with_its_epilogue_after_the_reduction() {
    let forms = [
        (
            Layout::Tn,
            Element::F32,
            Epilogue {
                accumulate: true,
                ..Epilogue::default()
            },
        ),
        (
            Layout::Nt,
            Element::Bf16,
            Epilogue {
                bias: true,
                activation: Activation::SwiGlu,
                save: true,
                ..Epilogue::default()
            },
        ),
    ];
    for (layout, output, epilogue) in forms {
        let shape = Shape::contiguous(layout, 2, 40, 56, 520, epilogue.activation.paired());
        let plan = plan(Element::Bf16, output, layout, &shape, epilogue).split();
        let (source, reduction) = (
            plan.source("gemm_split").unwrap(),
            plan.reduction_source("gemm_reduction").unwrap(),
        );
        // 9 tiles of K: parts of equal and of unequal size.
        for parts in [1, 3, 5] {
            Case::new(plan, shape, 3).check(&source, Some(&reduction), parts);
        }
    }
}

#[test]
fn results_do_not_depend_on_the_order_of_the_workgroups() {
    let shape = Shape::contiguous(Layout::Tn, 1, 72, 72, 400, false);
    let plan = plan(
        Element::F16,
        Element::F32,
        Layout::Tn,
        &shape,
        Epilogue::default(),
    )
    .split();
    let case = Case::new(plan, shape, 9);
    let source = plan.source("gemm_split").unwrap();
    let run = |lane_order| {
        let out = unwritten(3 * 72 * 72, Element::F32);
        let mut launch = Launch::new(
            &source,
            [4, 1, 3],
            vec![case.a().bytes, case.b().bytes, out],
        );
        launch.scalars = Scalars {
            u32: vec![72, 72, 400, 18, 0, 18, 0, 3, 3],
            f32: vec![1.0],
            ..Scalars::default()
        };
        launch.lane_order = lane_order;
        launch.run().unwrap().swap_remove(2)
    };
    assert_eq!(run(0), run(1));
    assert_eq!(run(0), run(2024));
}

#[test]
fn sums_over_k_are_the_gradient_of_a_bias() {
    for (element, role, m, parts) in [
        (Element::Bf16, Role::Rows, 136, 1),
        (Element::F16, Role::Rows, 67, 1),
        (Element::F32, Role::Rows, 40, 2),
        (Element::Bf16, Role::Columns, 136, 1),
        (Element::F32, Role::Columns, 67, 2),
    ] {
        let shape = Shape::contiguous(Layout::Tn, 1, m, 72, 200, false);
        let plan = plan(
            element,
            Element::F32,
            Layout::Tn,
            &shape,
            Epilogue::default(),
        )
        .with_sums_of(role)
        .unwrap();
        let plan = if parts > 1 { plan.split() } else { plan };
        let (source, reduction) = (
            plan.source("gemm_sums").unwrap(),
            plan.reduction_source("gemm_reduction").unwrap(),
        );
        Case::new(plan, shape, 21).check(&source, (parts > 1).then_some(&reduction), parts);
    }
}

#[test]
fn a_group_of_products_gives_each_of_them() {
    for layout in [Layout::Nt, Layout::Tn] {
        // Empty groups in every way, more than one tile, tails.
        let sizes = [
            (0, 24, 32),
            (40, 24, 32),
            (72, 136, 200),
            (16, 8, 0),
            (0, 8, 8),
            (8, 8, 72),
        ];
        let mut groups = Vec::new();
        let (mut a, mut b, mut out, mut bias) = (0, 0, 0, 0);
        for (m, n, k) in sizes {
            groups.push(Group {
                m,
                n,
                k,
                a,
                b,
                out,
                bias,
            });
            (a, b, out, bias) = (a + m * k, b + n * k, out + m * n, bias + n);
        }
        let like = Shape::contiguous(layout, 1, 64, 64, 64, false);
        let plan = plan(
            Element::Bf16,
            Element::F32,
            layout,
            &like,
            Epilogue {
                bias: true,
                ..Epilogue::default()
            },
        );
        let (left, right) = (random(1, a, Element::Bf16), random(2, b, Element::Bf16));
        let biases = random(3, bias, Element::Bf16);
        let table = Table::new(&plan, &groups).unwrap();
        let source = plan.grouped_source("gemm_grouped").unwrap();
        let buffers = vec![
            left.bytes.clone(),
            right.bytes.clone(),
            unwritten(out, Element::F32),
            biases.bytes.clone(),
            bytes(table.words()),
        ];
        // Two workgroups more than there is work for.
        let mut launch = Launch::new(&source, [table.tiles() + 2, 1, 1], buffers);
        launch.scalars = Scalars {
            u32: vec![sizes.len() as u32],
            f32: vec![1.0],
            ..Scalars::default()
        };
        let found = numbers(&launch.run().unwrap()[2], Element::F32);
        for Group {
            m,
            n,
            k,
            a,
            b,
            out,
            bias,
        } in groups
        {
            let shape = Shape::contiguous(layout, 1, m, n, k, false);
            let mut expected = product(layout, &shape, n, &left.numbers[a..], &right.numbers[b..]);
            for (at, x) in expected.iter_mut().enumerate() {
                *x += biases.numbers[bias + at % n];
            }
            assert_close(
                &format!("{layout:?} {shape:?}"),
                Element::F32,
                &found[out..out + m * n],
                &expected,
            );
        }
    }
}

#[test]
fn a_group_that_its_plan_cannot_read_is_refused() {
    let like = Shape::contiguous(Layout::Nt, 1, 64, 64, 64, false);
    let plan = plan(
        Element::Bf16,
        Element::F32,
        Layout::Nt,
        &like,
        Epilogue::default(),
    );
    let odd = Group {
        m: 8,
        n: 8,
        k: 9,
        ..Group::default()
    };
    let even = Group { k: 16, ..odd };
    let far = |m, out| Group { m, out, ..even };
    for (plan, groups, why) in [
        (plan, vec![odd], "not aligned"),
        (plan, vec![even, even], "groups 0 and 1 have results"),
        (plan, vec![far(8, 32), far(0, 40), even], "which overlap"),
        (plan, vec![far(1 << 33, 0)], "more than 32 bits count"),
        (plan, vec![far(1 << 31, 0)], "more than 32 bits count"),
        (plan, vec![Group { k: 1 << 28, ..even }], "a tile of"),
        (plan, vec![far(8, usize::MAX)], "more than 32 bits count"),
        (plan.split(), vec![even], "split K"),
    ] {
        let error = Table::new(&plan, &groups).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    assert!(Table::new(&plan, &[far(8, 64), even]).is_ok(), "backwards");
    assert!(plan.split().grouped_source("gemm_grouped").is_err());
}
