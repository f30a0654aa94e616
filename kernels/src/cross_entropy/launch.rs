//! Launches on a device.

use cubecl_core::client::Client;
use cubecl_core::prelude::*;

use super::gradient::cross_entropy_gradient;
use super::statistics::cross_entropy_statistics;
use super::{Plan, ShardLaunch};
use crate::argument::{cubes, elements, holds, places, runs_on};
use crate::error::{Error, Result};
use crate::hip::emit::elem_type;
use crate::rows::grid;

const OPERATION: &str = "cross_entropy";

/// Which tokens of the vocabulary a rank has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vocabulary {
    /// The token that the first column stands for.
    pub start: u32,
    /// Columns that stand for a token; those beyond are padding.
    pub valid: u32,
    /// Target of a token that does not count, beside the negative ones.
    pub ignore: i32,
}

impl Vocabulary {
    fn launch(self) -> ShardLaunch {
        ShardLaunch::new(self.valid, self.start, self.ignore as u32)
    }
}

/// Writes `stats` `[3, tokens]` f32: per token the largest logit, the sum of `exp(logit - largest)` and the target's logit,
/// 0 if it is not here. Logits are `[tokens, columns]`, targets `[tokens]` of i32 or u32.
///
/// # Errors
/// Buffers that are not those of the plan with `tokens` rows, or more valid columns than there are.
pub fn statistics(
    client: &Client,
    plan: &Plan,
    logits: BufferArg,
    targets: BufferArg,
    stats: BufferArg,
    tokens: usize,
    vocabulary: Vocabulary,
) -> Result<()> {
    let (all, cubes) = check(client, plan, tokens, vocabulary)?;
    let stats_length = elements(OPERATION, &[3, tokens])?;
    for (name, buffer, expected, bytes) in [
        ("logits", &logits, all, plan.element.bytes()),
        ("targets", &targets, tokens, 4),
        ("stats", &stats, stats_length, 4),
    ] {
        holds(OPERATION, name, Some(buffer), Some(expected), bytes)?;
    }
    let Some(cubes) = cubes else {
        return Ok(());
    };
    // SAFETY: every buffer has memory for what `holds` compared its length with, which is what the kernel touches: rows
    // beyond the last token are drawn back to it and not written, a row's vectors are below a comptime number, and the column
    // of a target counts only below `valid`, which is no more than there are.
    unsafe {
        cross_entropy_statistics::launch_unchecked(
            client,
            cubes,
            CubeDim::new_1d(plan.rows.units),
            logits,
            targets,
            stats,
            places(OPERATION, tokens)?,
            vocabulary.launch(),
            *plan,
            elem_type(plan.element),
            plan.rows.vector,
        );
    }
    Ok(())
}

/// The whole vocabulary's scalars, `[tokens]` of f32 each.
pub struct Combined {
    /// The largest logit.
    pub largest: BufferArg,
    /// The sum of `exp(logit - largest)`.
    pub sum: BufferArg,
    /// Factor of the gradient: that of the loss.
    pub scale: BufferArg,
}

/// Writes `(exp(logit - largest) / sum - onehot(target)) * scale` over the logits; 0 in padding and for tokens that do not
/// count.
///
/// # Errors
/// As [`statistics`].
pub fn gradient(
    client: &Client,
    plan: &Plan,
    logits: BufferArg,
    targets: BufferArg,
    combined: Combined,
    tokens: usize,
    vocabulary: Vocabulary,
) -> Result<()> {
    let (all, cubes) = check(client, plan, tokens, vocabulary)?;
    for (name, buffer, expected, bytes) in [
        ("logits", &logits, all, plan.element.bytes()),
        ("targets", &targets, tokens, 4),
        ("largest", &combined.largest, tokens, 4),
        ("sum", &combined.sum, tokens, 4),
        ("scale", &combined.scale, tokens, 4),
    ] {
        holds(OPERATION, name, Some(buffer), Some(expected), bytes)?;
    }
    let Some(cubes) = cubes else {
        return Ok(());
    };
    // SAFETY: as in `statistics`; a vector of the logits is read and written by the same unit.
    unsafe {
        cross_entropy_gradient::launch_unchecked(
            client,
            cubes,
            CubeDim::new_1d(plan.rows.units),
            logits,
            targets,
            combined.largest,
            combined.sum,
            combined.scale,
            places(OPERATION, tokens)?,
            vocabulary.launch(),
            *plan,
            elem_type(plan.element),
            plan.rows.vector,
        );
    }
    Ok(())
}

/// Elements of the logits, and the grid, if there is anything to do.
fn check(
    client: &Client,
    plan: &Plan,
    tokens: usize,
    vocabulary: Vocabulary,
) -> Result<(usize, Option<CubeCount>)> {
    runs_on(OPERATION, client, plan.target)?;
    let columns = plan.rows.columns;
    if vocabulary.valid as usize > columns {
        return Err(Error::argument(
            OPERATION,
            format!("{} valid columns of {columns}", vocabulary.valid),
            "count the columns of this rank that stand for a token",
        ));
    }
    let all = elements(OPERATION, &[tokens, columns])?;
    let workgroups = places(OPERATION, tokens)?.div_ceil(plan.rows.per_workgroup());
    let cubes = (all > 0).then(|| cubes(OPERATION, client, grid(workgroups)));
    Ok((all, cubes.transpose()?))
}
