//! What would read or write outside its buffers is an error, and no launch: plans of another problem, short buffers, places
//! beyond them, sizes that 32 bits do not hold.

use cubecl_core::prelude::BufferArg;
use frontier_kernels::adamw;
use frontier_kernels::cross_entropy;
use frontier_kernels::dropout::{self, Dropout};
use frontier_kernels::error::Result;
use frontier_kernels::gemm::grouped::{Group, Table};
use frontier_kernels::gemm::launch::{Arguments, Extras, launch, launch_grouped};
use frontier_kernels::gemm::{Epilogue, Layout, Plan, Shape};
use frontier_kernels::matrix::instruction::{Element, Target};
use frontier_kernels::norm::{self, Kind};
use frontier_kernels::rotary;

use crate::cases::norm::problem as norm_problem;
use crate::device::{Buffer, Device};

/// Refuses, with these words.
pub fn refuses(result: Result<()>, words: &str) {
    let error = result.expect_err(words).to_string();
    assert!(error.contains(words), "{words:?} is not in: {error}");
}

impl Device {
    pub fn zeros(&self, count: usize) -> Buffer {
        self.buffer(Element::F32, &vec![0; 4 * count])
    }
}

fn arguments(a: &Buffer, b: &Buffer, out: &Buffer) -> Arguments {
    Arguments {
        a: a.arg(),
        b: b.arg(),
        out: out.arg(),
        extras: Extras::default(),
        sums: None,
    }
}

fn gemm_plan(shape: &Shape, element: Element) -> Plan {
    let types = (element, Element::F32);
    Plan::choose(
        Target::Portable,
        types,
        Layout::Nt,
        shape,
        Epilogue::default(),
    )
    .unwrap()
}

#[test]
fn products_outside_their_buffers_are_refused() {
    let Some(device) = Device::find() else { return };
    let client = &device.client;
    let shape = |m, n, k| Shape::contiguous(Layout::Nt, 1, m, n, k, false);
    let of = shape(8, 8, 8);
    let plan = gemm_plan(&of, Element::F32);
    let (x, short) = (device.zeros(64), device.zeros(63));
    for (a, b, out, words) in [
        (&short, &x, &x, "A has 63 elements, 64 are needed"),
        (&x, &short, &x, "B has 63"),
        (&x, &x, &short, "C has 63"),
    ] {
        refuses(launch(client, &plan, &of, 1, arguments(a, b, out)), words);
    }
    for (shape, words) in [
        (shape(9, 8, 8), "A has 64 elements, 72 are needed"),
        (shape(8, 8, 12), "A has 64 elements, 96"),
        (shape(1 << 40, 8, 8), "more than 32 bits count"),
        (shape(usize::MAX, 1, 0), "more than 32 bits count"),
        (
            shape(1 << 31, 1 << 31, 0),
            "elements, 4611686018427387904 are needed",
        ),
        (
            Shape {
                a: (8, usize::MAX),
                ..of
            },
            "more than 32 bits count",
        ),
        (Shape { a: (7, 64), ..of }, "7 apart and 8 long"),
        (
            Shape {
                batches: 2,
                a: (8, 1 << 31),
                ..of
            },
            "A has 64 elements",
        ),
        (
            Shape {
                batches: 1 << 20,
                a: (8, 0),
                b: (8, 0),
                ..of
            },
            "65535 layers",
        ),
    ] {
        refuses(
            launch(client, &plan, &shape, 1, arguments(&x, &x, &x)),
            words,
        );
    }
    // As many elements, of half the bytes.
    // SAFETY: nothing is launched with it.
    #[expect(unsafe_code)]
    let half = unsafe { BufferArg::from_raw_parts(client.empty(128), 64) };
    let of_half = Arguments {
        a: half,
        ..arguments(&x, &x, &x)
    };
    refuses(
        launch(client, &plan, &of, 1, of_half),
        "its memory has 32 of 4 bytes",
    );
    let alias = Arguments {
        out: BufferArg::alias(0, 64),
        ..arguments(&x, &x, &x)
    };
    refuses(launch(client, &plan, &of, 1, alias), "an alias");
    // A plan whose accesses are wider than this shape's rows allow.
    let narrow = Shape { a: (9, 72), ..of };
    let (wide, x) = (device.zeros(72), device.zeros(72));
    refuses(
        launch(client, &plan, &narrow, 1, arguments(&wide, &x, &x)),
        "accesses of 4",
    );
    refuses(
        launch(client, &plan, &of, 2, arguments(&x, &x, &x)),
        "K in 2 parts",
    );
    let other = Target::Gfx90a;
    let epilogue = Epilogue::default();
    let types = (Element::F32, Element::F32);
    let foreign = Plan::choose(other, types, Layout::Nt, &of, epilogue).unwrap();
    refuses(
        launch(client, &foreign, &of, 1, arguments(&x, &x, &x)),
        "a plan for Gfx90a",
    );
}

