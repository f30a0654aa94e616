//! Whether a launch can be what it asks for.

use cubecl_core::prelude::BufferArg;

use super::launch::Arguments;
use super::plan::Plan;
use super::problem::{Activation, Epilogue, Shape};
use super::reduce::UNITS;
use super::tile::Role;
use crate::error::{Error, Result};
use crate::matrix::instruction::Target;

const OPERATION: &str = "gemm";

fn wrong<T>(problem: String, remedy: &str) -> Result<T> {
    Err(Error::argument(OPERATION, problem, remedy))
}

/// Checks a product of its own.
pub fn check(plan: &Plan, shape: &Shape, parts: usize, arguments: &Arguments) -> Result<()> {
    plan.check()?;
    check_extras(&plan.epilogue, arguments, plan.sums_of.is_some())?;
    if parts == 0 || (parts > 1 && !plan.split) {
        return wrong(
            format!("K in {parts} parts"),
            "give a split plan 1 or more parts, any other 1",
        );
    }
    if parts * shape.batches > MOST_LAYERS {
        return wrong(
            format!(
                "{} batches in {parts} parts, more than {MOST_LAYERS} layers",
                shape.batches
            ),
            "take fewer parts or divide the batches",
        );
    }
    if plan.sums_of.is_some() && shape.batches != 1 {
        return wrong(
            format!("sums over K of {} batches", shape.batches),
            "launch each batch by itself",
        );
    }
    check_operand(plan, Role::Rows, shape, &arguments.a)?;
    check_operand(plan, Role::Columns, shape, &arguments.b)?;
    check_results(plan, shape, parts, arguments)
}

/// Workgroups along z that every device allows.
const MOST_LAYERS: usize = 65_535;

/// Checks that the buffers beside C are those of the epilogue.
pub fn check_extras(epilogue: &Epilogue, arguments: &Arguments, sums: bool) -> Result<()> {
    let Arguments { extras, .. } = arguments;
    for (name, wanted, given) in [
        ("bias", epilogue.bias, extras.bias.is_some()),
        (
            "residual or pre-activation",
            epilogue.reads_other(),
            extras.other.is_some(),
        ),
        (
            "buffer for the pre-activation",
            epilogue.save,
            extras.saved.is_some(),
        ),
        ("buffer for sums over K", sums, arguments.sums.is_some()),
    ] {
        if wanted && !given {
            return wrong(
                format!("the plan needs a {name}"),
                "pass it, or plan without",
            );
        }
        if given && !wanted {
            return wrong(
                format!("a {name} that the plan does not use"),
                "leave it out, or plan with it",
            );
        }
    }
    Ok(())
}

/// Checks that an operand lies in its buffer, and that the plan's accesses fit it.
fn check_operand(plan: &Plan, role: Role, shape: &Shape, buffer: &BufferArg) -> Result<()> {
    let operand = plan.operand(role);
    let ((row, batch), outer, name) = match role {
        Role::Rows => (shape.a, shape.m, "A"),
        Role::Columns => (shape.b, plan.columns(shape.n), "B"),
    };
    let (rows, extent) = if operand.along_k {
        (outer, shape.k)
    } else {
        (shape.k, outer)
    };
    if rows * extent * shape.batches == 0 {
        return Ok(());
    }
    if row < extent {
        return wrong(
            format!("rows of {name} are {row} apart and {extent} long"),
            "let them not overlap",
        );
    }
    let needed = (shape.batches - 1) * batch + (rows - 1) * row + extent;
    check_length(name, buffer, needed)?;
    // The halves of B lie apart by the extent of one.
    let extent = if operand.along_k {
        extent
    } else {
        extent / plan.columns(1)
    };
    if (row | batch | extent) % operand.width != 0 {
        return wrong(
            format!(
                "accesses of {} elements, but {name} has rows of {extent}, {row} apart, batches {batch} apart",
                operand.width
            ),
            "plan for this shape",
        );
    }
    let rows = match (operand.along_k, operand.pair) {
        (true, None) => operand.outer.min(outer),
        (true, Some(_)) => operand.outer.min(outer) + shape.n,
        (false, _) => operand.depth,
    };
    let span = rows * row + extent;
    if span * plan.element.bytes() >= 1 << 32 {
        return wrong(
            format!("a tile of {name} spans {span} elements"),
            "divide the product along C",
        );
    }
    Ok(())
}

fn check_results(plan: &Plan, shape: &Shape, parts: usize, arguments: &Arguments) -> Result<()> {
    let results = shape.batches * shape.m * shape.n;
    let sums = plan.columns(results);
    let backward = plan.epilogue.activation == Activation::SwiGluBackward;
    let beside = if backward { 2 * results } else { sums };
    check_length(
        "C",
        &arguments.out,
        if backward { 2 * results } else { results },
    )?;
    let extras = &arguments.extras;
    for (name, buffer, needed) in [
        ("the bias", &extras.bias, plan.columns(shape.n)),
        (
            "the residual or pre-activation",
            &extras.other,
            if backward { beside } else { results },
        ),
        ("the buffer for the pre-activation", &extras.saved, beside),
        (
            "the buffer for sums over K",
            &arguments.sums,
            plan.sums_extent(shape),
        ),
    ] {
        if let Some(buffer) = buffer {
            check_length(name, buffer, needed)?;
        }
    }
    let partial = if plan.split { parts * sums } else { 0 };
    fits("a workspace", partial)?;
    check_grid(plan, shape)
}

/// Checks that the workgroups along x are no more than the target launches.
fn check_grid(plan: &Plan, shape: &Shape) -> Result<()> {
    let (rows, columns) = plan.result_tile();
    let mut workgroups = shape.m.div_ceil(rows) * shape.n.div_ceil(columns);
    if plan.split {
        workgroups = workgroups.max((shape.m * shape.n).div_ceil(UNITS));
    }
    // WebGPU's guaranteed limit is the one of layers.
    if plan.target == Target::Portable && workgroups > MOST_LAYERS {
        return wrong(
            format!("{workgroups} workgroups, more than {MOST_LAYERS}"),
            "divide the product along C",
        );
    }
    Ok(())
}

fn check_length(name: &str, buffer: &BufferArg, needed: usize) -> Result<()> {
    if buffer.len() < needed {
        return wrong(
            format!("{name} has {} elements, {needed} are needed", buffer.len()),
            "check the shape",
        );
    }
    fits(name, needed)
}

fn fits(name: &str, elements: usize) -> Result<()> {
    match u32::try_from(elements) {
        Ok(_) => Ok(()),
        Err(_) => wrong(
            format!("{name} of {elements} elements, more than 32 bits count"),
            "divide the product",
        ),
    }
}
