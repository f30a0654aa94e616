//! Many products of different shapes in one launch, e.g. one for each expert of a mixture.

use cubecl_core as cubecl;
use cubecl_core::ir::ElemType;
use cubecl_core::prelude::*;

use super::epilogue::Results;
use super::launch::Arguments;
use super::plan::Plan;
use super::problem::{Layout, Shape};
use super::product::{Factors, Job, tile_of, work};
use super::request::{Needs, check_extras, check_length, fits, span};
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

/// The products of a launch, by a plan that fits all of them.
#[derive(Debug, Clone)]
pub struct Table {
    pub(super) plan: Plan,
    /// As the kernel reads it: [`FIELDS`] numbers a group, and as many that end it.
    pub(super) words: Vec<u32>,
    pub(super) groups: u32,
    pub(super) tiles: u32,
    a: u128,
    b: u128,
    needs: Needs,
}

impl Table {
    /// The table of `groups`, whose results lie apart.
    ///
    /// # Errors
    /// Split K, sums over K; places or sizes that do not fit the plan's accesses or 32 bits; groups whose results overlap.
    pub fn new(plan: &Plan, groups: &[Group]) -> Result<Self> {
        plan.check_grouped()?;
        let mut table = Self {
            plan: *plan,
            words: Vec::with_capacity((groups.len() + 1) * FIELDS as usize),
            groups: fits("a table", groups.len() as u128)?,
            tiles: 0,
            // Where there is nothing to sum, the kernel reads the front in vain.
            a: plan.width.0 as u128,
            b: plan.width.1 as u128,
            needs: Needs::default(),
        };
        for (number, group) in groups.iter().enumerate() {
            table.add(number, group)?;
        }
        let ends = [0, 0, 0, 0, 0, 0, 0, table.tiles];
        table.words.extend(ends);
        apart(groups)?;
        Ok(table)
    }

    fn add(&mut self, number: usize, group: &Group) -> Result<()> {
        let plan = self.plan;
        let Group {
            m,
            n,
            k,
            a,
            b,
            out,
            bias,
        } = *group;
        for number in [m, n, k, a, b, out, bias, self.tiles as usize] {
            self.words.push(fits("a group", number as u128)?);
        }
        let inner = |role, outer| if plan.layout.along_k(role) { k } else { outer };
        let aligned = (a | inner(Role::Rows, m)) % plan.width.0 == 0
            && (b | inner(Role::Columns, n)) % plan.width.1 == 0;
        if !aligned {
            return Err(Error::argument(
                "grouped gemm",
                format!(
                    "group {number}, {group:?}, is not aligned to accesses of {:?} elements",
                    plan.width
                ),
                "plan with a shape whose extents and strides divide those of all groups",
            ));
        }
        if m == 0 || n == 0 {
            return Ok(());
        }
        let paired = plan.epilogue.activation.paired();
        let shape = Shape::contiguous(plan.layout, 1, m, n, k, paired);
        let end = |start: usize, length: u128| start as u128 + length;
        self.a = self.a.max(end(a, span(&plan, Role::Rows, &shape)?));
        self.b = self.b.max(end(b, span(&plan, Role::Columns, &shape)?));
        let columns = plan.columns(n) as u128;
        let needs = Needs::new(&plan, end(out, m as u128 * n as u128), end(bias, columns));
        self.needs = self.needs.max(needs);
        // No buffer has more: a launch would refuse every one.
        for (name, elements) in [("A", self.a), ("B", self.b), ("C", self.needs.out)] {
            fits(name, elements)?;
        }
        let (rows, columns) = plan.result_tile();
        let tiles = m.div_ceil(rows) as u128 * n.div_ceil(columns) as u128;
        self.tiles = fits("a table", u128::from(self.tiles) + tiles)?;
        Ok(())
    }

    /// As the kernel reads it, eight numbers a group and eight that end it.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Workgroups of the kernel.
    pub const fn tiles(&self) -> u32 {
        self.tiles
    }

    /// Checks that every group lies in the buffers.
    pub(super) fn check(&self, arguments: &Arguments) -> Result<()> {
        let plan = &self.plan;
        check_extras(&plan.epilogue, arguments, false)?;
        if self.tiles == 0 {
            return Ok(());
        }
        check_length("A", &arguments.a, self.a, plan.element)?;
        check_length("B", &arguments.b, self.b, plan.element)?;
        check_length("C", &arguments.out, self.needs.out, plan.output)?;
        self.needs.check_extras(plan, &arguments.extras)
    }
}

/// Checks that no two groups write to the same place.
fn apart(groups: &[Group]) -> Result<()> {
    let results = |group: &Group| group.out..group.out + group.m * group.n;
    let mut all: Vec<_> = (0..groups.len())
        .filter(|&i| !results(&groups[i]).is_empty())
        .collect();
    all.sort_by_key(|&i| groups[i].out);
    for pair in all.windows(2) {
        let [before, after] = [pair[0], pair[1]].map(|i| results(&groups[i]));
        if before.end > after.start {
            return Err(Error::argument(
                "grouped gemm",
                format!(
                    "groups {} and {} have results at {before:?} and {after:?}, which overlap",
                    pair[0], pair[1]
                ),
                "give each group a part of C of its own",
            ));
        }
    }
    Ok(())
}

/// `C = epilogue(A B)` for each group of `table`, which has `groups` entries and one that ends it.
///
/// Grid: at least the number of tiles of all groups; what is more does nothing.
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
