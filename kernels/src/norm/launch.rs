//! Launches on a device.

use cubecl_core::client::Client;
use cubecl_core::prelude::*;

use super::backward::norm_backward;
use super::forward::norm_forward;
use super::reduce::{self, norm_reduce};
use super::{Kind, Plan};
use crate::argument::{cubes, elements, holds, places, runs_on};
use crate::dropout::Dropout;
use crate::error::{Error, Result};
use crate::hip::emit::elem_type;
use crate::rows::grid;

const OPERATION: &str = "norm";

/// What the forward kernel reads and writes.
pub struct Forward {
    /// Input `[rows, hidden]`.
    pub x: BufferArg,
    /// What is added to it, with [`super::Problem::residual`].
    pub residual: Option<BufferArg>,
    /// Each sample's number in the global batch as two `u32`, the low half first, with [`super::Problem::dropout`].
    pub samples: Option<BufferArg>,
    /// Weight `[hidden]`.
    pub weight: BufferArg,
    /// Bias `[hidden]`, of a layer norm.
    pub bias: Option<BufferArg>,
    /// Output `[rows, hidden]`.
    pub y: BufferArg,
    /// `dropout(x) + residual`, written with either of them: the new residual, and saved for backward in place of x.
    pub sum: Option<BufferArg>,
    /// Written and saved for backward, f32: mean and 1 / deviation `[rows, 2]` of a layer norm, the latter `[rows]` of an
    /// RMS norm.
    pub stats: BufferArg,
}

/// What the backward kernels read and write.
pub struct Backward {
    /// Gradient of y `[rows, hidden]`.
    pub dy: BufferArg,
    /// The norm's input: `sum` if forward wrote it, else x.
    pub s: BufferArg,
    /// As forward wrote it.
    pub stats: BufferArg,
    /// Weight `[hidden]`.
    pub weight: BufferArg,
    /// As in [`Forward`].
    pub samples: Option<BufferArg>,
    /// Gradient of `sum` from its other uses, if it has any.
    pub d_sum: Option<BufferArg>,
    /// Gradient of x `[rows, hidden]`, written; without dropout that of the residual too.
    pub dx: BufferArg,
    /// Gradient of the residual, written, with residual and dropout.
    pub d_residual: Option<BufferArg>,
    /// Gradients of weight, then bias `[1 or 2, hidden]` in f32, written.
    pub d_parameters: BufferArg,
}

/// Computes `y = norm(s)` with `s = dropout(x) + residual`.
///
/// # Errors
/// Buffers that are not those of the plan's problem with `rows` rows.
pub fn forward(
    client: &Client,
    plan: &Plan,
    buffers: Forward,
    rows: usize,
    epsilon: f32,
    dropout: &Dropout,
) -> Result<()> {
    let [hidden, all, stats] = sizes(client, plan, rows)?;
    let is = |wanted: bool, count: usize| wanted.then_some(count);
    let element = plan.element.bytes();
    for (name, buffer, expected, bytes) in [
        ("x", Some(&buffers.x), Some(all), element),
        (
            "residual",
            buffers.residual.as_ref(),
            is(plan.problem.residual, all),
            element,
        ),
        (
            "samples",
            buffers.samples.as_ref(),
            plan.samples(rows, dropout)?,
            4,
        ),
        ("weight", Some(&buffers.weight), Some(hidden), element),
        (
            "bias",
            buffers.bias.as_ref(),
            is(plan.problem.kind == Kind::Layer, hidden),
            element,
        ),
        ("y", Some(&buffers.y), Some(all), element),
        ("sum", buffers.sum.as_ref(), is(plan.fused(), all), element),
        ("stats", Some(&buffers.stats), Some(stats), 4),
    ] {
        holds(OPERATION, name, buffer, expected, bytes)?;
    }
    let rows = places(OPERATION, rows)?;
    if rows == 0 {
        return Ok(());
    }
    let workgroups = rows.div_ceil(plan.forward.per_workgroup());
    let cubes = cubes(OPERATION, client, grid(workgroups))?;
    // SAFETY: every buffer has memory for what `holds` compared its length with, which is what the plan's problem and `rows`
    // make the kernel touch: rows beyond the last are drawn back to it and not written, a row's vectors are below a comptime
    // number, and `sizes` keeps all places within 32 bits.
    unsafe {
        norm_forward::launch_unchecked(
            client,
            cubes,
            CubeDim::new_1d(plan.forward.units),
            buffers.x,
            buffers.residual.into(),
            buffers.samples.into(),
            buffers.weight,
            buffers.bias.into(),
            buffers.y,
            buffers.sum.into(),
            buffers.stats,
            rows,
            epsilon,
            dropout.launch(),
            *plan,
            elem_type(plan.element),
            plan.forward.vector,
        );
    }
    Ok(())
}

