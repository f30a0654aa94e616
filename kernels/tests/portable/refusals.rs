//! What would read or write outside its buffers is an error, and no launch: plans of another problem, short buffers, places
//! beyond them, sizes that 32 bits do not hold.

use cubecl_core::prelude::BufferArg;
use frontier_kernels::adamw;
use frontier_kernels::attention::backward::{self, GradientStrides, Plans, Workspace};
use frontier_kernels::attention::{self, BiasStrides, Problem, Sequences};
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
fn refuses(result: Result<()>, words: &str) {
    let error = result.expect_err(words).to_string();
    assert!(error.contains(words), "{words:?} is not in: {error}");
}

impl Device {
    fn zeros(&self, count: usize) -> Buffer {
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

/// Everything that attention reads and writes, of so many elements each.
struct Attention {
    buffers: [Buffer; 9],
    sequences: Option<Sequences>,
    samples: Option<Buffer>,
    bias: Option<Buffer>,
}

impl Attention {
    fn new(device: &Device, count: usize) -> Self {
        Self {
            buffers: [(); 9].map(|()| device.zeros(count)),
            sequences: None,
            samples: None,
            bias: None,
        }
    }

    fn forward(&self, device: &Device, of: &Problem, with: &Problem) -> Result<()> {
        let plan = attention::Plan::choose(Target::Portable, Element::F32, of)?;
        let [q, k, v, o, lse, ..] = self.buffers.each_ref().map(Buffer::arg);
        let buffers = attention::Buffers {
            q,
            k,
            v,
            o,
            lse,
            bias: [self.bias.as_ref().map(Buffer::arg), None],
            sequences: self.sequences.clone(),
            samples: self.samples.as_ref().map(Buffer::arg),
        };
        attention::launch(&device.client, &plan, with, buffers)
    }

    fn backward(
        &self,
        device: &Device,
        (of, wanted): (&Problem, bool),
        with: &Problem,
        gradient: &GradientStrides,
    ) -> Result<()> {
        let like = GradientStrides::like(of);
        let wanted = [wanted, false];
        let plans = Plans::choose(Target::Portable, Element::F32, of, &like, wanted)?;
        let lse = self.buffers[4].numbers(device).len();
        let work = Workspace::new(with, &plans, lse);
        let statistics = device.zeros(work.statistics);
        let key_sums = device.zeros(work.key_sums.min(1 << 20));
        let [q, k, v, o, lse, o_gradient, dq, dk, dv] = self.buffers.each_ref().map(Buffer::arg);
        let buffers = backward::Buffers {
            q,
            k,
            v,
            o,
            o_gradient,
            lse,
            bias: [self.bias.as_ref().map(Buffer::arg), None],
            sequences: self.sequences.clone(),
            samples: self.samples.as_ref().map(Buffer::arg),
            statistics: statistics.arg(),
            key_sums: (work.key_sums > 0).then(|| key_sums.arg()),
            q_gradient: dq,
            k_gradient: dk,
            v_gradient: dv,
            bias_gradient: [self.bias.as_ref().map(Buffer::arg), None],
        };
        backward::launch(&device.client, &plans, with, gradient, &buffers)
    }

    /// Both passes refuse a problem that their plans were not chosen for, or whose buffers these are not.
    fn refuse(&self, device: &Device, of: &Problem, with: &Problem, words: [&str; 2]) {
        refuses(self.forward(device, of, with), words[0]);
        let gradient = GradientStrides::like(with);
        refuses(self.backward(device, (of, true), with, &gradient), words[1]);
    }
}

#[test]
fn attention_by_a_plan_of_another_problem_is_refused() {
    let Some(device) = Device::find() else { return };
    let buffers = Attention::new(&device, 1 << 12);
    let of = Problem::new(1, 2, 8, 8, 16);
    buffers.forward(&device, &of, &of).unwrap();
    let gradient = GradientStrides::like(&of);
    buffers
        .backward(&device, (&of, true), &of, &gradient)
        .unwrap();
    let strided = |row| {
        let mut problem = of;
        problem.k.row = row;
        problem
    };
    for with in [Problem::new(1, 2, 8, 8, 32), of.causal(true), strided(33)] {
        buffers.refuse(&device, &of, &with, ["the plan is", "the plans"]);
    }
    // The gradients' accesses go by their own strides too.
    let mut odd = gradient;
    odd.q.row = 33;
    refuses(
        buffers.backward(&device, (&of, true), &of, &odd),
        "the strides allow 1",
    );
    for (with, words) in [
        (Problem::new(u32::MAX, 2, 8, 8, 16), "Q has 4096"),
        (Problem::new(1, u32::MAX, 8, 8, 16), "rows up to"),
        (Problem::new(1, 2, u32::MAX, 8, 16), "queries and"),
        (Problem::new(1, 2, 8, 8, 16).kv_heads(0), "heads share 0"),
        (Problem::new(1, 2, 8, 8, 257), "head_dim is 257"),
    ] {
        refuses(buffers.forward(&device, &of, &with), words);
    }
}

#[test]
fn attention_outside_its_buffers_is_refused() {
    let Some(device) = Device::find() else { return };
    let of = Problem::new(1, 2, 8, 8, 16);
    for (i, name) in ["Q", "K", "V", "O", "the log-sum-exp"]
        .into_iter()
        .enumerate()
    {
        let mut buffers = Attention::new(&device, 256);
        buffers.buffers[i] = device.zeros(15);
        buffers.refuse(&device, &of, &of, [&format!("{name} has 15"); 2]);
    }
    for (i, name) in ["the gradient of O", "dQ", "dK", "dV"]
        .into_iter()
        .enumerate()
    {
        let mut buffers = Attention::new(&device, 256);
        buffers.buffers[5 + i] = device.zeros(255);
        let gradient = GradientStrides::like(&of);
        let done = buffers.backward(&device, (&of, true), &of, &gradient);
        refuses(done, &format!("{name} has 255"));
    }
    let mut masked = of;
    masked.bias[0] = Some(BiasStrides {
        key: 1,
        ..BiasStrides::default()
    });
    let mut buffers = Attention::new(&device, 256);
    buffers.refuse(
        &device,
        &masked,
        &masked,
        ["a bias of the problem is missing"; 2],
    );
    buffers.bias = Some(device.zeros(7));
    buffers.refuse(&device, &masked, &masked, ["a bias has 7 elements, 8"; 2]);
    buffers.refuse(&device, &of, &of, ["a bias that the problem lacks"; 2]);
    buffers.bias = Some(device.zeros(8));
    let gradient = GradientStrides::like(&masked);
    let without = buffers.backward(&device, (&masked, false), &masked, &gradient);
    refuses(without, "the gradient of a mask");
}

#[test]
fn sequences_outside_their_tensors_are_refused() {
    let Some(device) = Device::find() else { return };
    let client = &device.client;
    let new = |queries: &[u32], keys: &[u32]| Sequences::new(client, queries, keys).map(|_| ());
    for (queries, keys, words) in [
        (&[][..], &[0, 8][..], "queries do not begin at row 0"),
        (&[1, 8], &[0, 8], "queries do not begin at row 0"),
        (
            &[0, 6, 4, 8],
            &[0, 2, 4, 8],
            "sequence 1 begin at row 6 and end at 4",
        ),
        (&[0, 8], &[0, 4, 8], "queries of 1 sequences and keys of 2"),
    ] {
        refuses(new(queries, keys), words);
    }
    let mut packed = Problem::new(1, 2, 8, 8, 16);
    packed.packed = true;
    let mut buffers = Attention::new(&device, 256);
    let words = ["a packed problem without sequences"; 2];
    buffers.refuse(&device, &packed, &packed, words);
    buffers.sequences = Some(Sequences::new(client, &[0, 9], &[0, 8]).unwrap());
    buffers.refuse(&device, &packed, &packed, ["1 sequences of up to 9"; 2]);
    packed.batch = 2;
    buffers.sequences = Some(Sequences::new(client, &[0, 8, 9], &[0, 8, 8]).unwrap());
    buffers.refuse(&device, &packed, &packed, ["Q has 256 elements, 288"; 2]);
    let plain = Problem::new(2, 2, 8, 8, 16);
    buffers.refuse(&device, &plain, &plain, ["a problem that is not packed"; 2]);
}

#[test]
fn attention_without_keys_is_zero() {
    let Some(device) = Device::find() else { return };
    let problem = Problem::new(1, 2, 4, 0, 16);
    let mut buffers = Attention::new(&device, 128);
    [buffers.buffers[1], buffers.buffers[2]] = [device.zeros(0), device.zeros(0)];
    buffers.buffers[3] = device.buffer(Element::F32, &[0x3f; 512]);
    buffers.forward(&device, &problem, &problem).unwrap();
    assert_eq!(buffers.buffers[3].numbers(&device), [0.0; 128]);
    let gradient = GradientStrides::like(&problem);
    buffers
        .backward(&device, (&problem, false), &problem, &gradient)
        .unwrap();
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
