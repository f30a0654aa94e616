//! Launches on a device.

use cubecl_core::client::Client;
use cubecl_core::prelude::*;

use super::super::arguments::{Rows, holds, holds_bias};
use super::super::bias::{Form, from_buffers};
use super::super::problem::{GeometryLaunch, Problem, Strides};
use super::super::sequences::Sequences;
use super::bias::{Shared, SharedLaunch, mask, pair};
use super::ends::{GradientStrides, GradientStridesLaunch};
use super::kernels::{key_value, query, statistics};
use super::plan::Plan;
use super::plans::{Plans, Workspace};
use crate::argument::{again, cubes, filler, runs_on};
use crate::error::Result;
use crate::hip::emit::elem_type;

const OPERATION: &str = "attention backward";

/// Buffers on the device. Lengths are in elements.
pub struct Buffers {
    /// Q.
    pub q: BufferArg,
    /// K.
    pub k: BufferArg,
    /// V.
    pub v: BufferArg,
    /// O.
    pub o: BufferArg,
    /// The gradient of O.
    pub o_gradient: BufferArg,
    /// The log-sum-exp of the forward pass, f32, natural logarithm.
    pub lse: BufferArg,
    /// The biases that the problem has.
    pub bias: [Option<BufferArg>; 2],
    /// The sequences, if packed.
    pub sequences: Option<Sequences>,
    /// The sample of each batch entry, u32 `[batch]`, with dropout.
    pub samples: Option<BufferArg>,
    /// Workspace for [`Workspace::statistics`], f32.
    pub statistics: BufferArg,
    /// Workspace for [`Workspace::key_sums`], f32, if that is not 0.
    pub key_sums: Option<BufferArg>,
    /// Result: dQ.
    pub q_gradient: BufferArg,
    /// Result: dK.
    pub k_gradient: BufferArg,
    /// Result: dV.
    pub v_gradient: BufferArg,
    /// Results: the gradients of the biases, f32, laid out as they are, where wanted.
    pub bias_gradient: [Option<BufferArg>; 2],
}

/// Computes the gradients of attention: dQ, dK, dV, and those of the biases that have a buffer.
///
/// Each is the same, bit for bit, at every launch. What a result's strides leave out is not written.
///
/// # Errors
/// Plans of another problem or device, a buffer that is missing or too short, or one of 4 GiB or more.
pub fn launch(
    client: &Client,
    plans: &Plans,
    problem: &Problem,
    gradient: &GradientStrides,
    buffers: &Buffers,
) -> Result<()> {
    let rows = check(client, plans, problem, gradient, buffers)?;
    let nothing;
    let mut launch = Launch {
        client,
        problem: *problem,
        gradient,
        buffers,
        kv: [&buffers.k, &buffers.v],
        bias: buffers.bias.each_ref().map(Option::as_ref),
    };
    if rows.keys == 0 {
        (launch.problem, nothing) = problem.without_keys(client);
        launch.kv = [&nothing.row, &nothing.row];
        launch.bias = nothing.bias.each_ref().map(Option::as_ref);
    }
    let [key_value, query, pair] = [plans.key_value, plans.query, plans.pair].map(|plan| Plan {
        bias: from_buffers(plan.bias, &buffers.bias, plan.element),
        ..plan
    });
    // All grids before the first launch: one that was refused later would leave results half written.
    let statistics = launch.statistics_grid(&query)?;
    let of_keys = launch.grid(problem.keys, problem.kv_heads, &key_value)?;
    let of_queries = launch.grid(problem.queries, problem.heads, &query)?;
    let of_biases = [
        launch.bias_grid(0, &key_value, &pair)?,
        launch.bias_grid(1, &key_value, &pair)?,
    ];
    if let Some(grid) = statistics {
        launch.statistics(&query, grid);
    }
    if let Some(grid) = of_keys {
        launch.key_value(&key_value, grid);
    }
    if let Some(grid) = of_queries {
        launch.query(&query, grid);
    }
    for (of, result, grid) in of_biases.into_iter().flatten() {
        match Form::of(of.strides) {
            Form::Keys => launch.mask(&key_value, of, result, grid),
            Form::Pairs => launch.pair(&pair, of, result, grid),
        }
    }
    Ok(())
}

