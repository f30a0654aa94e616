//! Matrix products.

use frontier_kernels::gemm::grouped::{Group, Table};
use frontier_kernels::gemm::launch::{Arguments, Extras, launch, launch_grouped};
use frontier_kernels::gemm::reference::{activate, product};
use frontier_kernels::gemm::tile::Role;
use frontier_kernels::gemm::{Activation, Epilogue, Layout, Plan, Shape};
use frontier_kernels::matrix::instruction::{Element, Target};

use crate::cases::{assert_close, draw, pack, unwritten};
use crate::device::{Buffer, Device};

const M: usize = 37;
const N: usize = 45;
const K: usize = 70;

/// A, B and their product `[batches, M, columns]`.
struct Operands {
    a: Vec<f64>,
    b: Vec<f64>,
    sums: Vec<f64>,
}

impl Operands {
    fn new(element: Element, layout: Layout, shape: &Shape, columns: usize) -> Self {
        let a = draw(element, shape.batches * M * K, 1);
        let b = draw(element, shape.batches * K * columns, 2);
        let sums = product(layout, shape, columns, &a, &b);
        Self { a, b, sums }
    }
}

fn arguments(a: &Buffer, b: &Buffer, out: &Buffer, extras: Extras) -> Arguments {
    Arguments {
        a: a.arg(),
        b: b.arg(),
        out: out.arg(),
        extras,
        sums: None,
    }
}

fn plan(
    element: Element,
    output: Element,
    layout: Layout,
    shape: &Shape,
    epilogue: Epilogue,
) -> Plan {
    Plan::choose(Target::Portable, (element, output), layout, shape, epilogue).unwrap()
}

#[test]
fn products_with_bias_activation_and_residual_equal_the_definition() {
    let Some(device) = Device::find() else { return };
    for element in device.elements() {
        for (layout, activation, residual) in [
            (Layout::Nt, Activation::Gelu, false),
            (Layout::Nn, Activation::None, true),
            (Layout::Tn, Activation::SwiGlu, false),
        ] {
            let columns = if activation.paired() { 2 * N } else { N };
            let shape = Shape::contiguous(layout, 2, M, N, K, activation.paired());
            let epilogue = Epilogue {
                bias: true,
                activation,
                save: activation != Activation::None,
                residual,
                ..Epilogue::default()
            };
            let plan = plan(element, element, layout, &shape, epilogue);
            let of = Operands::new(element, layout, &shape, columns);
            let (bias, other) = (draw(element, columns, 3), draw(element, 2 * M * N, 4));
            let given = |x: &[f64]| device.buffer(element, &pack(element, x));
            let empty = |count| device.buffer(element, &unwritten(element, count));
            let (out, saved) = (empty(2 * M * N), empty(2 * M * columns));
            let (biases, others) = (given(&bias), given(&other));
            let extras = Extras {
                bias: Some(biases.arg()),
                other: residual.then(|| others.arg()),
                saved: epilogue.save.then(|| saved.arg()),
                ..Extras::default()
            };
            let arguments = arguments(&given(&of.a), &given(&of.b), &out, extras);
            launch(&device.client, &plan, &shape, 1, arguments).unwrap();

            let sums = of.sums.iter().enumerate();
            let before: Vec<f64> = sums.map(|(i, x)| x + bias[i % columns]).collect();
            let result = |at: usize| {
                let (row, j) = (at / N, at % N);
                let x = before[row * columns + j];
                let up = if activation.paired() {
                    before[row * columns + N + j]
                } else {
                    0.0
                };
                let value = activate(activation, x, up, (0.0, 0.0)).0;
                value + if residual { other[at] } else { 0.0 }
            };
            let expected: Vec<f64> = (0..2 * M * N).map(result).collect();
            let what = format!("{element:?} {layout:?} {activation:?}");
            assert_close(&what, element, &out.numbers(&device), &expected);
            if epilogue.save {
                assert_close(&what, element, &saved.numbers(&device), &before);
            }
        }
    }
}

#[test]
fn split_products_add_to_what_is_there_and_sum_an_operand() {
    let Some(device) = Device::find() else { return };
    for element in device.elements() {
        let shape = Shape::contiguous(Layout::Tn, 1, M, N, K, false);
        let epilogue = Epilogue {
            accumulate: true,
            ..Epilogue::default()
        };
        let plan = plan(element, Element::F32, Layout::Tn, &shape, epilogue);
        let plan = plan.with_sums_of(Role::Columns).unwrap().split();
        let of = Operands::new(element, Layout::Tn, &shape, N);
        let given = |element, x: &[f64]| device.buffer(element, &pack(element, x));
        let (before, sums) = (draw(Element::F32, M * N, 5), draw(Element::F32, N, 6));
        let (out, total) = (given(Element::F32, &before), given(Element::F32, &sums));
        let (a, b) = (given(element, &of.a), given(element, &of.b));
        let arguments = Arguments {
            sums: Some(total.arg()),
            ..arguments(&a, &b, &out, Extras::default())
        };
        launch(&device.client, &plan, &shape, 3, arguments).unwrap();

        let expected: Vec<f64> = of.sums.iter().zip(&before).map(|(x, y)| x + y).collect();
        let what = format!("{element:?}");
        assert_close(&what, Element::F32, &out.numbers(&device), &expected);
        let column = |j: usize| (0..K).map(|l| of.b[l * N + j]).sum::<f64>() + sums[j];
        let expected: Vec<f64> = (0..N).map(column).collect();
        assert_close(&what, Element::F32, &total.numbers(&device), &expected);
    }
}

#[test]
fn a_group_of_products_gives_each_of_them() {
    let Some(device) = Device::find() else { return };
    for element in device.elements() {
        let (mut groups, mut ends) = (Vec::new(), [0, 0, 0]);
        for (m, n, k) in [(0, 24, 32), (40, 24, 32), (16, 8, 0), (72, 40, 64)] {
            let [a, b, out] = ends;
            groups.push(Group {
                m,
                n,
                k,
                a,
                b,
                out,
                bias: 0,
            });
            ends = [a + m * k, b + n * k, out + m * n];
        }
        let like = Shape::contiguous(Layout::Nt, 1, 64, 64, 64, false);
        let plan = plan(element, element, Layout::Nt, &like, Epilogue::default());
        let (left, right) = (draw(element, ends[0], 1), draw(element, ends[1], 2));
        let given = |x: &[f64]| device.buffer(element, &pack(element, x));
        let out = device.buffer(element, &unwritten(element, ends[2]));
        let table = Table::new(&plan, &groups).unwrap();
        let arguments = arguments(&given(&left), &given(&right), &out, Extras::default());
        launch_grouped(&device.client, &table, arguments).unwrap();
        let found = out.numbers(&device);
        for Group {
            m, n, k, a, b, out, ..
        } in groups
        {
            let shape = Shape::contiguous(Layout::Nt, 1, m, n, k, false);
            let expected = product(Layout::Nt, &shape, n, &left[a..], &right[b..]);
            let what = format!("{element:?} {m} x {n} x {k}");
            assert_close(&what, element, &found[out..out + m * n], &expected);
        }
    }
}
