//! Launches on a device.

use cubecl_core::client::Client;
use cubecl_core::prelude::*;
use cubecl_core::server::Handle;

use super::plan::Plan;
use super::problem::{Epilogue, Shape};
use super::request::{check, check_extras};
use super::{grouped as many, product, reduce};
use crate::error::{Error, Result};
use crate::hip::emit::elem_type;
use crate::matrix::instruction::Element;

/// What an epilogue reads and writes beside C; which of it there is, [`Epilogue`] says. All contiguous, of the element type.
#[derive(Default)]
pub struct Extras {
    /// The bias `[n]` (SwiGLU: `[2 n]`).
    pub bias: Option<BufferArg>,
    /// The residual `[batches, m, n]`, or the saved pre-activation: the same (SwiGLU's backward: `[batches, m, 2 n]`).
    pub other: Option<BufferArg>,
    /// Where the pre-activation goes: `[batches, m, n]` (SwiGLU: `[batches, m, 2 n]`).
    pub saved: Option<BufferArg>,
    /// The factor of [`Epilogue::scale`].
    pub scale: f32,
}

/// The buffers of a product.
pub struct Arguments {
    /// A, of the plan's element type.
    pub a: BufferArg,
    /// B, of the plan's element type.
    pub b: BufferArg,
    /// C, contiguous, of the plan's output type: `[batches, m, n]` (SwiGLU's backward: `[batches, m, 2 n]`).
    pub out: BufferArg,
    /// What the epilogue has beside it.
    pub extras: Extras,
    /// Where the sums of [`Plan::sums_of`] go, f32 `[m]` or `[n]`: added to what is there if the epilogue accumulates.
    pub sums: Option<BufferArg>,
}

/// Memory that one kernel leaves to the next.
struct Workspace {
    handle: Handle,
    length: usize,
}

impl Workspace {
    /// Room for `length` f32.
    fn new(client: &Client, length: usize) -> Self {
        let handle = client.empty(length * Element::F32.bytes());
        Self { handle, length }
    }

    fn argument(&self) -> BufferArg {
        // SAFETY: the handle was made for this length.
        unsafe { BufferArg::from_raw_parts(self.handle.clone(), self.length) }
    }
}

/// Computes `C = epilogue(A B)`, K divided into `parts` if the plan is a split one (else 1).
///
/// A split plan takes a workspace of `4 parts batches m n` bytes (SwiGLU: twice that), sums over K one of
/// `4 parts m depth / chunk` (or n); both are the client's, and free again when the kernels have run.
///
/// # Errors
/// Buffers that the plan lacks, does not know, or that are too small; sizes beyond 32 bits; accesses that do not fit the operands.
pub fn launch(
    client: &Client,
    plan: &Plan,
    shape: &Shape,
    parts: usize,
    arguments: Arguments,
) -> Result<()> {
    check(plan, shape, parts, &arguments)?;
    if shape.batches * shape.m * shape.n == 0 {
        return Ok(());
    }
    let tiles = plan.depth_tiles(shape.k);
    let part = tiles.div_ceil(parts);
    // Those that have a tile.
    let parts = tiles.div_ceil(part);
    let Arguments {
        a,
        b,
        out,
        extras,
        sums,
    } = arguments;
    let lines = parts * plan.tiling.depth / plan.chunk();
    let extent = plan.sums_extent(shape);
    let lasting = sums.map(|out| (Workspace::new(client, lines * extent), out));
    let sums = lasting.as_ref().map(|(workspace, _)| workspace.argument());
    if plan.split {
        let columns = plan.columns(shape.n);
        let partial = Workspace::new(client, parts * shape.batches * shape.m * columns);
        let sums_of = Shape {
            n: columns,
            ..*shape
        };
        launch_product(
            client,
            plan,
            &sums_of,
            (part, parts),
            (a, b, partial.argument()),
            Extras::default(),
            sums,
        );
        launch_reduction(
            client,
            plan,
            (shape.batches, shape.m, shape.n),
            parts,
            partial.argument(),
            out,
            extras,
        );
    } else {
        launch_product(
            client,
            plan,
            shape,
            (part, parts),
            (a, b, out),
            extras,
            sums,
        );
    }
    if let Some((workspace, out)) = lasting {
        let plan = plan.sums_reduction();
        launch_reduction(
            client,
            &plan,
            (1, 1, extent),
            lines,
            workspace.argument(),
            out,
            Extras::default(),
        );
    }
    Ok(())
}

