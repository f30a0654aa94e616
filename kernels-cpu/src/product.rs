//! `C = A B` or `C += A B` of f32 matrices, whose operands may be anything that can be packed into panels: a matrix with strides, or
//! the patches of an image.
//!
//! As in BLIS (van Zee and van de Geijn, 2015): blocks of the right operand are packed for the second-level cache, rows of the left
//! one for the first, and a register tile is computed at a time. Tiles are whole tasks of their own; the depth is cut in one way for all
//! shapes, so that the bits of a result depend neither on threads nor on how tasks are cut.

mod halves;
mod matrix;
mod tile;
mod transpose;

pub use halves::{Halves, multiplies_pairs};
pub use matrix::Matrix;
pub use tile::Tile;
pub(crate) use tile::{VECTORS, many_registers};

use std::ops::Range;

use crate::parallel::{Shared, for_tasks, threads, with_scratch};

/// What the depth is cut into.
pub const DEPTH: usize = 256;

/// Columns whose panels of [`DEPTH`] fill half of a second-level cache.
const COLUMNS: usize = 512;

/// Multiplications that are worth another thread.
pub(crate) const PARALLEL: usize = 1 << 22;

/// One operand: the left one `[rows, depth]`, or the right one `[depth, columns]`.
pub trait Operand: Sync {
    /// Writes a panel: element (across, depth) to `panel[(d - depth.start) * width + (i - across.start)]`, and zeros where `width` is
    /// more than there is across. `across` are rows of the left operand, columns of the right one.
    fn pack(&self, across: Range<usize>, depth: Range<usize>, width: usize, panel: &mut [f32]);

    /// Writes the panels of `across`, one after the other.
    fn pack_all(
        &self,
        across: Range<usize>,
        depth: Range<usize>,
        width: usize,
        panels: &mut [f32],
    ) {
        each(self, across, depth, width, panels);
    }

    /// Whether what is packed as an f32 is the bits of two bf16, which follow each other over the depth. Both operands do, or
    /// neither.
    fn pairs(&self) -> bool {
        false
    }

    /// Asks for the memory of a panel that is packed soon.
    fn prefetch(&self, _across: Range<usize>, _depth: Range<usize>) {}
}

/// Packs panel by panel.
fn each<T: Operand + ?Sized>(
    operand: &T,
    across: Range<usize>,
    depth: Range<usize>,
    width: usize,
    panels: &mut [f32],
) {
    let starts = across.clone().step_by(width);
    for (start, panel) in starts.zip(panels.chunks_exact_mut(width * depth.len().max(1))) {
        let across = start..(start + width).min(across.end);
        operand.pack(across, depth.clone(), width, panel);
    }
}

/// Where a product goes.
pub struct Output<'a> {
    /// Row-major, `stride` elements a row.
    pub values: &'a mut [f32],
    /// From one row to the next.
    pub stride: usize,
    /// Whether the product is added to what is there.
    pub add: bool,
}

/// What is done to a piece of a row as soon as it is complete: its row, its first column, and its values, to be changed. A piece is as
/// long as a task has columns.
pub type Epilogue<'a> = &'a (dyn Fn(usize, usize, &mut [f32]) + Sync);

/// Sizes of a product: `[rows, depth]` by `[depth, columns]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Rows of the left operand and of the result.
    pub rows: usize,
    /// Columns of the right operand and of the result.
    pub columns: usize,
    /// What is summed over.
    pub depth: usize,
}

impl Size {
    fn multiplications(self) -> usize {
        self.rows
            .saturating_mul(self.columns)
            .saturating_mul(self.depth)
    }
}

/// `left right` into `out`, on all threads where that pays; `epilogue`, if there is one, ends each piece of a row.
///
/// # Panics
/// If `out` is too short.
pub fn product(
    size: Size,
    left: &dyn Operand,
    right: &dyn Operand,
    out: Output,
    epilogue: Option<Epilogue>,
) {
    check(size, &out);
    let target = Target::of(out);
    for_blocks(size, |tile, block| {
        multiply(tile, block, [left, right], &target, epilogue);
    });
}

/// `left right`, of which each piece of a row is handed out as soon as it is complete, and kept nowhere.
pub fn product_rows(size: Size, left: &dyn Operand, right: &dyn Operand, take: Epilogue) {
    for_blocks(size, |tile, block| {
        let (rows, columns) = (block.rows.len(), block.columns.len());
        // What is complete at once needs no more than the rows of a tile.
        let strips = size.depth <= DEPTH;
        let rows = if strips { tile.rows } else { rows };
        with_scratch(rows * columns, |values| {
            let target = Target {
                values: Shared::new(values),
                stride: columns,
                add: false,
                origin: [block.rows.start, block.columns.start],
                strips,
            };
            multiply(tile, block, [left, right], &target, Some(take));
        });
    });
}

