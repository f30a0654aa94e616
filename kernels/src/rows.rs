//! Rows of a matrix over workgroups: which unit holds which part of a row.
//!
//! A row is shared by a part of a wave, a wave, or a workgroup. Its elements are accessed as vectors; vector `v` of a row is
//! held by unit `v % row_units`, as its chunk `v / row_units`.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use crate::matrix::instruction::{Element, Target};
use crate::matrix::lanes::{Join, exchange, join_workgroup};

/// Bytes of the widest access.
const ACCESS: usize = 16;
/// Units of a workgroup whose waves work on rows of their own.
const WAVES: u32 = 256;
/// WebGPU's guaranteed limit of workgroups along a dimension, rounded down to a power of two.
const GRID: u32 = 1 << 15;

/// How rows of one length are dealt out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rows {
    /// Elements of a row.
    pub columns: usize,
    /// Elements of an access. It divides `columns`, so that every row is aligned to it.
    pub vector: usize,
    /// Units that share a row: a power of two, at most a wave, or all of the workgroup.
    pub row_units: u32,
    /// Units of a workgroup.
    pub units: u32,
}

/// The widest access, up to 16 bytes, that divides all of `lengths` (elements of `bytes` each).
pub fn vector(target: Target, bytes: usize, lengths: &[usize]) -> usize {
    // WGSL's vectors end at four.
    let widest = match target {
        Target::Portable => 4,
        _ => ACCESS / bytes,
    };
    let fits = |vector: &usize| lengths.iter().all(|length| length % vector == 0);
    (0..=widest.ilog2())
        .rev()
        .map(|log| 1 << log)
        .find(fits)
        .unwrap_or(1)
}

impl Rows {
    /// Rows of `columns` elements, in as few units as leave each of them at most `chunks` vectors to hold; in a workgroup of
    /// `largest` units, or what the target has, if none does.
    pub fn choose(
        target: Target,
        element: Element,
        columns: usize,
        chunks: u32,
        largest: u32,
    ) -> Self {
        let vector = vector(target, element.bytes(), &[columns]);
        let vectors = (columns / vector).max(1) as u32;
        let wave = target.lanes() as u32;
        let (row_units, units) = match vectors.div_ceil(chunks) {
            // One vector a unit, or a whole wave: what it holds beyond that hides the latency of memory.
            few if few <= wave && wave > 1 => (vectors.next_power_of_two().min(wave), WAVES),
            many => {
                let most = if target == Target::Portable {
                    256
                } else {
                    1024
                };
                let units = many.next_power_of_two().clamp(64, largest.min(most));
                (units, units)
            }
        };
        Self {
            columns,
            vector,
            row_units,
            units,
        }
    }

    /// Vectors of a row.
    pub const fn vectors(&self) -> u32 {
        (self.columns / self.vector) as u32
    }

    /// Vectors of a row that a unit has, at most.
    pub const fn chunks(&self) -> u32 {
        self.vectors().div_ceil(self.row_units)
    }

    /// Rows that a workgroup works on at a time.
    pub const fn per_workgroup(&self) -> u32 {
        self.units / self.row_units
    }

    /// Values of shared memory for `join_row`.
    pub const fn shared(&self, target: Target) -> usize {
        (self.units as usize / target.lanes()).next_power_of_two()
    }
}

/// A grid of at least `workgroups`, within every device's limits. A kernel finds its place by `workgroup()`.
pub fn grid(workgroups: u32) -> [u32; 3] {
    if workgroups <= GRID {
        [workgroups, 1, 1]
    } else {
        [GRID, workgroups.div_ceil(GRID), 1]
    }
}

/// The workgroup's place in a [`grid`].
#[cube]
pub(crate) fn workgroup() -> u32 {
    CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X
}

/// Joins `value` over the units of a row; all of them get the result. All units of the workgroup take part.
#[cube]
pub(crate) fn join_row(
    value: f32,
    shared: &mut Shared<[f32]>,
    #[comptime] rows: Rows,
    #[comptime] how: Join,
    #[comptime] target: Target,
) -> f32 {
    if comptime!(rows.row_units > target.lanes() as u32) {
        join_workgroup(value, shared, rows.units, how, target)
    } else {
        let mut all = value;
        #[unroll]
        for step in 0..comptime!(rows.row_units.ilog2()) {
            let other = exchange(all, comptime!(1u32 << step), target);
            all = match how {
                Join::Sum => all + other,
                Join::Max => max(all, other),
            };
        }
        all
    }
}

/// The sum of a vector's elements.
#[cube]
pub(crate) fn vector_sum<N: Size>(value: Vector<f32, N>) -> f32 {
    let mut sum = value.extract(0usize);
    #[unroll]
    for e in 1..value.vector_size() {
        sum += value.extract(e);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_covered_by_aligned_accesses() {
        for target in [Target::Gfx90a, Target::Gfx1100, Target::Portable] {
            for element in [Element::F32, Element::Bf16] {
                for columns in (1..300).chain([4096, 4097, 25_600, 100_003]) {
                    let rows = Rows::choose(target, element, columns, 8, 1024);
                    assert_eq!(columns % rows.vector, 0, "{rows:?}");
                    assert!(rows.vector * element.bytes() <= ACCESS, "{rows:?}");
                    assert!(rows.row_units * rows.chunks() >= rows.vectors(), "{rows:?}");
                    assert!(
                        rows.row_units * (rows.chunks() - 1) < rows.vectors(),
                        "{rows:?}"
                    );
                    let shared_by = [
                        rows.row_units <= target.lanes() as u32,
                        rows.row_units == rows.units,
                    ];
                    assert!(shared_by.contains(&true), "{rows:?}");
                }
            }
        }
    }

    #[test]
    fn a_grid_has_a_place_for_every_workgroup() {
        for workgroups in [0, 1, GRID, GRID + 1, 1 << 20, u32::MAX] {
            let [x, y, z] = grid(workgroups).map(u64::from);
            assert!(x * y * z >= u64::from(workgroups) && x <= 65_535 && y * z <= 1 << 17);
        }
    }
}
