//! Attention by frontier-kernels: no matrix of scores in memory, in either direction.

use burn::backend::DispatchDevice;
use burn::tensor::{DType, Device, Tensor};
use frontier_kernels::attention::backward::{self, GradientStrides, Plans, Workspace};
use frontier_kernels::attention::{
    self, BiasStrides, Buffers, Dropout as Dropped, Plan, Problem, Sequences as Packed, Strides,
};
use frontier_kernels::device;
use frontier_kernels::matrix::instruction::{Element, Target};

use super::refusal::refused;
use super::tuning::tuner;
use super::{Buffer, accepted, element, number, taken};
use crate::ops::backends::{Attended, AttentionGradients};
use crate::ops::problem::attention::{AttentionOptions, Biases, Sequences};
use crate::ops::problem::dropout::Dropout;

const OPERATION: &str = "attention";
const BACKWARD: &str = "attention_backward";

/// Attention of query `[batch, heads, seq, head_dim]`, key and value `[batch, kv_heads, keys, head_dim]`; of `sequences`,
/// if given, that lie one after the other in a batch of 1.
pub(super) fn attention(
    [query, key, value]: [&Tensor<4>; 3],
    biases: &Biases,
    sequences: Option<&Sequences>,
    options: &AttentionOptions,
) -> Option<Attended> {
    let [q, k, v] = [
        Buffer::with_rows(query)?,
        Buffer::with_rows(key)?,
        Buffer::with_rows(value)?,
    ];
    let element = q.element(OPERATION)?;
    // Heads beside each other, as the projection that follows takes them.
    let [batch, heads, seq, head_dim] = query.dims();
    let o = q.beside([batch, seq, heads, head_dim], q.dtype());
    let lse = q.beside([batch, heads, seq], DType::F32);
    let bias = on_device(biases, &q)?;
    let mut problem = problem([&q, &k, &v], &o, options.causal)?;
    problem.scale = options.scale as f32;
    for (i, bias) in bias.iter().enumerate() {
        if let Some(bias) = bias {
            problem.bias[i] = Some(bias_strides(bias, batch)?);
        }
    }
    let rows = Rows::new(&q, &mut problem, sequences, options.dropout.as_ref())?;
    let inputs = Inputs {
        target: q.target(),
        element,
        q,
        k,
        v,
        bias,
        rows,
    };
    launch(&inputs, &problem, [&o, &lse])?;
    let output = o.clone().tensor().swap_dims(1, 2);
    let types = biases.each_ref().map(|x| x.as_ref().map(Tensor::dtype));
    let sums = lse.clone();
    let of_sums = SumGradient {
        query: query.clone(),
        key: key.clone(),
        biases: biases.clone(),
        sequences: sequences.cloned(),
        options: AttentionOptions {
            dropout: None,
            ..options.clone()
        },
    };
    let back = move |g, log_sum_exp: Option<Tensor<3>>| {
        let mut all = gradients(inputs, problem, [o, lse], types, g)?;
        if let Some(g) = log_sum_exp {
            of_sums.add_to(&mut all, g)?;
        }
        Some(all)
    };
    Some(Attended {
        output,
        log_sum_exp: Box::new(move || sums.tensor()),
        backward: Box::new(back),
    })
}

/// Computes the output and the log-sum-exps.
fn launch(inputs: &Inputs, problem: &Problem, [o, lse]: [&Buffer; 2]) -> Option<()> {
    let plan = Plan::choose(inputs.target, inputs.element, problem);
    let plan = accepted(OPERATION, plan)?;
    let buffers = Buffers {
        q: inputs.q.argument(),
        k: inputs.k.argument(),
        v: inputs.v.argument(),
        o: o.argument(),
        lse: lse.argument(),
        bias: inputs.biases(),
        sequences: inputs.rows.sequences.clone(),
        samples: inputs.rows.samples.as_ref().map(Buffer::argument),
    };
    let client = inputs.q.client();
    let done = match tuner() {
        Some(tuner) => attention::tuned::launch(tuner, client, &plan, problem, buffers),
        None => attention::launch(client, &plan, problem, buffers),
    };
    accepted(OPERATION, done)?;
    taken(OPERATION);
    Some(())
}

/// What the log-sum-exps are of.
struct SumGradient {
    query: Tensor<4>,
    key: Tensor<4>,
    biases: Biases,
    sequences: Option<Sequences>,
    options: AttentionOptions,
}