/// Checks that the plans are of this problem, and that the buffers have memory for all that its strides reach.
pub(super) fn check(
    client: &Client,
    plans: &Plans,
    problem: &Problem,
    gradient: &GradientStrides,
    buffers: &Buffers,
) -> Result<Rows> {
    runs_on(OPERATION, client, plans.query.target)?;
    let (p, b, g) = (problem, buffers, gradient);
    plans.check(p, g, b.bias_gradient.each_ref().map(Option::is_some))?;
    let rows = Rows::of(OPERATION, p, b.sequences.as_ref())?;
    let of_queries = |s: Strides| rows.of_queries(s, p, p.head_dim);
    let of_keys = |s: Strides| rows.of_keys(s, p);
    let work = Workspace::new(p, plans, b.lse.len());
    let element = plans.query.element.bytes();
    let samples = if p.dropout.is_some() { p.batch } else { 0 };
    let lse = rows.of_queries(p.lse, p, 1);
    for (name, buffer, least, bytes) in [
        ("Q", Some(&b.q), of_queries(p.q), element),
        ("K", Some(&b.k), of_keys(p.k), element),
        ("V", Some(&b.v), of_keys(p.v), element),
        ("O", Some(&b.o), of_queries(p.o), element),
        (
            "the gradient of O",
            Some(&b.o_gradient),
            of_queries(g.o),
            element,
        ),
        ("dQ", Some(&b.q_gradient), of_queries(g.q), element),
        ("dK", Some(&b.k_gradient), of_keys(g.k), element),
        ("dV", Some(&b.v_gradient), of_keys(g.v), element),
        ("the log-sum-exp", Some(&b.lse), lse, 4),
        (
            "the workspace of statistics",
            Some(&b.statistics),
            work.statistics as u64,
            4,
        ),
        ("the samples", b.samples.as_ref(), u64::from(samples), 4),
        (
            "the workspace of sums",
            b.key_sums.as_ref(),
            work.key_sums as u64,
            4,
        ),
    ] {
        holds(OPERATION, name, buffer, [least, most(bytes) as u64], bytes)?;
    }
    for i in 0..2 {
        let bias = b.bias[i].as_ref();
        holds_bias(OPERATION, bias, p.bias[i], p, [element, most(element)])?;
        if let Some(result) = &b.bias_gradient[i] {
            holds_bias(OPERATION, Some(result), p.bias[i], p, [4, most(4)])?;
        }
    }
    Ok(rows)
}

/// Elements of `bytes` bytes whose places in bytes are 32-bit numbers.
const fn most(bytes: usize) -> usize {
    u32::MAX as usize / bytes
}

/// A bias whose gradient is wanted: who shares it, where the gradient goes, and the workgroups of its kernel.
type BiasGradient<'a> = (Shared, &'a BufferArg, CubeCount);

