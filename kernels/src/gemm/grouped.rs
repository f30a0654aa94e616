//! Many products of different shapes in one launch, e.g. one for each expert of a mixture.

use cubecl_core as cubecl;
use cubecl_core::ir::ElemType;
use cubecl_core::prelude::*;

use super::epilogue::Results;
use super::plan::Plan;
use super::problem::Layout;
use super::product::{Factors, Job, tile_of, work};
use super::stage::Matrix;
use super::tile::Role;
use crate::error::{Error, Result};

/// One product of a group. Its operands are contiguous; all places are in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Group {
    /// Rows of C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// What is summed over; with 0, C is the epilogue of 0.
    pub k: usize,
    /// Where A begins.
    pub a: usize,
    /// Where B begins.
    pub b: usize,
    /// Where C begins. What the epilogue reads and saves beside it begins there too, or twice as far if it has two halves.
    pub out: usize,
    /// Where the bias begins.
    pub bias: usize,
}

/// Numbers of a group in the table.
pub(super) const FIELDS: u32 = 8;
/// The last of them: the group's first tile, counted over all groups.
const FIRST_TILE: u32 = 7;

/// The table of groups for the kernel, and the number of its workgroups.
///
/// # Errors
/// Places or sizes that do not fit the plan's accesses or 32 bits.
pub fn table(plan: &Plan, groups: &[Group]) -> Result<(Vec<u32>, u32)> {
    let (rows, columns) = plan.result_tile();
    let mut table = Vec::with_capacity((groups.len() + 1) * FIELDS as usize);
    let mut tiles = 0;
    for (number, group) in groups.iter().enumerate() {
        let Group {
            m,
            n,
            k,
            a,
            b,
            out,
            bias,
        } = *group;
        let inner = |role, outer| if plan.layout.along_k(role) { k } else { outer };
        let fits = (a | inner(Role::Rows, m)) % plan.width.0 == 0
            && (b | inner(Role::Columns, n)) % plan.width.1 == 0;
        if !fits {
            return Err(Error::argument(
                "grouped gemm",
                format!(
                    "group {number}, {group:?}, is not aligned to accesses of {:?} elements",
                    plan.width
                ),
                "plan with a shape whose extents and strides divide those of all groups",
            ));
        }
        for number in [m, n, k, a, b, out, bias, tiles] {
            table.push(to_u32(number)?);
        }
        tiles += m.div_ceil(rows) * n.div_ceil(columns);
    }
    let tiles = to_u32(tiles)?;
    table.extend([0, 0, 0, 0, 0, 0, 0, tiles]);
    Ok((table, tiles))
}

fn to_u32(number: usize) -> Result<u32> {
    u32::try_from(number).map_err(|_| {
        Error::argument(
            "gemm",
            format!("{number} elements or tiles, more than 32 bits count"),
            "divide the product",
        )
    })
}

/// `C = epilogue(A B)` for each group of `table`, which has `groups` entries and one that ends it.
///
/// Grid: at least the number of tiles of all groups; what is more does nothing, so that the table may be made on the device.
#[cube(launch_unchecked)]
pub fn grouped<
    E: Numeric,
    O: Numeric,
    WA: Size,
    WB: Size,
    V: Size,
    NA: Size,
    NB: Size,
    ND: Size,
>(
    left: &[Vector<E, WA>],
    right: &[Vector<E, WB>],
    out: &mut [O],
    bias: ComptimeOption<&[E]>,
    other: ComptimeOption<&[E]>,
    mut saved: ComptimeOption<&mut [E]>,
    table: &[u32],
    groups: u32,
    scale: f32,
    #[comptime] plan: Plan,
    #[define(E, O)] _types: [ElemType; 2],
    #[define(WA, WB, V, NA, NB, ND)] _sizes: [usize; 6],
) {
    if CUBE_POS_X < table[(groups * FIELDS + FIRST_TILE) as usize] {
        // The last group that begins at or before this tile: empty ones before it begin there too.
        let mut low = 0u32;
        let mut high = groups;
        while high - low > 1 {
            let middle = (low + high) / 2;
            if table[(middle * FIELDS + FIRST_TILE) as usize] <= CUBE_POS_X {
                low = middle;
            } else {
                high = middle;
            }
        }
        let job = job(table, low * FIELDS, plan);
        let mut none = Array::<f32>::new(1usize);
        work::<E, O, WA, WB, V, NA, NB, ND>(
            left, right, out, &bias, &other, &mut saved, &job, &mut none, scale, plan,
        );
    }
}

/// This workgroup's tile of the group at `entry` of the table.
#[cube]
fn job(table: &[u32], entry: u32, #[comptime] plan: Plan) -> Job {
    let m = table[entry as usize];
    let n = table[(entry + 1) as usize];
    let k = table[(entry + 2) as usize];
    let (rows, columns) = comptime!(plan.result_tile());
    let (rows, columns) = comptime!((rows as u32, columns as u32));
    let (wide_a, wide_b) = comptime!((plan.width.0 as u32, plan.width.1 as u32));
    let (row, column) = tile_of(
        CUBE_POS_X - table[(entry + FIRST_TILE) as usize],
        m.div_ceil(rows),
        n.div_ceil(columns),
    );
    let stride_a = if comptime!(plan.layout == Layout::Tn) {
        m
    } else {
        k
    };
    let stride_b = if comptime!(plan.layout == Layout::Nt) {
        k
    } else {
        n * comptime!(plan.columns(1) as u32)
    };
    Job {
        factors: Factors {
            row: row * rows,
            column: column * columns,
            first: 0,
            count: max(k.div_ceil(comptime!(plan.tiling.depth as u32)), 1),
            a: Matrix {
                start: table[(entry + 3) as usize] / wide_a,
                stride: stride_a / wide_a,
                outer: m,
                inner: k,
            },
            b: Matrix {
                start: table[(entry + 4) as usize] / wide_b,
                stride: stride_b / wide_b,
                outer: n,
                inner: k,
            },
        },
        results: Results {
            m,
            n,
            start: table[(entry + 5) as usize],
            bias: table[(entry + 6) as usize],
        },
    }
}
