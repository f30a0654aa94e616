//! Launch on a device.

use cubecl_core::client::Client;
use cubecl_core::prelude::*;

use super::elements::{SiteLaunch, dropout_elements};
use super::{Dropout, Plan, UNITS};
use crate::argument::{cubes, elements, holds, places, runs_on};
use crate::error::Result;
use crate::hip::emit::elem_type;
use crate::rows::grid;

const OPERATION: &str = "dropout";

/// What the kernel reads and writes.
pub struct Buffers {
    /// Input `[rows, hidden]`.
    pub x: BufferArg,
    /// What is added, where [`Plan::residual`] says so.
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
    runs_on(OPERATION, client, plan.target)?;
    let all = elements(OPERATION, &[rows, plan.hidden])?;
    let samples = dropout.samples(OPERATION, rows)?;
    let element = plan.element.bytes();
    for (name, buffer, expected, bytes) in [
        ("x", Some(&buffers.x), Some(all), element),
        (
            "residual",
            buffers.residual.as_ref(),
            plan.residual.then_some(all),
            element,
        ),
        ("samples", Some(&buffers.samples), Some(samples), 4),
        ("y", Some(&buffers.y), Some(all), element),
    ] {
        holds(OPERATION, name, buffer, expected, bytes)?;
    }
    let rows = places(OPERATION, rows)?;
    if all == 0 {
        return Ok(());
    }
    let cubes = cubes(OPERATION, client, grid(plan.groups(rows)))?;
    // SAFETY: every buffer has memory for what `holds` compared its length with, which is what the kernel touches: a unit has
    // one vector below the number of all, and the sample of its row.
    unsafe {
        dropout_elements::launch_unchecked(
            client,
            cubes,
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