#[test]
fn products_of_nothing_are_zero_and_read_nothing() {
    let Some(device) = Device::find() else { return };
    let shape = Shape::contiguous(Layout::Nt, 1, 5, 3, 0, false);
    let (nothing, out) = (device.zeros(0), device.buffer(Element::F32, &[0x7f; 60]));
    let plan = gemm_plan(&shape, Element::F32);
    launch(
        &device.client,
        &plan,
        &shape,
        1,
        arguments(&nothing, &nothing, &out),
    )
    .unwrap();
    assert_eq!(out.numbers(&device), [0.0; 15]);
    let empty = Shape::contiguous(Layout::Nt, 1, 0, 3, 4, false);
    let all = arguments(&nothing, &device.zeros(12), &nothing);
    launch(
        &device.client,
        &gemm_plan(&empty, Element::F32),
        &empty,
        1,
        all,
    )
    .unwrap();
}

#[test]
fn groups_outside_their_buffers_are_refused() {
    let Some(device) = Device::find() else { return };
    let like = Shape::contiguous(Layout::Nt, 1, 8, 8, 8, false);
    let plan = gemm_plan(&like, Element::F32);
    let x = device.zeros(64);
    let group = Group {
        m: 8,
        n: 8,
        k: 8,
        ..Group::default()
    };
    let table = |group| Table::new(&plan, &[group]).unwrap();
    let run = |table: &Table| launch_grouped(&device.client, table, arguments(&x, &x, &x));
    run(&table(group)).unwrap();
    for (beyond, words) in [
        (Group { a: 8, ..group }, "A has 64 elements, 72 are needed"),
        (
            Group { b: 64, ..group },
            "B has 64 elements, 128 are needed",
        ),
        (
            Group { out: 1, ..group },
            "C has 64 elements, 65 are needed",
        ),
        (Group { m: 9, ..group }, "A has 64 elements, 72"),
        (Group { k: 16, ..group }, "A has 64 elements, 128"),
    ] {
        refuses(run(&table(beyond)), words);
    }
    let empty = device.zeros(0);
    let none = Group { k: 0, ..group };
    let all = arguments(&empty, &x, &x);
    refuses(
        launch_grouped(&device.client, &table(none), all),
        "A has 0 elements",
    );
    run(&table(none)).unwrap();
    run(&Table::new(&plan, &[]).unwrap()).unwrap();
}

#[test]
fn rows_outside_their_buffers_are_refused() {
    let Some(device) = Device::find() else { return };
    let client = &device.client;
    let x = device.zeros(16);
    let drops = Dropout {
        tokens: 2,
        ..Dropout::default()
    };
    let plan = |hidden| dropout::Plan::choose(Target::Portable, Element::F32, hidden, false);
    let add = |hidden, rows, samples: &Buffer, drops: &Dropout| {
        let buffers = dropout::launch::Buffers {
            x: x.arg(),
            residual: None,
            samples: samples.arg(),
            y: x.arg(),
        };
        dropout::launch::add(client, &plan(hidden), buffers, rows, drops)
    };
    let two = device.zeros(2);
    refuses(add(8, 2, &x, &drops), "samples has 16 elements, expected 2");
    refuses(add(9, 2, &two, &drops), "x has 16 elements, expected 18");
    refuses(
        add(8, 2, &two, &Dropout::default()),
        "no whole number of samples",
    );
    for (hidden, rows) in [(1 << 33, 1 << 31), (8, 1 << 40), (usize::MAX, 2)] {
        refuses(add(hidden, rows, &two, &drops), "places are 32-bit numbers");
    }

    let norm = |hidden, rows| {
        let problem = norm_problem(Kind::Rms, hidden, false);
        let plan = norm::Plan::choose(Target::Portable, Element::F32, problem);
        let buffers = norm::launch::Backward {
            dy: x.arg(),
            s: x.arg(),
            stats: two.arg(),
            weight: x.arg(),
            samples: None,
            d_sum: None,
            dx: x.arg(),
            d_residual: None,
            d_parameters: x.arg(),
        };
        norm::launch::backward(client, &plan, buffers, rows, &drops)
    };
    refuses(norm(8, 2), "weight has 16 elements, expected 8");
    refuses(norm(0, 2), "rows of 0 elements");
    refuses(norm(1 << 33, 1 << 31), "places are 32-bit numbers");

    let logits = |columns, tokens, valid| {
        let plan = cross_entropy::Plan::choose(Target::Portable, Element::F32, columns);
        let vocabulary = cross_entropy::launch::Vocabulary {
            start: 0,
            valid,
            ignore: -1,
        };
        let [a, b, c] = [&x, &two, &x].map(Buffer::arg);
        cross_entropy::launch::statistics(client, &plan, a, b, c, tokens, vocabulary)
    };
    refuses(logits(8, 2, 8), "stats has 16 elements, expected 6");
    refuses(logits(8, 2, 9), "9 valid columns of 8");
    refuses(logits(1 << 33, 1 << 31, 8), "places are 32-bit numbers");
}