/// Computes the gradients of x, residual, weight and bias.
///
/// # Errors
/// As [`forward`].
pub fn backward(
    client: &Client,
    plan: &Plan,
    buffers: Backward,
    rows: usize,
    dropout: &Dropout,
) -> Result<()> {
    let [hidden, all, stats] = sizes(client, plan, rows)?;
    let width = elements(OPERATION, &[hidden, plan.parts() as usize])?;
    let both = plan.problem.residual && plan.problem.dropout;
    let element = plan.element.bytes();
    for (name, buffer, expected, bytes) in [
        ("dy", Some(&buffers.dy), Some(all), element),
        ("s", Some(&buffers.s), Some(all), element),
        ("stats", Some(&buffers.stats), Some(stats), 4),
        ("weight", Some(&buffers.weight), Some(hidden), element),
        (
            "samples",
            buffers.samples.as_ref(),
            plan.samples(rows, dropout)?,
            4,
        ),
        (
            "d_sum",
            buffers.d_sum.as_ref(),
            buffers.d_sum.as_ref().map(|_| all),
            element,
        ),
        ("dx", Some(&buffers.dx), Some(all), element),
        (
            "d_residual",
            buffers.d_residual.as_ref(),
            both.then_some(all),
            element,
        ),
        ("d_parameters", Some(&buffers.d_parameters), Some(width), 4),
    ] {
        holds(OPERATION, name, buffer, expected, bytes)?;
    }
    let rows = places(OPERATION, rows)?;
    let groups = plan.groups(rows);
    let count = elements(OPERATION, &[groups as usize, width])?;
    let width = places(OPERATION, width)?;
    let reduction = cubes(OPERATION, client, [width.div_ceil(reduce::COLUMNS), 1, 1])?;
    let passes = cubes(OPERATION, client, [groups, 1, 1])?;
    let partials = client.empty(count.max(1) * size_of::<f32>());
    // SAFETY: `partials` has been allocated with these lengths.
    let part = || unsafe { BufferArg::from_raw_parts(partials.clone(), count) };
    if groups > 0 {
        // SAFETY: as in `forward`; every workgroup has a row, and its own `width` of the partial sums.
        unsafe {
            norm_backward::launch_unchecked(
                client,
                passes,
                CubeDim::new_1d(plan.backward.units),
                buffers.dy,
                buffers.s,
                buffers.stats,
                buffers.weight,
                buffers.samples.into(),
                buffers.d_sum.into(),
                buffers.dx,
                buffers.d_residual.into(),
                part(),
                rows,
                groups,
                dropout.launch(),
                *plan,
                elem_type(plan.element),
                plan.backward.vector,
            );
        }
    }
    // SAFETY: the kernel reads `groups` rows of `width` partial sums, and writes `width` sums.
    unsafe {
        norm_reduce::launch_unchecked(
            client,
            reduction,
            CubeDim::new_1d(reduce::UNITS),
            part(),
            buffers.d_parameters,
            groups,
            width,
        );
    }
    Ok(())
}

/// Elements of a row, of all rows, and of their statistics.
///
/// # Errors
/// Rows without an element, more than 32-bit places, another device's plan.
fn sizes(client: &Client, plan: &Plan, rows: usize) -> Result<[usize; 3]> {
    runs_on(OPERATION, client, plan.target)?;
    let hidden = plan.problem.hidden;
    if hidden == 0 {
        return Err(Error::argument(
            OPERATION,
            "rows of 0 elements, which have no mean",
            "give each row an element",
        ));
    }
    let all = elements(OPERATION, &[rows, hidden])?;
    Ok([hidden, all, elements(OPERATION, &[rows, plan.stats()])?])
}
