//! Launches on a device.

use cubecl_core::client::Client;
use cubecl_core::prelude::*;
use cubecl_core::server::Handle;

use super::grouped::Table;
use super::plan::Plan;
use super::problem::{Epilogue, Shape};
use super::{grouped as many, product, reduce, request};
use crate::argument::{cubes, elements, filler, runs_on};
use crate::error::Result;
use crate::hip::emit::elem_type;
use crate::hip::run::bytes;
use crate::matrix::instruction::Element;

const OPERATION: &str = "gemm";

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

/// Checks what [`launch`] is given: what this takes, a launch does not refuse.
///
/// # Errors
/// Those of [`launch`].
pub fn check(
    client: &Client,
    plan: &Plan,
    shape: &Shape,
    parts: usize,
    arguments: &Arguments,
) -> Result<()> {
    runs_on(OPERATION, client, plan.target)?;
    request::check(plan, shape, parts, arguments)?;
    let whole = Shape {
        n: plan.columns(shape.n),
        ..*shape
    };
    product_grid(client, plan, &whole, parts)?;
    reduction_grid(client, [shape.batches, shape.m, shape.n])?;
    reduction_grid(client, [1, 1, plan.sums_extent(shape)])?;
    Ok(())
}

/// Computes `C = epilogue(A B)`, K divided into `parts` if the plan is a split one (else 1).
///
/// A split plan takes a workspace of `4 parts batches m n` bytes (SwiGLU: twice that), sums over K one of
/// `4 parts m depth / chunk` (or n); both are the client's, and free again when the kernels have run.
///
/// # Errors
/// Buffers that the plan lacks, does not know, or that are too small; sizes beyond 32 bits; accesses that do not fit the
/// operands; another device's plan, or more workgroups than the device launches.
pub fn launch(
    client: &Client,
    plan: &Plan,
    shape: &Shape,
    parts: usize,
    arguments: Arguments,
) -> Result<()> {
    check(client, plan, shape, parts, &arguments)?;
    if [shape.batches, shape.m, shape.n].contains(&0) {
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
    // Where there is nothing to sum, the kernel reads the front of both in vain.
    let (a, b) = match shape.k {
        0 => (filler(client, 4), filler(client, 4)),
        _ => (a, b),
    };
    let columns = plan.columns(shape.n);
    let whole = Shape {
        n: if plan.split { columns } else { shape.n },
        ..*shape
    };
    let extent = plan.sums_extent(shape);
    let grid = product_grid(client, plan, &whole, parts)?;
    let reduction = reduction_grid(client, [shape.batches, shape.m, shape.n])?;
    let summation = reduction_grid(client, [1, 1, extent])?;
    let lines = parts * plan.tiling.depth / plan.chunk();
    let lasting = sums.map(|out| (Workspace::new(client, lines * extent), out));
    let sums = lasting.as_ref().map(|(workspace, _)| workspace.argument());
    if plan.split {
        let partial = Workspace::new(client, parts * shape.batches * shape.m * columns);
        launch_product(
            client,
            plan,
            (&whole, grid),
            (part, parts),
            (a, b, partial.argument()),
            Extras::default(),
            sums,
        );
        launch_reduction(
            client,
            plan,
            (shape.m, shape.n, reduction),
            parts,
            partial.argument(),
            out,
            extras,
        );
    } else {
        launch_product(
            client,
            plan,
            (&whole, grid),
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
            (1, extent, summation),
            lines,
            workspace.argument(),
            out,
            Extras::default(),
        );
    }
    Ok(())
}

/// Computes the products of a table.
///
/// # Errors
/// Buffers that the table's plan lacks or does not know, or that do not hold what its groups name; another device's plan.
pub fn launch_grouped(client: &Client, table: &Table, arguments: Arguments) -> Result<()> {
    let plan = &table.plan;
    runs_on(OPERATION, client, plan.target)?;
    table.check(&arguments)?;
    if table.tiles == 0 {
        return Ok(());
    }
    let cubes = cubes(OPERATION, client, [table.tiles, 1, 1])?;
    let Arguments {
        a, b, out, extras, ..
    } = arguments;
    let handle = client.create_from_slice(&bytes(&table.words));
    // SAFETY: the buffer was made of these words.
    let words = unsafe { BufferArg::from_raw_parts(handle, table.words.len()) };
    // SAFETY: the kernel stays within what the table names. That is what `Table::new` made of its groups, and `check` has found
    // it within buffers that have the memory; extras are those of the plan, which lies in the table too.
    unsafe {
        many::grouped::launch_unchecked(
            client,
            cubes,
            CubeDim::new_1d(plan.units() as u32),
            a,
            b,
            out,
            extras.bias.into(),
            extras.other.into(),
            extras.saved.into(),
            words,
            table.groups,
            extras.scale,
            *plan,
            plan.types(),
            plan.sizes(),
        );
    }
    Ok(())
}

/// Workgroups of the product's kernel.
fn product_grid(client: &Client, plan: &Plan, shape: &Shape, parts: usize) -> Result<CubeCount> {
    let (rows, columns) = plan.result_tile();
    let tiles = elements(
        OPERATION,
        &[shape.m.div_ceil(rows), shape.n.div_ceil(columns)],
    )?;
    let layers = elements(OPERATION, &[shape.batches, parts])?;
    cubes(OPERATION, client, [tiles as u32, 1, layers as u32])
}

/// Workgroups of the reduction of results `[batches, m, n]`.
fn reduction_grid(client: &Client, [batches, m, n]: [usize; 3]) -> Result<CubeCount> {
    let workgroups = elements(OPERATION, &[m, n])?.div_ceil(reduce::UNITS);
    cubes(OPERATION, client, [workgroups as u32, 1, batches as u32])
}

/// The product's kernel; sizes were checked.
fn launch_product(
    client: &Client,
    plan: &Plan,
    (shape, grid): (&Shape, CubeCount),
    (part, parts): (usize, usize),
    (a, b, out): (BufferArg, BufferArg, BufferArg),
    extras: Extras,
    sums: Option<BufferArg>,
) {
    let Shape { m, n, k, .. } = *shape;
    let (wide_a, wide_b) = plan.width;
    // SAFETY: the kernel draws its reads back to the extents and masks its writes by them; `check` has found that the buffers
    // have memory for these extents, that accesses divide them, and that no place exceeds 32 bits.
    unsafe {
        product::gemm::launch_unchecked(
            client,
            grid,
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
    (m, n, grid): (usize, usize, CubeCount),
    parts: usize,
    partial: BufferArg,
    out: BufferArg,
    extras: Extras,
) {
    // SAFETY: units beyond the results do nothing; `partial` was allocated for these extents, and `check` has found that the
    // others have memory for them.
    unsafe {
        reduce::reduce::launch_unchecked(
            client,
            grid,
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
