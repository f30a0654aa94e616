//! Launch on a device.

use cubecl_core::client::Client;
use cubecl_core::prelude::*;

use super::elements::{SiteLaunch, dropout_elements};
use super::{Dropout, Plan, UNITS};
use crate::argument::{holds, places};
use crate::error::Result;
use crate::hip::emit::elem_type;
use crate::rows::grid;

const OPERATION: &str = "dropout";

/// What the kernel reads and writes.
pub struct Buffers {
    /// Input `[rows, hidden]`.
    pub x: BufferArg,
    /// What is added, with [`Plan::residual`].
    pub residual: Option<BufferArg>,
    /// Each sample's number in the global batch as two `u32`, the low half first.
    pub samples: BufferArg,
    /// Output `[rows, hidden]`, written.
    pub y: BufferArg,
}

impl Dropout {
    pub(crate) fn launch(&self) -> SiteLaunch {
        let [key0, key1] = self.key;
        SiteLaunch::new(
            key0,
            key1,
            self.threshold(),
            self.scale(),
            self.tokens,
            self.first,
        )
    }
}

/// Computes `y = dropout(x) + residual`.
///
/// # Errors
/// Buffers that are not those of the plan with `rows` rows.
pub fn add(
    client: &Client,
    plan: &Plan,
    buffers: Buffers,
    rows: usize,
    dropout: &Dropout,
) -> Result<()> {
    let all = rows * plan.hidden;
    let samples = dropout.samples(OPERATION, rows)?;
    for (name, buffer, expected) in [
        ("x", Some(&buffers.x), Some(all)),
        (
            "residual",
            buffers.residual.as_ref(),
            plan.residual.then_some(all),
        ),
        ("samples", Some(&buffers.samples), Some(samples)),
        ("y", Some(&buffers.y), Some(all)),
    ] {
        holds(OPERATION, name, buffer, expected)?;
    }
    places(OPERATION, all)?;
    let rows = places(OPERATION, rows)?;
    if all == 0 {
        return Ok(());
    }
    let [x, y, z] = grid(plan.groups(rows));
    // SAFETY: the buffers have the lengths that the kernel stays within; it has no loop.
    unsafe {
        dropout_elements::launch_unchecked(
            client,
            CubeCount::Static(x, y, z),
            CubeDim::new_1d(UNITS),
            buffers.x,
            buffers.residual.into(),
            buffers.samples,
            buffers.y,
            rows,
            dropout.launch(),
            *plan,
            elem_type(plan.element),
            plan.vector,
        );
    }
    Ok(())
}