/// Calls `work` with each task of a product, on all threads where that pays.
fn for_blocks(size: Size, work: impl Fn(Tile, &Block) + Sync + Send) {
    let tile = Tile::of_this_cpu();
    let [rows, columns] = task(size, tile);
    let across = size.columns.div_ceil(columns);
    let tasks = size.rows.div_ceil(rows) * across;
    for_tasks(tasks, size.multiplications() >= PARALLEL, |i| {
        let (row, column) = (i / across * rows, i % across * columns);
        let block = Block {
            rows: row..(row + rows).min(size.rows),
            columns: column..(column + columns).min(size.columns),
            depth: size.depth,
        };
        work(tile, &block);
    });
}

/// [`product`] on this thread alone.
///
/// # Panics
/// If `out` is too short.
pub fn product_here(
    size: Size,
    left: &dyn Operand,
    right: &dyn Operand,
    out: Output,
    epilogue: Option<Epilogue>,
) {
    check(size, &out);
    let target = Target::of(out);
    for start in (0..size.columns).step_by(COLUMNS) {
        let block = Block {
            rows: 0..size.rows,
            columns: start..(start + COLUMNS).min(size.columns),
            depth: size.depth,
        };
        let operands = [left, right];
        multiply(Tile::of_this_cpu(), &block, operands, &target, epilogue);
    }
}

fn check(size: Size, out: &Output) {
    let last = size.rows.saturating_sub(1) * out.stride + size.columns;
    assert!(
        size.rows == 0 || size.columns == 0 || last <= out.values.len(),
        "an output of {} elements for {size:?} with {} a row",
        out.values.len(),
        out.stride
    );
}

/// Rows and columns of a task: those of which the slowest thread is ready first. A task costs its multiplications and its packing,
/// and an eighth of one is waited for at the end.
fn task(size: Size, tile: Tile) -> [usize; 2] {
    /// What packing a row costs for each block of columns, and packing a column, in multiplications.
    const PACKING: [usize; 2] = [20, 12];
    let threads = threads();
    let cut = |n: usize, parts: usize, multiple: usize| {
        n.div_ceil(parts).next_multiple_of(multiple).max(multiple)
    };
    let least = size.columns.div_ceil(COLUMNS).max(1);
    let most = 4 * threads;
    let parts = (least..=most.max(least))
        .flat_map(|across| (1..=most.div_ceil(across)).map(move |down| [down, across]));
    let tasks = parts.map(|[down, across]| {
        [
            cut(size.rows, down, tile.rows),
            cut(size.columns, across, tile.columns),
        ]
    });
    let cost = |&[rows, columns]: &[usize; 2]| {
        let tasks = size.rows.div_ceil(rows) * size.columns.div_ceil(columns);
        let one = (rows + PACKING[1]) * (columns + PACKING[0]);
        (8 * tasks.div_ceil(threads) + 1) * one
    };
    tasks.min_by_key(cost).unwrap_or([1, 1])
}

#[derive(Clone, Copy)]
struct Target<'a> {
    values: Shared<'a>,
    stride: usize,
    add: bool,
    /// Row and column of the first value.
    origin: [usize; 2],
    /// Whether there is memory for the rows of one tile only.
    strips: bool,
}

impl<'a> Target<'a> {
    fn of(out: Output<'a>) -> Self {
        Self {
            values: Shared::new(out.values),
            stride: out.stride,
            add: out.add,
            origin: [0, 0],
            strips: false,
        }
    }
}

struct Block {
    rows: Range<usize>,
    columns: Range<usize>,
    depth: usize,
}

fn multiply(
    tile: Tile,
    block: &Block,
    [left, right]: [&dyn Operand; 2],
    target: &Target,
    epilogue: Option<Epilogue>,
) {
    let pairs = left.pairs();
    assert!(pairs == right.pairs(), "one operand is packed as pairs");
    let panels = block.columns.len().div_ceil(tile.columns);
    let deepest = block.depth.min(DEPTH);
    let (right_len, left_len) = (panels * tile.columns * deepest, tile.rows * deepest);
    with_scratch(right_len + left_len, |scratch| {
        let (right_panels, left_panel) = scratch.split_at_mut(right_len);
        let mut start = 0;
        // A depth of zero gives zeros.
        loop {
            let depth = start..(start + DEPTH).min(block.depth);
            let panel = tile.columns * depth.len();
            let packed = &mut right_panels[..panels * panel];
            right.pack_all(block.columns.clone(), depth.clone(), tile.columns, packed);
            for row in block.rows.clone().step_by(tile.rows) {
                let rows = row..(row + tile.rows).min(block.rows.end);
                let left_panel = &mut left_panel[..tile.rows * depth.len()];
                left.pack(rows.clone(), depth.clone(), tile.rows, left_panel);
                let next = rows.end..(rows.end + tile.rows).min(block.rows.end);
                left.prefetch(next, depth.clone());
                let mut target = *target;
                if target.strips {
                    target.origin[0] = row;
                }
                for i in 0..panels {
                    let first = block.columns.start + i * tile.columns;
                    let panels = [&*left_panel, &right_panels[i * panel..][..panel]];
                    let columns = first..(first + tile.columns).min(block.columns.end);
                    let mut piece = Piece {
                        target: &target,
                        rows: rows.clone(),
                        columns,
                        add: target.add || start > 0,
                    };
                    tile.multiply(panels, pairs, &mut piece);
                }
                if depth.end == block.depth
                    && let Some(epilogue) = epilogue
                {
                    let mut piece = Piece {
                        target: &target,
                        rows,
                        columns: block.columns.clone(),
                        add: false,
                    };
                    piece.end(epilogue);
                }
            }
            start = depth.end;
            if start == block.depth {
                return;
            }
        }
    });
}

