//! Attention that would leave its buffers is an error, and no launch.

use frontier_kernels::attention::backward::{self, GradientStrides, Plans, Workspace};
use frontier_kernels::attention::{self, BiasStrides, Problem, Sequences};
use frontier_kernels::error::Result;
use frontier_kernels::matrix::instruction::{Element, Target};

use crate::device::{Buffer, Device};
use crate::refusals::refuses;

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
