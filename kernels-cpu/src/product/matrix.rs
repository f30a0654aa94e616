//! A matrix in memory as an operand.

use std::ops::Range;

use super::transpose::transpose;
use super::{Operand, each};
use crate::prefetch::prefetch;

/// Rows that panels are packed of, one panel after the other, before the next rows.
const ROWS: usize = 16;

/// A matrix, or a view of one: element (across, depth) is `values[across * strides[0] + depth * strides[1]]`.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    values: &'a [f32],
    across: usize,
    deep: usize,
}

impl<'a> Matrix<'a> {
    /// From one row of the left operand, or column of the right one, to the next are `across` elements; from one place that is
    /// summed over to the next are `deep`.
    pub fn new(values: &'a [f32], across: usize, deep: usize) -> Self {
        Self {
            values,
            across,
            deep,
        }
    }

    /// A panel whose rows are contiguous in memory.
    fn copy(&self, across: Range<usize>, depth: Range<usize>, width: usize, panel: &mut [f32]) {
        let count = across.len();
        for (d, row) in depth.zip(panel.chunks_exact_mut(width)) {
            let start = d * self.deep + across.start;
            row[..count].copy_from_slice(&self.values[start..start + count]);
        }
    }

    /// [`Self::copy`] of a panel that is full: moves of a known length are a few instructions.
    fn copy_full<const WIDTH: usize>(&self, first: usize, depth: Range<usize>, panel: &mut [f32]) {
        let (rows, _) = panel.as_chunks_mut::<WIDTH>();
        for (d, row) in depth.zip(rows) {
            let values = &self.values[d * self.deep + first..];
            row.copy_from_slice(&values[..WIDTH]);
        }
    }
}

impl Operand for Matrix<'_> {
    fn pack(&self, across: Range<usize>, depth: Range<usize>, width: usize, panel: &mut [f32]) {
        let count = across.len();
        if count < width {
            panel.fill(0.0);
        }
        match (self.across, self.deep, count == width, width) {
            (1, _, true, 32) => self.copy_full::<32>(across.start, depth, panel),
            (1, _, true, 16) => self.copy_full::<16>(across.start, depth, panel),
            (1, _, true, 12) => self.copy_full::<12>(across.start, depth, panel),
            (1, _, true, 8) => self.copy_full::<8>(across.start, depth, panel),
            (1, ..) => self.copy(across, depth, width, panel),
            (_, 1, ..) => {
                let line =
                    |i: usize| &self.values[(across.start + i) * self.across..][depth.clone()];
                transpose(count, line, width, panel);
            }
            _ => {
                for (d, row) in depth.zip(panel.chunks_exact_mut(width)) {
                    for (x, i) in row.iter_mut().zip(across.clone()) {
                        *x = self.values[i * self.across + d * self.deep];
                    }
                }
            }
        }
    }

    fn pack_all(
        &self,
        across: Range<usize>,
        depth: Range<usize>,
        width: usize,
        panels: &mut [f32],
    ) {
        if self.across != 1 {
            return each(self, across, depth, width, panels);
        }
        // As memory lies, some rows at a time of all panels.
        let (all, first) = (depth.len(), depth.start);
        for start in depth.clone().step_by(ROWS) {
            let some = start..(start + ROWS).min(depth.end);
            let starts = across.clone().step_by(width);
            for (start, panel) in starts.zip(panels.chunks_exact_mut((width * all).max(1))) {
                let across = start..(start + width).min(across.end);
                let panel = &mut panel[(some.start - first) * width..][..some.len() * width];
                self.pack(across, some.clone(), width, panel);
            }
        }
    }

    fn prefetch(&self, across: Range<usize>, depth: Range<usize>) {
        if self.deep == 1 {
            for i in across {
                prefetch(&self.values[i * self.across..][depth.clone()]);
            }
        }
    }
}