/// A part of the result: a register tile's, or all columns of a task in some rows.
struct Piece<'a> {
    target: &'a Target<'a>,
    rows: Range<usize>,
    columns: Range<usize>,
    add: bool,
}

impl Piece<'_> {
    /// The part of one of its rows.
    #[inline(always)]
    #[expect(unsafe_code, reason = "pieces are blocks of a matrix")]
    fn row(&mut self, row: usize) -> &mut [f32] {
        let [first_row, first_column] = self.target.origin;
        let start = (row - first_row) * self.target.stride + self.columns.start - first_column;
        // SAFETY: the blocks of tasks do not overlap, nor do a task's pieces, which are used one after the other.
        unsafe { self.target.values.range(start, self.columns.len()) }
    }

    fn end(&mut self, epilogue: Epilogue) {
        let first = self.columns.start;
        for row in self.rows.clone() {
            epilogue(row, first, self.row(row));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        let number = |i: usize| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0;
        (0..count).map(number).collect()
    }

    /// Compares with the definition in f64, for operands with every kind of strides.
    fn agrees(size: Size, add: bool) {
        let Size {
            rows,
            columns,
            depth,
        } = size;
        let (a, b) = (numbers(rows * depth, 1), numbers(depth * columns, 2));
        let stride = columns + 3;
        for transposed in [[false, false], [true, false], [false, true], [true, true]] {
            let left = match transposed[0] {
                false => Matrix::new(&a, depth, 1),
                true => Matrix::new(&a, 1, rows),
            };
            let right = match transposed[1] {
                false => Matrix::new(&b, 1, columns),
                true => Matrix::new(&b, depth, 1),
            };
            let before = numbers(rows * stride, 3);
            let mut values = before.clone();
            let out = Output {
                values: &mut values,
                stride,
                add,
            };
            let double = |row: usize, column: usize, values: &mut [f32]| {
                for (i, x) in values.iter_mut().enumerate() {
                    *x = 2.0 * *x + (row * 1000 + column + i) as f32;
                }
            };
            product(size, &left, &right, out, Some(&double));
            for row in 0..rows {
                for column in 0..stride {
                    let own = f64::from(values[row * stride + column]);
                    let old = f64::from(before[row * stride + column]);
                    if column >= columns {
                        assert_eq!(own, old, "beyond the columns");
                        continue;
                    }
                    let mut sum = if add { old } else { 0.0 };
                    for d in 0..depth {
                        let a = if transposed[0] {
                            a[d * rows + row]
                        } else {
                            a[row * depth + d]
                        };
                        let b = if transposed[1] {
                            b[column * depth + d]
                        } else {
                            b[d * columns + column]
                        };
                        sum += f64::from(a) * f64::from(b);
                    }
                    let expected = 2.0 * sum + (row * 1000 + column) as f64;
                    let bound = 1e-6 * (depth as f64 + expected.abs());
                    assert!((own - expected).abs() <= bound, "{size:?} {own} {expected}");
                }
            }
        }
    }

    #[test]
    fn products_equal_their_definition() {
        for [rows, columns, depth] in [
            [1, 1, 1],
            [3, 5, 0],
            [12, 32, 7],
            [13, 33, 257],
            [100, 70, 300],
            [5, 600, 40],
            [200, 9, 513],
        ] {
            for add in [false, true] {
                let size = Size {
                    rows,
                    columns,
                    depth,
                };
                agrees(size, add);
            }
        }
    }

    #[test]
    fn threads_and_tasks_change_no_bit() {
        let size = Size {
            rows: 150,
            columns: 700,
            depth: 600,
        };
        let (a, b) = (numbers(150 * 600, 1), numbers(600 * 700, 2));
        let (left, right) = (Matrix::new(&a, 600, 1), Matrix::new(&b, 1, 700));
        same_on_any_threads(size, &left, &right);
        // And pairs of bf16, or what stands for them.
        let half = |x: &[f32]| x.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>();
        let (a, b) = (half(&a), half(&b));
        let (left, right) = (Halves::new(&a, 600, 1, 600), Halves::new(&b, 1, 700, 600));
        let depth = Halves::places(600);
        same_on_any_threads(Size { depth, ..size }, &left, &right);
    }

    fn same_on_any_threads(size: Size, left: &dyn Operand, right: &dyn Operand) {
        let run = |threads: usize| {
            let mut values = vec![0.0; 150 * 700];
            let out = Output {
                values: &mut values,
                stride: 700,
                add: false,
            };
            match threads {
                0 => product_here(size, left, right, out, None),
                n => {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build();
                    pool.unwrap()
                        .install(|| product(size, left, right, out, None));
                }
            }
            values
        };
        let alone = run(0);
        for threads in [1, 2, 7] {
            assert!(alone == run(threads), "{threads} threads");
        }
    }
}
