//! Whether a launch can be what it asks for.

use cubecl_core::prelude::BufferArg;

use super::launch::{Arguments, Extras};
use super::plan::Plan;
use super::problem::{Activation, Epilogue, Shape};
use super::reduce::UNITS;
use super::tile::Role;
use crate::argument::memory;
use crate::error::{Error, Result};
use crate::matrix::instruction::{Element, Target};

const OPERATION: &str = "gemm";

fn wrong<T>(problem: String, remedy: &str) -> Result<T> {
    Err(Error::argument(OPERATION, problem, remedy))
}

/// Checks a product of its own.
pub fn check(plan: &Plan, shape: &Shape, parts: usize, arguments: &Arguments) -> Result<()> {
    plan.check()?;
    check_extras(&plan.epilogue, arguments, plan.sums_of.is_some())?;
    let Shape {
        batches,
        m,
        n,
        k,
        a,
        b,
    } = *shape;
    // What is computed below from two or three of them does not overflow then.
    for number in [batches, m, n, k, a.0, a.1, b.0, b.1, parts] {
        fits("an extent", number as u128)?;
    }
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
    if plan.sums_of.is_some() && (batches != 1 || m == 0 || n == 0) {
        return wrong(
            format!("sums over K of {batches} batches of {m} x {n}"),
            "launch each batch by itself, and none without results",
        );
    }
    for (role, name, buffer) in [
        (Role::Rows, "A", &arguments.a),
        (Role::Columns, "B", &arguments.b),
    ] {
        check_length(name, buffer, span(plan, role, shape)?, plan.element)?;
    }
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

/// Elements from an operand's first to its last, none if there is nothing to read.
///
/// # Errors
/// Rows that overlap, accesses of the plan that do not fit, tiles that 32-bit offsets do not span.
pub fn span(plan: &Plan, role: Role, shape: &Shape) -> Result<u128> {
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
    if [rows, extent, shape.batches].contains(&0) {
        return Ok(0);
    }
    if row < extent {
        return wrong(
            format!("rows of {name} are {row} apart and {extent} long"),
            "let them not overlap",
        );
    }
    let distance = |count: usize, stride: usize| (count as u128 - 1) * stride as u128;
    let needed = distance(shape.batches, batch) + distance(rows, row) + extent as u128;
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
    let span = rows as u128 * row as u128 + extent as u128;
    if span * plan.element.bytes() as u128 >= 1 << 32 {
        return wrong(
            format!("a tile of {name} spans {span} elements"),
            "divide the product along C",
        );
    }
    Ok(needed)
}

fn check_results(plan: &Plan, shape: &Shape, parts: usize, arguments: &Arguments) -> Result<()> {
    let results = shape.batches as u128 * shape.m as u128 * shape.n as u128;
    let extras = &arguments.extras;
    let needs = Needs::new(plan, results, plan.columns(shape.n) as u128);
    check_length("C", &arguments.out, needs.out, plan.output)?;
    needs.check_extras(plan, extras)?;
    if let Some(sums) = &arguments.sums {
        let needed = plan.sums_extent(shape) as u128;
        check_length("the buffer for sums over K", sums, needed, Element::F32)?;
        let lines = (parts * plan.tiling.depth / plan.chunk()) as u128;
        fits("a workspace", lines * needed)?;
    }
    let sums = plan.columns(1) as u128 * results;
    fits(
        "a workspace",
        if plan.split { parts as u128 * sums } else { 0 },
    )?;
    check_grid(plan, shape)
}

/// Elements that the buffers beside A and B have at least.
#[derive(Debug, Clone, Copy, Default)]
pub struct Needs {
    /// C.
    pub out: u128,
    /// The residual or pre-activation that is read.
    other: u128,
    /// The pre-activation that is written.
    saved: u128,
    bias: u128,
}

impl Needs {
    /// For so many results, and so many columns of sums.
    pub fn new(plan: &Plan, results: u128, columns: u128) -> Self {
        let backward = plan.epilogue.activation == Activation::SwiGluBackward;
        let wide = if backward { 2 * results } else { results };
        Self {
            out: wide,
            other: wide,
            saved: plan.columns(1) as u128 * results,
            bias: columns,
        }
    }

    /// For both.
    pub fn max(self, other: Self) -> Self {
        Self {
            out: self.out.max(other.out),
            other: self.other.max(other.other),
            saved: self.saved.max(other.saved),
            bias: self.bias.max(other.bias),
        }
    }

    /// Checks what the epilogue has beside C.
    pub fn check_extras(&self, plan: &Plan, extras: &Extras) -> Result<()> {
        for (name, buffer, needed) in [
            ("the bias", &extras.bias, self.bias),
            ("the residual or pre-activation", &extras.other, self.other),
            (
                "the buffer for the pre-activation",
                &extras.saved,
                self.saved,
            ),
        ] {
            if let Some(buffer) = buffer {
                check_length(name, buffer, needed, plan.element)?;
            }
        }
        Ok(())
    }
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

/// Checks that a buffer has memory for `needed` elements.
pub fn check_length(name: &str, buffer: &BufferArg, needed: u128, element: Element) -> Result<()> {
    if (buffer.len() as u128) < needed {
        return wrong(
            format!("{name} has {} elements, {needed} are needed", buffer.len()),
            "check the shape",
        );
    }
    fits(name, needed)?;
    memory(OPERATION, name, buffer, element.bytes())
}

/// Checks that `elements` are as many as 32-bit places tell apart.
pub fn fits(name: &str, elements: u128) -> Result<u32> {
    u32::try_from(elements).or_else(|_| {
        wrong(
            format!("{name} of {elements} elements, more than 32 bits count"),
            "divide the product",
        )
    })
}