impl SumGradient {
    /// Adds what the gradient `[batch, heads, seq]` of the log-sum-exps gives. That of the scores is it times the probabilities P:
    /// the query's is `g scale P K`, attention with the keys as values, and the key's is `P^T (g scale Q)`, that attention's
    /// gradient of its values. With biases the kernels do not have theirs.
    fn add_to(self, all: &mut AttentionGradients, g: Tensor<3>) -> Option<()> {
        if self.biases.iter().any(Option::is_some) {
            return refused(BACKWARD, "a gradient of log-sum-exps of scores with biases");
        }
        let (q, k) = (&self.query, &self.key);
        let g = g
            .cast(q.dtype())
            .unsqueeze_dim::<4>(3)
            .mul_scalar(self.options.scale);
        let attended = attention(
            [q, k, k],
            &self.biases,
            self.sequences.as_ref(),
            &self.options,
        )?;
        let [d_q, d_k, _] = &mut all.inputs;
        *d_q = d_q.clone() + attended.output * g.clone();
        let [_, _, values] = (attended.backward)(q.clone() * g, None)?.inputs;
        *d_k = d_k.clone() + values;
        Some(())
    }
}

/// Whether there are kernels for attention of queries `[batch, heads, seq, head_dim]` and as many keys, in both directions.
pub(super) fn fuses_attention(
    device: &Device,
    dtype: DType,
    queries: [usize; 4],
    kv_heads: usize,
) -> bool {
    let plans = || {
        let DispatchDevice::Cube(device) = device.as_dispatch() else {
            return None;
        };
        let target = device::choose(&device.client()).target;
        let element = element(dtype)?;
        let count = |n: usize| u32::try_from(n).ok();
        let [batch, heads, seq, head_dim] = queries.map(count);
        let problem = Problem::new(batch?, heads?, seq?, seq?, head_dim?)
            .kv_heads(count(kv_heads)?)
            .causal(true);
        let like = GradientStrides::like(&problem);
        // A question refuses nothing.
        Plan::choose(target, element, &problem).ok()?;
        Plans::choose(target, element, &problem, &like, [false; 2]).ok()
    };
    plans().is_some()
}

/// What both passes read.
struct Inputs {
    target: Target,
    element: Element,
    q: Buffer,
    k: Buffer,
    v: Buffer,
    bias: [Option<Buffer>; 2],
    rows: Rows,
}

impl Inputs {
    fn biases(&self) -> [Option<cubecl::prelude::BufferArg>; 2] {
        self.bias
            .each_ref()
            .map(|bias| bias.as_ref().map(Buffer::argument))
    }
}

/// Which rows belong together, and which random numbers they take.
#[derive(Default)]
struct Rows {
    sequences: Option<Packed>,
    samples: Option<Buffer>,
}

impl Rows {
    /// Adapts `problem` to packed sequences and to dropout.
    fn new(
        q: &Buffer,
        problem: &mut Problem,
        sequences: Option<&Sequences>,
        dropout: Option<&Dropout>,
    ) -> Option<Self> {
        let mut rows = Self::default();
        if let Some(Sequences { queries, keys }) = sequences {
            let ends = [queries.last(), keys.last()];
            if problem.batch != 1
                || keys.len() != queries.len()
                || ends != [Some(&problem.queries), Some(&problem.keys)]
            {
                return refused(
                    OPERATION,
                    "sequences that do not end where the tensors of batch 1 do",
                );
            }
            let packed = accepted(OPERATION, Packed::new(q.client(), queries, keys))?;
            problem.packed = true;
            problem.batch = packed.count();
            [problem.queries, problem.keys] = packed.longest();
            rows.sequences = Some(packed);
        }
        if let Some(site) = dropout {
            if site.start[1..] != [0, 0] || site.samples.len() != problem.batch as usize {
                return refused(OPERATION, "dropout of a part of the rows");
            }
            let samples = site.samples.iter().map(|&s| number(OPERATION, s));
            let samples: Vec<u32> = samples.collect::<Option<_>>()?;
            rows.samples = Some(q.with_values(&samples, DType::U32));
            problem.dropout = Some(Dropped {
                probability: site.probability,
                key: site.words().key,
                heads_global: number(OPERATION, site.global)?,
                first_head: number(OPERATION, site.start[0])?,
            });
        }
        Some(rows)
    }
}

/// The biases in the type of Q, and contiguous along the keys.
fn on_device(biases: &Biases, q: &Buffer) -> Option<[Option<Buffer>; 2]> {
    let mut all = [None, None];
    for (to, bias) in all.iter_mut().zip(biases) {
        if let Some(bias) = bias {
            *to = Some(Buffer::of(&bias.clone().cast(q.dtype()))?);
        }
    }
    Some(all)
}