/// Computes the products of a table that [`table`](super::grouped::table) or a kernel made: `table` is of u32, with `groups`
/// entries and one that ends it; `tiles` workgroups are launched, at least as many as the table counts.
///
/// # Errors
/// Buffers that the plan lacks or does not know; a table that is too small.
pub fn launch_grouped(
    client: &Client,
    plan: &Plan,
    (table, groups, tiles): (BufferArg, u32, u32),
    arguments: Arguments,
) -> Result<()> {
    plan.check_grouped()?;
    check_extras(&plan.epilogue, &arguments, false)?;
    let entries = (groups as usize + 1) * many::FIELDS as usize;
    if table.len() < entries {
        return Err(Error::argument(
            "grouped gemm",
            format!(
                "a table of {} numbers, for {groups} groups {entries} are needed",
                table.len()
            ),
            "make the table with grouped::table",
        ));
    }
    if groups == 0 || tiles == 0 {
        return Ok(());
    }
    let Arguments {
        a, b, out, extras, ..
    } = arguments;
    // SAFETY: the kernel stays within what the table names, which is the caller's to keep within the buffers, as the
    // documentation of `Group` says; extras are those of the plan.
    unsafe {
        many::grouped::launch_unchecked(
            client,
            CubeCount::Static(tiles, 1, 1),
            CubeDim::new_1d(plan.units() as u32),
            a,
            b,
            out,
            extras.bias.into(),
            extras.other.into(),
            extras.saved.into(),
            table,
            groups,
            extras.scale,
            *plan,
            plan.types(),
            plan.sizes(),
        );
    }
    Ok(())
}

/// The product's kernel; sizes were checked.
fn launch_product(
    client: &Client,
    plan: &Plan,
    shape: &Shape,
    (part, parts): (usize, usize),
    (a, b, out): (BufferArg, BufferArg, BufferArg),
    extras: Extras,
    sums: Option<BufferArg>,
) {
    let Shape {
        batches, m, n, k, ..
    } = *shape;
    let (rows, columns) = plan.result_tile();
    let tiles = m.div_ceil(rows) * n.div_ceil(columns);
    let (wide_a, wide_b) = plan.width;
    // SAFETY: the kernel clamps its reads to the extents and masks its writes by them; `check` made sure that the buffers have
    // these extents and that no index exceeds 32 bits.
    unsafe {
        product::gemm::launch_unchecked(
            client,
            CubeCount::Static(tiles as u32, 1, (batches * parts) as u32),
            CubeDim::new_1d(plan.units() as u32),
            a,
            b,
            out,
            extras.bias.into(),
            extras.other.into(),
            extras.saved.into(),
            sums.into(),
            m as u32,
            n as u32,
            k as u32,
            (shape.a.0 / wide_a) as u32,
            (shape.a.1 / wide_a) as u32,
            (shape.b.0 / wide_b) as u32,
            (shape.b.1 / wide_b) as u32,
            part as u32,
            parts as u32,
            extras.scale,
            *plan,
            plan.types(),
            plan.sizes(),
        );
    }
}

/// The sum over `parts` of `partial`, with the plan's epilogue; sizes were checked.
fn launch_reduction(
    client: &Client,
    plan: &Plan,
    (batches, m, n): (usize, usize, usize),
    parts: usize,
    partial: BufferArg,
    out: BufferArg,
    extras: Extras,
) {
    let workgroups = (m * n).div_ceil(reduce::UNITS);
    // SAFETY: units beyond the results do nothing; `partial` was allocated for these extents, the others were checked.
    unsafe {
        reduce::reduce::launch_unchecked(
            client,
            CubeCount::Static(workgroups as u32, 1, batches as u32),
            CubeDim::new_1d(reduce::UNITS as u32),
            partial,
            out,
            extras.bias.into(),
            extras.other.into(),
            extras.saved.into(),
            m as u32,
            n as u32,
            parts as u32,
            extras.scale,
            *plan,
            [elem_type(plan.element), elem_type(plan.output)],
        );
    }
}

impl Plan {
    /// The plan by which sums over K of several parts are added.
    fn sums_reduction(&self) -> Self {
        let accumulate = self.epilogue.accumulate;
        Self {
            output: Element::F32,
            epilogue: Epilogue {
                accumulate,
                ..Epilogue::default()
            },
            sums_of: None,
            split: true,
            ..*self
        }
    }
}
