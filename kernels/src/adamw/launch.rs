//! Launches on a device.

use cubecl_core::client::Client;
use cubecl_core::prelude::*;

use super::norm::{adamw_control, adamw_squares, adamw_total};
use super::update::{NumbersLaunch, adamw_update};
use super::{CONTROL, Plan, Table, UNITS};
use crate::argument::holds;
use crate::error::{Error, Result};
use crate::hip::emit::elem_type;
use crate::matrix::instruction::Target;
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

/// The flat buffers, `[n]` each, with `n` at least [`Table::reach`], rounded up to [`Table::vector`].
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

/// Writes the sum of squares of all gradients that count to `square` `[1]` f32. `words` is [`Table::words`] on the device.
///
/// # Errors
/// Buffers that are not those of the table.
pub fn squares(
    client: &Client,
    plan: &Plan,
    table: &Table,
    words: BufferArg,
    gradient: BufferArg,
    square: BufferArg,
) -> Result<()> {
    check(
        plan,
        table,
        &words,
        gradient.len(),
        &[("gradient", &gradient)],
    )?;
    holds(OPERATION, "square", Some(&square), Some(1))?;
    let groups = plan.groups(table.tiles);
    let count = groups.max(1) as usize;
    let partials = client.empty(count * size_of::<f32>());
    // SAFETY: `partials` has been allocated with this length.
    let part = || unsafe { BufferArg::from_raw_parts(partials.clone(), count) };
    if groups > 0 {
        // SAFETY: the buffers hold what the table reaches; every loop counts up to a number of tiles or tensors.
        unsafe {
            adamw_squares::launch_unchecked(
                client,
                CubeCount::Static(groups, 1, 1),
                CubeDim::new_1d(UNITS),
                words,
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
    holds(OPERATION, "square", Some(&square), Some(1))?;
    holds(OPERATION, "control", Some(&control), Some(CONTROL))?;
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
    words: BufferArg,
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
        ("gradient", &gradient),
        ("parameters", &parameters),
        ("first moments", &first),
        ("second moments", &second),
    ];
    check(plan, table, &words, gradient.len(), &flat)?;
    holds(
        OPERATION,
        "weights",
        weights.as_ref(),
        plan.weights.map(|_| gradient.len()),
    )?;
    holds(OPERATION, "control", Some(&control), Some(CONTROL))?;
    if table.tiles == 0 {
        return Ok(());
    }
    let [x, y, z] = grid(table.tiles);
    // SAFETY: as in `squares`; tiles do not overlap.
    unsafe {
        adamw_update::launch_unchecked(
            client,
            CubeCount::Static(x, y, z),
            CubeDim::new_1d(UNITS),
            words,
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

/// Checks the table on the device, and flat buffers, which hold `found` elements each.
fn check(
    plan: &Plan,
    table: &Table,
    words: &BufferArg,
    found: usize,
    flat: &[(&str, &BufferArg)],
) -> Result<()> {
    holds(OPERATION, "table", Some(words), Some(table.words.len()))?;
    for (name, buffer) in flat {
        holds(OPERATION, name, Some(buffer), Some(found))?;
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
            "choose `vector` as the table says, and fill the buffers up to it",
        ));
    }
    Ok(())
}
