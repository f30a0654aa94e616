//! Launches on a device.

use cubecl_core::client::Client;
use cubecl_core::prelude::*;

use super::super::arguments::holds;
use super::super::bias::{Form, from_buffers, serve};
use super::super::problem::{GeometryLaunch, Problem, Strides};
use super::bias::{Shared, SharedLaunch, mask, pair};
use super::ends::{GradientStrides, GradientStridesLaunch};
use super::kernels::{key_value, query, statistics};
use super::plan::{Plan, Plans, Workspace, accesses};
use crate::argument::again;
use crate::error::{Error, Result};
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
    /// Where each sequence's queries begin, u32 `[batch + 1]`, if packed.
    pub cumulative_queries: Option<BufferArg>,
    /// Where each sequence's keys begin, u32 `[batch + 1]`, if packed.
    pub cumulative_keys: Option<BufferArg>,
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
/// A buffer that is missing or too short, or one of 4 GiB or more.
pub fn launch(
    client: &Client,
    plans: &Plans,
    problem: &Problem,
    gradient: &GradientStrides,
    buffers: &Buffers,
) -> Result<()> {
    check(plans, problem, gradient, buffers)?;
    let launch = Launch {
        client,
        problem,
        gradient,
        buffers,
    };
    let [key_value, query, pair] = [plans.key_value, plans.query, plans.pair].map(|plan| Plan {
        bias: from_buffers(plan.bias, &buffers.bias, plan.element),
        ..plan
    });
    launch.statistics(&query);
    launch.key_value(&key_value);
    launch.query(&query);
    for i in 0..2 {
        if let (Some(strides), Some(result)) = (problem.bias[i], &buffers.bias_gradient[i]) {
            let shared = Shared::new(strides, problem.batch, problem.heads);
            match Form::of(strides) {
                Form::Keys => launch.mask(&key_value, shared, result),
                Form::Pairs => launch.pair(&pair, shared, result),
            }
        }
    }
    Ok(())
}

pub(super) fn check(
    plans: &Plans,
    problem: &Problem,
    gradient: &GradientStrides,
    buffers: &Buffers,
) -> Result<()> {
    problem.check()?;
    let (p, b, g) = (problem, buffers, gradient);
    let of_queries = |s: Strides| s.span(p, p.heads, p.queries, p.head_dim);
    let of_keys = |s: Strides| s.span(p, p.kv_heads, p.keys, p.head_dim);
    for plan in [plans.key_value, plans.query, plans.pair] {
        let fitting = accesses(p, plan.element, &plan.instruction, plan.role);
        if !serve(plan.bias, fitting) {
            let problem = format!(
                "the plan reads biases as {:?}, they lie as {fitting:?}",
                plan.bias
            );
            let remedy = "choose the plans for this problem";
            return Err(Error::argument(OPERATION, problem, remedy));
        }
    }
    let work = Workspace::new(p, plans, b.lse.len());
    let element = plans.query.element.bytes();
    for (name, buffer, least, bytes) in [
        ("Q", &b.q, of_queries(p.q), element),
        ("K", &b.k, of_keys(p.k), element),
        ("V", &b.v, of_keys(p.v), element),
        ("O", &b.o, of_queries(p.o), element),
        ("the gradient of O", &b.o_gradient, of_queries(g.o), element),
        ("dQ", &b.q_gradient, of_queries(g.q), element),
        ("dK", &b.k_gradient, of_keys(g.k), element),
        ("dV", &b.v_gradient, of_keys(g.v), element),
        (
            "the log-sum-exp",
            &b.lse,
            p.lse.span(p, p.heads, p.queries, 1),
            4,
        ),
        (
            "the workspace of statistics",
            &b.statistics,
            work.statistics as u64,
            4,
        ),
    ] {
        holds(OPERATION, name, Some(buffer), least, most(bytes))?;
    }
    let entries = u64::from(p.batch);
    let packed = if p.packed { entries + 1 } else { 0 };
    let samples = if p.dropout.is_some() { entries } else { 0 };
    for (name, buffer, least) in [
        ("the cumulative queries", &b.cumulative_queries, packed),
        ("the cumulative keys", &b.cumulative_keys, packed),
        ("the samples", &b.samples, samples),
        ("the workspace of sums", &b.key_sums, work.key_sums as u64),
    ] {
        holds(OPERATION, name, buffer.as_ref(), least, most(4))?;
    }
    for i in 0..2 {
        let Some(strides) = p.bias[i] else { continue };
        let least = strides.span(p);
        holds(
            OPERATION,
            "a bias",
            b.bias[i].as_ref(),
            least,
            most(element),
        )?;
        if let Some(result) = &b.bias_gradient[i] {
            holds(
                OPERATION,
                "the gradient of a bias",
                Some(result),
                least,
                most(4),
            )?;
        }
    }
    Ok(())
}

