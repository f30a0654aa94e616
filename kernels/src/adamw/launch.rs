//! Launches on a device.

use cubecl_core::client::Client;
use cubecl_core::prelude::*;

use super::norm::{adamw_control, adamw_squares, adamw_total};
use super::update::{NumbersLaunch, adamw_update};
use super::{CONTROL, Plan, Table, UNITS};
use crate::argument::{cubes, holds, runs_on};
use crate::error::{Error, Result};
use crate::hip::emit::elem_type;
use crate::hip::run::bytes;
use crate::matrix::instruction::{Element, Target};
use crate::rows::grid;

const OPERATION: &str = "adamw";

/// What a step needs to know, as PyTorch's `AdamW` names it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decoupled weight decay of the tensors that decay.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
}

/// The flat buffers, `[n]` each, with `n` at least [`Table::reach`], rounded up to the plan's accesses.
pub struct Buffers {
    /// Gradients, in the plan's type.
    pub gradient: BufferArg,
    /// Parameters in f32, updated.
    pub parameters: BufferArg,
    /// First moments in f32, updated.
    pub first: BufferArg,
    /// Second moments in f32, updated.
    pub second: BufferArg,
    /// The parameters in the plan's type of weights, written.
    pub weights: Option<BufferArg>,
}

/// Writes the sum of squares of all gradients that count to `square` `[1]` f32.
///
/// # Errors
/// Buffers that are not those of the table.
pub fn squares(
    client: &Client,
    plan: &Plan,
    table: &Table,
    gradient: BufferArg,
    square: BufferArg,
) -> Result<()> {
    let bytes = plan.gradient.bytes();
    let flat = [("gradient", &gradient, bytes)];
    check(client, plan, table, gradient.len(), &flat)?;
    holds(OPERATION, "square", Some(&square), Some(1), 4)?;
    let groups = plan.groups(table.tiles);
    let passes = cubes(OPERATION, client, [groups, 1, 1])?;
    let count = groups.max(1) as usize;
    let partials = client.empty(count * size_of::<f32>());
    // SAFETY: `partials` has been allocated with this length.
    let part = || unsafe { BufferArg::from_raw_parts(partials.clone(), count) };
    if groups > 0 {
        // SAFETY: the table is what `Table::new` made, and lies on the device as it does here; `check` found that the gradient
        // has memory for what it reaches, in whole accesses. Each workgroup has its own of the `groups` partial sums.
        unsafe {
            adamw_squares::launch_unchecked(
                client,
                passes,
                CubeDim::new_1d(UNITS),
                on_device(client, table),
                gradient,
                part(),
                table.tensors(),
                table.tiles,
                groups,
                *plan,
                elem_type(plan.gradient),
                plan.vector,
            );
        }
    }
    // SAFETY: the kernel reads `groups` partial sums and writes one number.
    unsafe {
        let (count, units) = (CubeCount::Static(1, 1, 1), CubeDim::new_1d(UNITS));
        adamw_total::launch_unchecked(client, count, units, part(), square, groups, *plan);
    }
    Ok(())
}

/// Prepares the [`CONTROL`] floats of a step, which are zero before the first one, from the sum of squares of the gradient.
/// `loss_scale` is the factor that the gradient still has. Without `largest_norm` it is not clipped.
///
/// # Errors
/// Buffers of other lengths.
pub fn control(
    client: &Client,
    target: Target,
    square: BufferArg,
    control: BufferArg,
    step: &Step,
    loss_scale: f64,
    largest_norm: Option<f64>,
) -> Result<()> {
    runs_on(OPERATION, client, target)?;
    holds(OPERATION, "square", Some(&square), Some(1), 4)?;
    holds(OPERATION, "control", Some(&control), Some(CONTROL), 4)?;
    // SAFETY: the kernel reads one number, and reads and writes `CONTROL` of them.
    unsafe {
        adamw_control::launch_unchecked(
            client,
            CubeCount::Static(1, 1, 1),
            CubeDim::new_1d(1),
            square,
            control,
            (1.0 / loss_scale) as f32,
            largest_norm.map_or(f32::MAX, |norm| norm as f32),
            (1.0 - step.beta1) as f32,
            (1.0 - step.beta2) as f32,
            target,
        );
    }
    Ok(())
}

/// One step of all tensors of `table`, or nothing if `control` says that it is skipped.
///
/// # Errors
/// Buffers that are not those of the table.
pub fn update(
    client: &Client,
    plan: &Plan,
    table: &Table,
    control: BufferArg,
    buffers: Buffers,
    step: &Step,
) -> Result<()> {
    let Buffers {
        gradient,
        parameters,
        first,
        second,
        weights,
    } = buffers;
    let flat = [
        ("gradient", &gradient, plan.gradient.bytes()),
        ("parameters", &parameters, 4),
        ("first moments", &first, 4),
        ("second moments", &second, 4),
    ];
    check(client, plan, table, gradient.len(), &flat)?;
    holds(
        OPERATION,
        "weights",
        weights.as_ref(),
        plan.weights.map(|_| gradient.len()),
        plan.weights.map_or(4, Element::bytes),
    )?;
    holds(OPERATION, "control", Some(&control), Some(CONTROL), 4)?;
    if table.tiles == 0 {
        return Ok(());
    }
    let cubes = cubes(OPERATION, client, grid(table.tiles))?;
    // SAFETY: as in `squares`; tensors do not overlap, nor do their tiles.
    unsafe {
        adamw_update::launch_unchecked(
            client,
            cubes,
            CubeDim::new_1d(UNITS),
            on_device(client, table),
            control,
            gradient,
            parameters,
            first,
            second,
            weights.into(),
            table.tensors(),
            table.tiles,
            step.launch(),
            *plan,
            plan.types(),
            plan.vector,
        );
    }
    Ok(())
}

impl Step {
    fn launch(&self) -> NumbersLaunch {
        let Self {
            learning_rate,
            weight_decay,
            beta1,
            beta2,
            epsilon,
        } = *self;
        let numbers = [
            learning_rate,
            1.0 - learning_rate * weight_decay,
            beta1,
            beta2,
            1.0 - beta1,
            1.0 - beta2,
            epsilon,
        ];
        let [learning_rate, keep, beta1, beta2, rest1, rest2, epsilon] = numbers.map(|x| x as f32);
        NumbersLaunch::new(learning_rate, keep, beta1, beta2, rest1, rest2, epsilon)
    }
}

/// The table as the device reads it.
fn on_device(client: &Client, table: &Table) -> BufferArg {
    let handle = client.create_from_slice(&bytes(&table.words));
    // SAFETY: the buffer was made of these words.
    unsafe { BufferArg::from_raw_parts(handle, table.words.len()) }
}

/// Checks flat buffers, which hold `found` elements each, of so many bytes.
fn check(
    client: &Client,
    plan: &Plan,
    table: &Table,
    found: usize,
    flat: &[(&str, &BufferArg, usize)],
) -> Result<()> {
    runs_on(OPERATION, client, plan.target)?;
    for (name, buffer, bytes) in flat {
        holds(OPERATION, name, Some(buffer), Some(found), *bytes)?;
    }
    let wanted = table.reach.next_multiple_of(plan.vector);
    if found < wanted || table.vector % plan.vector != 0 {
        let problem = format!(
            "buffers of {found} elements and a plan for accesses of {}, expected {wanted} and at most {}",
            plan.vector, table.vector
        );
        return Err(Error::argument(
            OPERATION,
            problem,
            "choose the plan with this table, and fill the buffers up to its accesses",
        ));
    }
    Ok(())
}
