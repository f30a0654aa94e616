//! Launches on a device.

use cubecl_core::client::Client;
use cubecl_core::prelude::*;

use super::arguments::holds;
use super::bias::{from_buffers, serve};
use super::forward::forward;
use super::plan::Plan;
use super::problem::Problem;
use crate::error::{Error, Result};
use crate::hip::emit::elem_type;

const OPERATION: &str = "attention";

/// Buffers on the device. Lengths are in elements.
pub struct Buffers {
    /// Q.
    pub q: BufferArg,
    /// K.
    pub k: BufferArg,
    /// V.
    pub v: BufferArg,
    /// Result: O.
    pub o: BufferArg,
    /// Result: the log-sum-exp, f32, natural logarithm.
    pub lse: BufferArg,
    /// The biases that the problem has.
    pub bias: [Option<BufferArg>; 2],
    /// Where each sequence's queries begin, u32 `[batch + 1]`, if packed.
    pub cumulative_queries: Option<BufferArg>,
    /// Where each sequence's keys begin, u32 `[batch + 1]`, if packed.
    pub cumulative_keys: Option<BufferArg>,
    /// The sample of each batch entry, u32 `[batch]`, with dropout.
    pub samples: Option<BufferArg>,
}

impl Buffers {
    pub(super) fn check(&self, problem: &Problem) -> Result<()> {
        let p = problem;
        let entries = u64::from(p.batch);
        let packed = if p.packed { entries + 1 } else { 0 };
        let samples = if p.dropout.is_some() { entries } else { 0 };
        let bias = p.bias.map(|bias| bias.map_or(0, |strides| strides.span(p)));
        let (d, rows, keys) = (p.head_dim, p.queries, p.keys);
        for (name, buffer, least) in [
            ("Q", Some(&self.q), p.q.span(p, p.heads, rows, d)),
            ("K", Some(&self.k), p.k.span(p, p.kv_heads, keys, d)),
            ("V", Some(&self.v), p.v.span(p, p.kv_heads, keys, d)),
            ("O", Some(&self.o), p.o.span(p, p.heads, rows, d)),
            (
                "the log-sum-exp",
                Some(&self.lse),
                p.lse.span(p, p.heads, rows, 1),
            ),
            ("the first bias", self.bias[0].as_ref(), bias[0]),
            ("the second bias", self.bias[1].as_ref(), bias[1]),
            (
                "cumulative queries",
                self.cumulative_queries.as_ref(),
                packed,
            ),
            ("cumulative keys", self.cumulative_keys.as_ref(), packed),
            ("samples", self.samples.as_ref(), samples),
        ] {
            holds(OPERATION, name, buffer, least, u64::from(u32::MAX))?;
        }
        Ok(())
    }
}

/// Computes O and the log-sum-exp.
///
/// # Errors
/// A plan that is not of this problem, sizes that no kernel takes, a buffer that is missing or too short.
pub fn launch(client: &Client, plan: &Plan, problem: &Problem, buffers: Buffers) -> Result<()> {
    let fitting = Plan::choose(plan.target, plan.element, problem)?;
    if plan.variant != fitting.variant
        || plan.width > fitting.width
        || !serve(plan.bias, fitting.bias)
    {
        return Err(Error::argument(
            OPERATION,
            format!(
                "the plan is {}, the problem needs {}",
                plan.name(),
                fitting.name()
            ),
            "choose the plan for this problem",
        ));
    }
    buffers.check(problem)?;
    if problem.batch == 0 || problem.heads == 0 || problem.queries == 0 {
        return Ok(());
    }
    let blocks = problem.queries.div_ceil(plan.queries() as u32);
    // A kernel does not touch what its variant does not have.
    let unused = || {
        const BYTES: usize = 16;
        // SAFETY: the buffer has as many bytes, and more than elements.
        unsafe { BufferArg::from_raw_parts(client.empty(BYTES), BYTES / 4) }
    };
    let plan = Plan {
        bias: from_buffers(plan.bias, &buffers.bias, plan.element),
        ..plan.clone()
    };
    let [bias1, bias2] = buffers.bias.map(|bias| bias.unwrap_or_else(unused));
    // SAFETY: the kernel stays within the spans of the problem's strides, which the buffers have.
    unsafe {
        forward::launch_unchecked(
            client,
            CubeCount::Static(blocks, problem.heads, problem.batch),
            CubeDim::new_1d(plan.units() as u32),
            buffers.q,
            buffers.k,
            buffers.v,
            buffers.o,
            buffers.lse,
            bias1,
            bias2,
            buffers.cumulative_queries.unwrap_or_else(unused),
            buffers.cumulative_keys.unwrap_or_else(unused),
            buffers.samples.unwrap_or_else(unused),
            problem.geometry().launch(),
            plan.clone(),
            elem_type(plan.element),
            plan.sizes(),
        );
    }
    Ok(())
}
