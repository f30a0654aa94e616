//! Launch on a device.

use cubecl_core::client::Client;
use cubecl_core::prelude::*;

use super::kernel::{StepsLaunch, rotary_rotate};
use super::{OPERATION, Plan, Shape, Strides};
use crate::argument::{cubes, elements, holds, places, runs_on};
use crate::error::{Error, Result};
use crate::hip::emit::elem_type;
use crate::rows::grid;

/// What the kernel reads and writes.
pub struct Buffers {
    /// Queries or keys.
    pub x: BufferArg,
    /// Cosines `[seq, head_dim / 2]` of f32.
    pub cos: BufferArg,
    /// Sines `[seq, head_dim / 2]` of f32.
    pub sin: BufferArg,
    /// The rotated ones, written; another buffer than x.
    pub y: BufferArg,
}

/// Rotates x of `shape`, read by the strides `from`, into y, written by the strides `to`.
///
/// # Errors
/// A shape or strides other than the plan was chosen for, or buffers that do not span them.
pub fn rotate(
    client: &Client,
    plan: &Plan,
    buffers: Buffers,
    shape: Shape,
    [from, to]: [Strides; 2],
) -> Result<()> {
    if Plan::choose(plan.target, plan.element, shape, [from, to], plan.inverse)? != *plan {
        let problem =
            format!("{shape:?} with strides {from:?} and {to:?} is not what {plan:?} is for");
        return Err(Error::argument(
            OPERATION,
            problem,
            "choose the plan with these",
        ));
    }
    runs_on(OPERATION, client, plan.target)?;
    let tokens = places(OPERATION, elements(OPERATION, &[shape.batch, shape.seq])?)?;
    if shape.all().contains(&0) {
        return Ok(());
    }
    let table = elements(OPERATION, &[shape.seq, shape.head_dim / 2])?;
    let element = plan.element.bytes();
    for (name, buffer, expected, bytes) in [
        ("x", &buffers.x, from.span(shape)?, element),
        ("cos", &buffers.cos, table, 4),
        ("sin", &buffers.sin, table, 4),
        ("y", &buffers.y, to.span(shape)?, element),
    ] {
        holds(OPERATION, name, Some(buffer), Some(expected), bytes)?;
    }
    let steps = |strides: Strides| {
        let [batch, head, token] = strides.all().map(|stride| (stride / plan.vector) as u32);
        StepsLaunch::new(batch, head, token)
    };
    let cubes = cubes(OPERATION, client, grid(tokens))?;
    // SAFETY: the plan is the one for this shape and these strides. The buffers have memory for what the strides span, and
    // the tables for a row each position; a workgroup has a token below `tokens`, and its loop counts the plan's heads.
    unsafe {
        rotary_rotate::launch_unchecked(
            client,
            cubes,
            CubeDim::new_1d(plan.units),
            buffers.x,
            buffers.cos,
            buffers.sin,
            buffers.y,
            places(OPERATION, shape.seq)?,
            tokens,
            steps(from),
            steps(to),
            *plan,
            elem_type(plan.element),
            plan.vector,
        );
    }
    Ok(())
}
