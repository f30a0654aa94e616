//! Launch on a device.

use cubecl_core::client::Client;
use cubecl_core::prelude::*;

use super::kernel::{StepsLaunch, rotary_rotate};
use super::{Plan, Shape, Strides};
use crate::argument::{holds, places};
use crate::error::{Error, Result};
use crate::hip::emit::elem_type;
use crate::rows::grid;

const OPERATION: &str = "rotary";

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
    let tokens = places(OPERATION, shape.batch * shape.seq)?;
    if shape.count() == 0 {
        return Ok(());
    }
    let table = shape.seq * shape.head_dim / 2;
    for (name, buffer, expected) in [
        ("x", &buffers.x, from.span(shape)),
        ("cos", &buffers.cos, table),
        ("sin", &buffers.sin, table),
        ("y", &buffers.y, to.span(shape)),
    ] {
        holds(OPERATION, name, Some(buffer), Some(expected))?;
        places(OPERATION, expected)?;
    }
    let steps = |strides: Strides| {
        let [batch, head, token] = strides.all().map(|stride| (stride / plan.vector) as u32);
        StepsLaunch::new(batch, head, token)
    };
    let [x, y, z] = grid(tokens);
    // SAFETY: the buffers span what the strides reach, and each workgroup's loop counts up to a comptime number.
    unsafe {
        rotary_rotate::launch_unchecked(
            client,
            CubeCount::Static(x, y, z),
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
