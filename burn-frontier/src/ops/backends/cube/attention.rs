//! Attention by frontier-kernels: no matrix of scores in memory, in either direction.

use burn::tensor::{DType, Tensor};
use frontier_kernels::attention::backward::{self, GradientStrides, Plans, Workspace};
use frontier_kernels::attention::{self, Buffers, Plan, Problem, Strides};
use frontier_kernels::matrix::instruction::{Element, Target};

use super::{Buffer, accepted};
use crate::ops::attention::AttentionOptions;
use crate::ops::backends::AttentionBackward;

/// Attention of query `[batch, heads, seq, head_dim]`, key and value `[batch, kv_heads, keys, head_dim]`. Dropout is left to
/// Burn's own kernels.
pub(crate) fn attention(
    query: &Tensor<4>,
    key: &Tensor<4>,
    value: &Tensor<4>,
    options: &AttentionOptions,
) -> Option<(Tensor<4>, AttentionBackward)> {
    if options.dropout.is_some() {
        return None;
    }
    let [q, k, v] = [
        Buffer::with_rows(query)?,
        Buffer::with_rows(key)?,
        Buffer::with_rows(value)?,
    ];
    let (target, element) = (q.target(), q.element()?);
    let [batch, heads, seq, head_dim] = query.dims();
    let o = q.beside([batch, heads, seq, head_dim], q.dtype());
    let problem = problem(&q, &k, &v, &o, options)?;
    let plan = accepted(Plan::choose(target, element, &problem))?;
    let lse = q.beside([batch, heads, seq], DType::F32);
    let buffers = Buffers {
        q: q.argument(),
        k: k.argument(),
        v: v.argument(),
        o: o.argument(),
        lse: lse.argument(),
        bias: [None, None],
        cumulative_queries: None,
        cumulative_keys: None,
        samples: None,
    };
    accepted(attention::launch(q.client(), &plan, &problem, buffers))?;
    let output = o.clone().tensor();
    let saved = Saved {
        target,
        element,
        problem,
        q,
        k,
        v,
        o,
        lse,
    };
    Some((output, Box::new(move |g| saved.backward(g))))
}

/// The sizes, and where the tensors `[batch, heads, rows, head_dim]` lie.
fn problem(
    q: &Buffer,
    k: &Buffer,
    v: &Buffer,
    o: &Buffer,
    options: &AttentionOptions,
) -> Option<Problem> {
    let ([batch, heads, queries, head_dim], [_, kv_heads, keys, _]) = (q.sizes()?, k.sizes()?);
    let mut problem = Problem::new(batch, heads, queries, keys, head_dim)
        .kv_heads(kv_heads)
        .causal(options.causal);
    problem.scale = options.scale as f32;
    (problem.q, problem.k) = (strides(q)?, strides(k)?);
    (problem.v, problem.o) = (strides(v)?, strides(o)?);
    Some(problem)
}

fn strides(x: &Buffer) -> Option<Strides> {
    let [batch, head, row, _] = x.strides()?;
    Some(Strides { batch, head, row })
}

struct Saved {
    target: Target,
    element: Element,
    problem: Problem,
    q: Buffer,
    k: Buffer,
    v: Buffer,
    o: Buffer,
    lse: Buffer,
}

impl Saved {
    fn backward(self, g: Tensor<4>) -> Option<[Tensor<4>; 3]> {
        let g = Buffer::with_rows(&g)?;
        let like = |x: &Buffer| x.beside(x.shape(), x.dtype());
        let (dq, dk, dv) = (like(&self.q), like(&self.k), like(&self.v));
        let gradient = GradientStrides {
            o: strides(&g)?,
            q: strides(&dq)?,
            k: strides(&dk)?,
            v: strides(&dv)?,
        };
        let problem = &self.problem;
        let plans = Plans::choose(self.target, self.element, problem, &gradient, [false; 2]);
        let plans = accepted(plans)?;
        let rows = self.lse.shape().num_elements();
        let work = Workspace::new(problem, &plans, rows);
        let buffers = backward::Buffers {
            q: self.q.argument(),
            k: self.k.argument(),
            v: self.v.argument(),
            o: self.o.argument(),
            o_gradient: g.argument(),
            lse: self.lse.argument(),
            bias: [None, None],
            cumulative_queries: None,
            cumulative_keys: None,
            samples: None,
            statistics: g.beside([work.statistics], DType::F32).argument(),
            key_sums: None,
            q_gradient: dq.argument(),
            k_gradient: dk.argument(),
            v_gradient: dv.argument(),
            bias_gradient: [None, None],
        };
        let done = backward::launch(g.client(), &plans, problem, &gradient, &buffers);
        accepted(done)?;
        Some([dq.tensor(), dk.tensor(), dv.tensor()])
    }
}
