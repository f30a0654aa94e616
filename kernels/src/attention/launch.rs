//! Launches on a device.

use cubecl_core::client::Client;
use cubecl_core::prelude::*;

use super::arguments::{Rows, holds, holds_bias};
use super::bias::{from_buffers, serve};
use super::forward::forward;
use super::plan::Plan;
use super::problem::Problem;
use super::sequences::Sequences;
use crate::argument::{again, cubes, filler, runs_on};
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
    /// The sequences, if packed.
    pub sequences: Option<Sequences>,
    /// The sample of each batch entry, u32 `[batch]`, with dropout.
    pub samples: Option<BufferArg>,
}

/// Checks that the plan is one of this problem, and that the buffers have memory for all that its strides reach.
pub(super) fn check(
    client: &Client,
    plan: &Plan,
    problem: &Problem,
    buffers: &Buffers,
) -> Result<Rows> {
    runs_on(OPERATION, client, plan.target)?;
    let fitting = plan.again(problem)?;
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
    let (p, b, bytes) = (problem, buffers, plan.element.bytes());
    let rows = Rows::of(OPERATION, p, b.sequences.as_ref())?;
    let of_queries = |strides| rows.of_queries(strides, p, p.head_dim);
    let samples = if p.dropout.is_some() { p.batch } else { 0 };
    for (name, buffer, least, bytes) in [
        ("Q", Some(&b.q), of_queries(p.q), bytes),
        ("K", Some(&b.k), rows.of_keys(p.k, p), bytes),
        ("V", Some(&b.v), rows.of_keys(p.v, p), bytes),
        ("O", Some(&b.o), of_queries(p.o), bytes),
        (
            "the log-sum-exp",
            Some(&b.lse),
            rows.of_queries(p.lse, p, 1),
            4,
        ),
        ("samples", b.samples.as_ref(), u64::from(samples), 4),
    ] {
        holds(OPERATION, name, buffer, [least, MOST as u64], bytes)?;
    }
    for (buffer, strides) in b.bias.iter().zip(p.bias) {
        holds_bias(OPERATION, buffer.as_ref(), strides, p, [bytes, MOST])?;
    }
    Ok(rows)
}

/// Elements whose places are 32-bit numbers.
const MOST: usize = u32::MAX as usize;

/// Computes O and the log-sum-exp.
///
/// # Errors
/// A plan that is not of this problem or of another device, sizes that no kernel takes, a buffer that is missing or too short.
pub fn launch(client: &Client, plan: &Plan, problem: &Problem, buffers: Buffers) -> Result<()> {
    let rows = check(client, plan, problem, &buffers)?;
    if problem.batch == 0 || problem.heads == 0 || rows.queries == 0 {
        return Ok(());
    }
    let (mut problem, mut buffers) = (*problem, buffers);
    if rows.keys == 0 {
        let nothing;
        (problem, nothing) = problem.without_keys(client);
        (buffers.k, buffers.v) = (again(&nothing.row), nothing.row);
        buffers.bias = nothing.bias;
    }
    let blocks = problem.queries.div_ceil(plan.queries() as u32);
    let cubes = cubes(OPERATION, client, [blocks, problem.heads, problem.batch])?;
    // A kernel does not touch what its variant does not have.
    let unused = || filler(client, 4);
    let plan = Plan {
        bias: from_buffers(plan.bias, &buffers.bias, plan.element),
        ..plan.clone()
    };
    let [bias1, bias2] = buffers.bias.map(|bias| bias.unwrap_or_else(unused));
    let [queries, keys] = match &buffers.sequences {
        Some(sequences) => sequences.arguments(),
        None => [unused(), unused()],
    };
    // SAFETY: `check` has found that the plan was chosen for a problem of this kind, whose accesses these strides and extents
    // allow, and that the buffers have memory for what the strides reach from the rows that there are: the problem's or, if
    // packed, those of sequences that ascend, and are no longer than the problem says. Rows and keys beyond are drawn back.
    unsafe {
        forward::launch_unchecked(
            client,
            cubes,
            CubeDim::new_1d(plan.units() as u32),
            buffers.q,
            buffers.k,
            buffers.v,
            buffers.o,
            buffers.lse,
            bias1,
            bias2,
            queries,
            keys,
            buffers.samples.unwrap_or_else(unused),
            problem.geometry().launch(),
            plan.clone(),
            elem_type(plan.element),
            plan.sizes(),
        );
    }
    Ok(())
}