#[test]
fn rotations_outside_their_buffers_are_refused() {
    let Some(device) = Device::find() else { return };
    let x = device.zeros(16);
    let shape = |batch, heads, seq, head_dim| rotary::Shape {
        batch,
        heads,
        seq,
        head_dim,
    };
    let of = shape(1, 1, 2, 8);
    let choose = |of: rotary::Shape, strides| {
        rotary::Plan::choose(Target::Portable, Element::F32, of, strides, false)
    };
    let rotate = |with: rotary::Shape, strides| {
        let plan = choose(of, [of.heads_first(); 2])?;
        let buffers = rotary::launch::Buffers {
            x: x.arg(),
            cos: x.arg(),
            sin: x.arg(),
            y: x.arg(),
        };
        rotary::launch::rotate(&device.client, &plan, buffers, with, strides)
    };
    let lie = of.heads_first();
    refuses(rotate(of, [lie; 2]), "cos has 16 elements, expected 8");
    refuses(rotate(shape(1, 2, 2, 8), [lie; 2]), "is not what");
    refuses(
        rotate(shape(1, 1, 3, 8), [lie; 2]),
        "x has 16 elements, expected 24",
    );
    let apart = rotary::Strides {
        token: 1 << 40,
        ..lie
    };
    refuses(rotate(of, [apart, lie]), "places are 32-bit numbers");
    let most = shape(1 << 31, 1 << 31, 1 << 31, 2);
    refuses(
        choose(most, [lie; 2]).map(|_| ()),
        "places are 32-bit numbers",
    );
    refuses(
        choose(shape(1, 1, 2, 0), [lie; 2]).map(|_| ()),
        "have no halves",
    );
    rotate(shape(0, 1, 2, 8), [lie; 2]).unwrap();
}

#[test]
fn tensors_outside_the_flat_buffers_are_refused() {
    let Some(device) = Device::find() else { return };
    let client = &device.client;
    let tensor = |offset, length| adamw::Tensor {
        offset,
        length,
        decays: true,
        counts: true,
    };
    for (tensors, words) in [
        (
            vec![tensor(0, 8), tensor(4, 8)],
            "tensor 1 begins at element 4",
        ),
        (
            vec![tensor(8, 8), tensor(0, 8)],
            "the one before it ends at 16",
        ),
        (vec![tensor(usize::MAX, 2)], "places are 32-bit numbers"),
        (vec![tensor(1 << 31, 1 << 31)], "places are 32-bit numbers"),
    ] {
        refuses(adamw::Table::new(&tensors).map(|_| ()), words);
    }
    let table = adamw::Table::new(&[tensor(4, 12)]).unwrap();
    let plan = |length| {
        let f32 = Element::F32;
        adamw::Plan::choose(Target::Portable, f32, None, &table, length)
    };
    let square = device.zeros(1);
    let (x, short) = (device.zeros(16), device.zeros(15));
    let sum =
        |plan, x: &Buffer| adamw::launch::squares(client, &plan, &table, x.arg(), square.arg());
    sum(plan(16), &x).unwrap();
    refuses(sum(plan(15), &short), "buffers of 15 elements");
    refuses(sum(plan(16), &short), "buffers of 15 elements");
    let odd = adamw::Table::new(&[tensor(3, 12)]).unwrap();
    let wide = adamw::launch::squares(client, &plan(16), &odd, x.arg(), square.arg());
    refuses(wide, "a plan for accesses of 4");
}