/// Where a contiguous bias `[n, heads or 1, seq or 1, keys]` lies; what has length 1 is the same for all.
fn bias_strides(bias: &Buffer, batch: usize) -> Option<BiasStrides> {
    let ([n, heads, queries, keys], [b, h, q, k]) =
        (bias.sizes(OPERATION)?, bias.strides(OPERATION)?);
    let batch = number(OPERATION, batch)?;
    if n == 0 || !batch.is_multiple_of(n) {
        return refused(OPERATION, "biases whose number does not divide the batch");
    }
    let varies = |count: u32, stride: u32| if count == 1 { 0 } else { stride };
    Some(BiasStrides {
        divisor: batch / n,
        batch: varies(n, b),
        head: varies(heads, h),
        query: varies(queries, q),
        key: varies(keys, k),
    })
}

/// The sizes, and where the tensors lie: Q, K and V `[batch, heads, rows, head_dim]`, O `[batch, rows, heads, head_dim]`.
fn problem([q, k, v]: [&Buffer; 3], o: &Buffer, causal: bool) -> Option<Problem> {
    let ([batch, heads, queries, head_dim], [_, kv_heads, keys, _]) =
        (q.sizes(OPERATION)?, k.sizes(OPERATION)?);
    let mut problem = Problem::new(batch, heads, queries, keys, head_dim)
        .kv_heads(kv_heads)
        .causal(causal);
    (problem.q, problem.k) = (strides(q)?, strides(k)?);
    (problem.v, problem.o) = (strides(v)?, rows_first(o)?);
    problem.lse = Strides::heads_first(queries, heads, 1);
    Some(problem)
}

fn strides(x: &Buffer) -> Option<Strides> {
    let [batch, head, row, _] = x.strides(OPERATION)?;
    Some(Strides { batch, head, row })
}

fn rows_first(x: &Buffer) -> Option<Strides> {
    let [batch, row, head, _] = x.strides(OPERATION)?;
    Some(Strides { batch, head, row })
}

/// The gradients of all inputs, those of the biases in their `types`.
fn gradients(
    inputs: Inputs,
    problem: Problem,
    [o, lse]: [Buffer; 2],
    types: [Option<DType>; 2],
    g: Tensor<4>,
) -> Option<AttentionGradients> {
    let g = Buffer::with_rows(&g)?;
    let like = |x: &Buffer| {
        let [batch, heads, rows, width] = x.sizes(BACKWARD)?.map(|n| n as usize);
        Some(x.beside([batch, rows, heads, width], x.dtype()))
    };
    let (dq, dk, dv) = (like(&inputs.q)?, like(&inputs.k)?, like(&inputs.v)?);
    let gradient = GradientStrides {
        o: strides(&g)?,
        q: rows_first(&dq)?,
        k: rows_first(&dk)?,
        v: rows_first(&dv)?,
    };
    let wanted = types.map(|dtype| dtype.is_some());
    let plans = Plans::choose(inputs.target, inputs.element, &problem, &gradient, wanted);
    let plans = accepted(BACKWARD, plans)?;
    let work = Workspace::new(&problem, &plans, lse.shape().num_elements());
    let sums = |count: usize| (count > 0).then(|| g.beside([count], DType::F32));
    let key_sums = sums(work.key_sums);
    let d_bias = inputs.bias.each_ref().map(|bias| {
        bias.as_ref()
            .map(|bias| bias.beside(bias.shape(), DType::F32))
    });
    let buffers = backward::Buffers {
        q: inputs.q.argument(),
        k: inputs.k.argument(),
        v: inputs.v.argument(),
        o: o.argument(),
        o_gradient: g.argument(),
        lse: lse.argument(),
        bias: inputs.biases(),
        sequences: inputs.rows.sequences.clone(),
        samples: inputs.rows.samples.as_ref().map(Buffer::argument),
        statistics: g.beside([work.statistics], DType::F32).argument(),
        key_sums: key_sums.as_ref().map(Buffer::argument),
        q_gradient: dq.argument(),
        k_gradient: dk.argument(),
        v_gradient: dv.argument(),
        bias_gradient: d_bias.each_ref().map(|x| x.as_ref().map(Buffer::argument)),
    };
    let client = g.client();
    let done = match tuner() {
        Some(tuner) => {
            backward::tuned::launch(tuner, client, &plans, &problem, &gradient, &buffers)
        }
        None => backward::launch(client, &plans, &problem, &gradient, &buffers),
    };
    accepted(BACKWARD, done)?;
    taken(BACKWARD);
    let tensor = |x: Buffer| x.tensor::<4>().swap_dims(1, 2);
    let [d_bias1, d_bias2] = d_bias;
    let bias = |x: Option<Buffer>, dtype: Option<DType>| Some(x?.tensor::<4>().cast(dtype?));
    Some(AttentionGradients {
        inputs: [tensor(dq), tensor(dk), tensor(dv)],
        biases: [bias(d_bias1, types[0]), bias(d_bias2, types[1])],
    })
}
