//! Attention and its gradients.

use cubecl_core::prelude::BufferArg;
use frontier_kernels::attention::backward::reference::{Gradients, backward};
use frontier_kernels::attention::backward::{self, GradientStrides, Plans, Workspace};
use frontier_kernels::attention::reference::{Inputs, forward};
use frontier_kernels::attention::{Buffers, Plan, Problem, Sequences, launch};
use frontier_kernels::hip::run::bytes;
use frontier_kernels::matrix::instruction::{Element, Target};

use crate::cases::attention::{Run, check, dropout, evoformer, inputs, packed};
use crate::cases::{draw, limit, pack, unwritten};
use crate::device::{Buffer, Device};

/// The inputs on the device.
struct On {
    q: Buffer,
    k: Buffer,
    v: Buffer,
    bias: [Option<Buffer>; 2],
    sequences: Option<Sequences>,
    samples: Option<Buffer>,
}

impl On {
    fn new(device: &Device, element: Element, problem: &Problem, inputs: &Inputs) -> Self {
        let given = |x: &[f64]| device.buffer(element, &pack(element, x));
        let numbers = |on: bool, x: &[u32]| on.then(|| device.buffer(Element::I32, &bytes(x)));
        let (queries, keys) = (&inputs.cumulative_queries, &inputs.cumulative_keys);
        let sequences = || Sequences::new(&device.client, queries, keys).unwrap();
        Self {
            q: given(&inputs.q),
            k: given(&inputs.k),
            v: given(&inputs.v),
            bias: [0, 1].map(|i| problem.bias[i].map(|_| given(&inputs.bias[i]))),
            sequences: problem.packed.then(sequences),
            samples: numbers(problem.dropout.is_some(), &inputs.samples),
        }
    }
}

fn arg(buffer: &Option<Buffer>) -> Option<BufferArg> {
    buffer.as_ref().map(Buffer::arg)
}

impl Run for Device {
    fn attend(
        &self,
        plan: &Plan,
        problem: &Problem,
        inputs: &Inputs,
        [o, lse]: [usize; 2],
    ) -> [Vec<f64>; 2] {
        let on = On::new(self, plan.element(), problem, inputs);
        let o = self.buffer(plan.element(), &unwritten(plan.element(), o));
        let lse = self.buffer(Element::F32, &unwritten(Element::F32, lse));
        let buffers = Buffers {
            q: on.q.arg(),
            k: on.k.arg(),
            v: on.v.arg(),
            o: o.arg(),
            lse: lse.arg(),
            bias: on.bias.each_ref().map(arg),
            sequences: on.sequences.clone(),
            samples: arg(&on.samples),
        };
        launch(&self.client, plan, problem, buffers).unwrap();
        [o.numbers(self), lse.numbers(self)]
    }
}

/// The gradients, by the device.
fn gradients(
    device: &Device,
    element: Element,
    problem: &Problem,
    inputs: &Inputs,
    o_gradient: &[f64],
) -> Gradients {
    let strides = GradientStrides::like(problem);
    let plans = Plans::choose(Target::Portable, element, problem, &strides, [true; 2]).unwrap();
    let on = On::new(device, element, problem, inputs);
    let (o, lse) = forward(problem, inputs);
    let work = Workspace::new(problem, &plans, lse.len());
    let given = |x: &[f64]| device.buffer(element, &pack(element, x));
    let of = |element, count| device.buffer(element, &unwritten(element, count));
    let like = |x: &Vec<f64>| of(element, x.len());
    let key_sums = (work.key_sums > 0).then(|| of(Element::F32, work.key_sums));
    let (q, k, v) = (like(&inputs.q), like(&inputs.k), like(&inputs.v));
    let bias = [0, 1].map(|i| problem.bias[i].map(|_| of(Element::F32, inputs.bias[i].len())));
    let buffers = backward::Buffers {
        q: on.q.arg(),
        k: on.k.arg(),
        v: on.v.arg(),
        o: given(&o).arg(),
        o_gradient: given(o_gradient).arg(),
        lse: device.buffer(Element::F32, &pack(Element::F32, &lse)).arg(),
        bias: on.bias.each_ref().map(arg),
        sequences: on.sequences.clone(),
        samples: arg(&on.samples),
        statistics: of(Element::F32, work.statistics).arg(),
        key_sums: arg(&key_sums),
        q_gradient: q.arg(),
        k_gradient: k.arg(),
        v_gradient: v.arg(),
        bias_gradient: bias.each_ref().map(arg),
    };
    backward::launch(&device.client, &plans, problem, &strides, &buffers).unwrap();
    Gradients {
        q: q.numbers(device),
        k: k.numbers(device),
        v: v.numbers(device),
        bias: bias.map(|b| b.map_or(vec![], |b| b.numbers(device))),
    }
}

/// Compares both passes with the reference.
fn check_both(device: &Device, element: Element, problem: &Problem, inputs: &Inputs) {
    let plan = Plan::choose(Target::Portable, element, problem).unwrap();
    check(device, &plan, problem, inputs);
    let o_gradient = draw(element, inputs.q.len(), 8);
    let found = gradients(device, element, problem, inputs, &o_gradient);
    let expected = backward(problem, inputs, &o_gradient);
    let of = |g: Gradients| {
        let [bias1, bias2] = g.bias;
        [g.q, g.k, g.v, bias1, bias2]
    };
    let names = ["dQ", "dK", "dV", "dbias1", "dbias2"];
    for ((found, expected), name) in of(found).iter().zip(&of(expected)).zip(names) {
        let square = |x: f64| x * x;
        let norm: f64 = expected.iter().map(|&x| square(x)).sum();
        let both = found.iter().zip(expected);
        let error: f64 = both.map(|(f, e)| square(f - e)).sum();
        let error = (error / norm.max(1e-30)).sqrt();
        let what = format!("{element:?}, {name}, {problem:?}");
        assert!(error <= limit(element), "{what}: off by {error:.1e}");
    }
}

#[test]
fn attention_and_its_gradients_equal_the_definition() {
    let Some(device) = Device::find() else { return };
    for element in device.elements() {
        for (head_dim, causal, [queries, keys]) in [
            (32, true, [70, 70]),
            (20, false, [33, 90]),
            (64, true, [40, 21]),
        ] {
            let problem = Problem::new(2, 2, queries, keys, head_dim)
                .kv_heads(1)
                .causal(causal);
            check_both(&device, element, &problem, &inputs(element, &problem, 1));
        }
    }
}

#[test]
fn biases_of_attention_and_their_gradients_equal_the_definition() {
    let Some(device) = Device::find() else { return };
    for element in device.elements() {
        let mut problem = Problem::new(4, 2, 30, 41, 16);
        evoformer(&mut problem, 2);
        check_both(&device, element, &problem, &inputs(element, &problem, 2));
    }
}

#[test]
fn dropout_and_packed_sequences_of_attention_equal_the_definition() {
    let Some(device) = Device::find() else { return };
    let element = Element::F32;
    let mut problem = Problem::new(2, 2, 37, 30, 16).causal(true);
    dropout(&mut problem);
    check_both(&device, element, &problem, &inputs(element, &problem, 3));
    let mut problem = Problem::new(1, 2, 1, 1, 16).causal(true);
    let inputs = packed(
        element,
        &mut problem,
        &[[20, 30], [0, 5], [33, 33], [4, 0]],
        4,
    );
    check_both(&device, element, &problem, &inputs);
}