/// Elements of `bytes` bytes whose places in bytes are 32-bit numbers.
fn most(bytes: usize) -> u64 {
    u64::from(u32::MAX) / bytes as u64
}

struct Launch<'a> {
    client: &'a Client,
    problem: &'a Problem,
    gradient: &'a GradientStrides,
    buffers: &'a Buffers,
}

impl Launch<'_> {
    /// A buffer, or one that the kernel does not touch in its place.
    fn or_unused(&self, buffer: Option<&BufferArg>) -> BufferArg {
        const BYTES: usize = 16;
        match buffer {
            Some(buffer) => again(buffer),
            // SAFETY: it has that many bytes, and more bytes than elements.
            None => unsafe { BufferArg::from_raw_parts(self.client.empty(BYTES), BYTES / 4) },
        }
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
        [
            again(&b.q),
            again(&b.k),
            again(&b.v),
            again(&b.o_gradient),
            again(&b.statistics),
            self.or_unused(b.bias[0].as_ref()),
            self.or_unused(b.bias[1].as_ref()),
            self.or_unused(b.cumulative_queries.as_ref()),
            self.or_unused(b.cumulative_keys.as_ref()),
            self.or_unused(b.samples.as_ref()),
        ]
    }

    fn statistics(&self, plan: &Plan) {
        let (p, b) = (self.problem, self.buffers);
        let rows = (plan.units() / plan.statistics_lanes()) as u32;
        let Some(grid) = grid(p.queries.div_ceil(rows), p.heads, p.batch) else {
            return;
        };
        // SAFETY: the kernel stays within the spans that `check` has compared with the lengths.
        unsafe {
            statistics::launch_unchecked(
                self.client,
                grid,
                Self::dim(plan),
                again(&b.o),
                again(&b.o_gradient),
                again(&b.lse),
                self.or_unused(b.cumulative_queries.as_ref()),
                self.or_unused(b.cumulative_keys.as_ref()),
                again(&b.statistics),
                self.geometry(),
                self.gradient(),
                *plan,
                elem_type(plan.element),
                plan.width,
            );
        }
    }

    fn key_value(&self, plan: &Plan) {
        let (p, b) = (self.problem, self.buffers);
        let Some(grid) = grid(p.keys.div_ceil(plan.columns() as u32), p.kv_heads, p.batch) else {
            return;
        };
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

    fn query(&self, plan: &Plan) {
        let (p, b) = (self.problem, self.buffers);
        let Some(grid) = grid(p.queries.div_ceil(plan.columns() as u32), p.heads, p.batch) else {
            return;
        };
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

    fn pair(&self, plan: &Plan, of: Shared, result: &BufferArg) {
        let p = self.problem;
        let tiles = [(p.keys, plan.columns()), (p.queries, plan.rows())];
        let [x, y] = tiles.map(|(n, tile)| n.div_ceil(tile as u32));
        let Some(grid) = grid(x, y, of.count()) else {
            return;
        };
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

    fn mask(&self, plan: &Plan, of: Shared, result: &BufferArg) {
        let p = self.problem;
        let Some(grid) = grid(p.keys.div_ceil(plan.units() as u32), of.count(), 1) else {
            return;
        };
        // SAFETY: as for the statistics.
        unsafe {
            mask::launch_unchecked(
                self.client,
                grid,
                Self::dim(plan),
                self.or_unused(self.buffers.key_sums.as_ref()),
                self.or_unused(self.buffers.cumulative_keys.as_ref()),
                again(result),
                p.keys,
                shared(of),
                p.packed,
            );
        }
    }
}

/// Workgroups along x, y, z; `None` if there are none to launch.
fn grid(x: u32, y: u32, z: u32) -> Option<CubeCount> {
    (x > 0 && y > 0 && z > 0).then_some(CubeCount::Static(x, y, z))
}

fn shared(s: Shared) -> SharedLaunch {
    SharedLaunch::new(s.batch, s.entries, s.heads, s.members, s.strides.launch())
}