struct Launch<'a> {
    client: &'a Client,
    problem: Problem,
    gradient: &'a GradientStrides,
    buffers: &'a Buffers,
    /// K and V.
    kv: [&'a BufferArg; 2],
    /// The biases that there are.
    bias: [Option<&'a BufferArg>; 2],
}

impl<'a> Launch<'a> {
    /// A buffer, or one that the kernel does not touch in its place.
    fn or_unused(&self, buffer: Option<&BufferArg>) -> BufferArg {
        buffer.map_or_else(|| filler(self.client, 4), again)
    }

    /// Where queries begin, and where keys do; what the kernels do not touch, if they are not packed.
    fn bounds(&self) -> [BufferArg; 2] {
        match &self.buffers.sequences {
            Some(sequences) => sequences.arguments(),
            None => [None, None].map(|none| self.or_unused(none)),
        }
    }

    /// Workgroups, if there are any to launch.
    fn cubes(&self, dims: [u32; 3]) -> Result<Option<CubeCount>> {
        let some = !dims.contains(&0);
        some.then(|| cubes(OPERATION, self.client, dims))
            .transpose()
    }

    /// The grid of the kernel that owns so many rows of so many heads.
    fn grid(&self, rows: u32, heads: u32, plan: &Plan) -> Result<Option<CubeCount>> {
        let x = rows.div_ceil(plan.columns() as u32);
        self.cubes([x, heads, self.problem.batch])
    }

    fn statistics_grid(&self, plan: &Plan) -> Result<Option<CubeCount>> {
        let rows = (plan.units() / plan.statistics_lanes()) as u32;
        let Problem {
            queries,
            heads,
            batch,
            ..
        } = self.problem;
        self.cubes([queries.div_ceil(rows), heads, batch])
    }

    /// Bias `i` of the problem, if its gradient is wanted.
    fn bias_grid(&self, i: usize, keys: &Plan, pairs: &Plan) -> Result<Option<BiasGradient<'a>>> {
        let p = &self.problem;
        let (Some(strides), Some(result)) = (p.bias[i], &self.buffers.bias_gradient[i]) else {
            return Ok(None);
        };
        if p.batch == 0 || p.heads == 0 {
            return Ok(None);
        }
        let of = Shared::new(strides, p.batch, p.heads);
        let dims = match Form::of(strides) {
            Form::Keys => [p.keys.div_ceil(keys.units() as u32), of.count(), 1],
            Form::Pairs => [
                p.keys.div_ceil(pairs.columns() as u32),
                p.queries.div_ceil(pairs.rows() as u32),
                of.count(),
            ],
        };
        Ok(self.cubes(dims)?.map(|grid| (of, result, grid)))
    }

    fn geometry(&self) -> GeometryLaunch {
        self.problem.geometry().launch()
    }

    fn gradient(&self) -> GradientStridesLaunch {
        let GradientStrides { o, q, k, v } = *self.gradient;
        GradientStridesLaunch::new(o.launch(), q.launch(), k.launch(), v.launch())
    }

    fn dim(plan: &Plan) -> CubeDim {
        CubeDim::new_1d(plan.units() as u32)
    }

    /// The inputs that the kernels of all three roles begin with.
    fn inputs(&self) -> [BufferArg; 10] {
        let b = self.buffers;
        let [queries, keys] = self.bounds();
        [
            again(&b.q),
            again(self.kv[0]),
            again(self.kv[1]),
            again(&b.o_gradient),
            again(&b.statistics),
            self.or_unused(self.bias[0]),
            self.or_unused(self.bias[1]),
            queries,
            keys,
            self.or_unused(b.samples.as_ref()),
        ]
    }

    fn statistics(&self, plan: &Plan, grid: CubeCount) {
        let b = self.buffers;
        let [queries, keys] = self.bounds();
        // SAFETY: `check` has found that the plans were chosen for a problem of this kind, whose accesses these strides and
        // extents allow, and that the buffers have memory for what the strides reach from the rows that there are: the
        // problem's or, if packed, those of sequences that ascend, and are no longer than the problem says. Rows beyond are
        // drawn back, and not written.
        unsafe {
            statistics::launch_unchecked(
                self.client,
                grid,
                Self::dim(plan),
                again(&b.o),
                again(&b.o_gradient),
                again(&b.lse),
                queries,
                keys,
                again(&b.statistics),
                self.geometry(),
                self.gradient(),
                *plan,
                elem_type(plan.element),
                plan.width,
            );
        }
    }

    fn key_value(&self, plan: &Plan, grid: CubeCount) {
        let b = self.buffers;
        let [q, k, v, g, s, b1, b2, cq, ck, samples] = self.inputs();
        // SAFETY: as for the statistics.
        unsafe {
            key_value::launch_unchecked(
                self.client,
                grid,
                Self::dim(plan),
                q,
                k,
                v,
                g,
                s,
                b1,
                b2,
                cq,
                ck,
                samples,
                again(&b.k_gradient),
                again(&b.v_gradient),
                self.or_unused(b.key_sums.as_ref()),
                self.geometry(),
                self.gradient(),
                *plan,
                elem_type(plan.element),
                plan.sizes(),
            );
        }
    }

    fn query(&self, plan: &Plan, grid: CubeCount) {
        let b = self.buffers;
        let [q, k, v, g, s, b1, b2, cq, ck, samples] = self.inputs();
        // SAFETY: as for the statistics.
        unsafe {
            query::launch_unchecked(
                self.client,
                grid,
                Self::dim(plan),
                q,
                k,
                v,
                g,
                s,
                b1,
                b2,
                cq,
                ck,
                samples,
                again(&b.q_gradient),
                self.geometry(),
                self.gradient(),
                *plan,
                elem_type(plan.element),
                plan.sizes(),
            );
        }
    }

    fn pair(&self, plan: &Plan, of: Shared, result: &BufferArg, grid: CubeCount) {
        let [q, k, v, g, s, b1, b2, cq, ck, samples] = self.inputs();
        // SAFETY: as for the statistics.
        unsafe {
            pair::launch_unchecked(
                self.client,
                grid,
                Self::dim(plan),
                q,
                k,
                v,
                g,
                s,
                b1,
                b2,
                cq,
                ck,
                samples,
                again(result),
                self.geometry(),
                self.gradient(),
                shared(of),
                *plan,
                elem_type(plan.element),
                plan.sizes(),
            );
        }
    }

    fn mask(&self, plan: &Plan, of: Shared, result: &BufferArg, grid: CubeCount) {
        let p = &self.problem;
        let [_, keys] = self.bounds();
        // SAFETY: as for the statistics; the plans leave the sums over the queries that it reads.
        unsafe {
            mask::launch_unchecked(
                self.client,
                grid,
                Self::dim(plan),
                self.or_unused(self.buffers.key_sums.as_ref()),
                keys,
                again(result),
                p.keys,
                shared(of),
                p.packed,
            );
        }
    }
}

fn shared(s: Shared) -> SharedLaunch {
    SharedLaunch::new(s.batch, s.entries, s.heads, s.members, s.strides.launch())
}
