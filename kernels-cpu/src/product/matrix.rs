//! A matrix in memory as an operand.

use std::ops::Range;

use super::Operand;

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
}

impl Operand for Matrix<'_> {
    fn pack(&self, across: Range<usize>, depth: Range<usize>, width: usize, panel: &mut [f32]) {
        let count = across.len();
        if count < width {
            panel.fill(0.0);
        }
        if self.across == 1 {
            for (d, row) in depth.zip(panel.chunks_exact_mut(width)) {
                let start = d * self.deep + across.start;
                row[..count].copy_from_slice(&self.values[start..start + count]);
            }
            return;
        }
        if self.deep == 1 {
            transpose(self, across, depth, width, panel);
            return;
        }
        for (d, row) in depth.zip(panel.chunks_exact_mut(width)) {
            for (x, i) in row.iter_mut().zip(across.clone()) {
                *x = self.values[i * self.across + d * self.deep];
            }
        }
    }
}

/// Each line, which is contiguous over the depth, becomes a column of the panel; four lines at a time.
fn transpose(
    matrix: &Matrix,
    across: Range<usize>,
    depth: Range<usize>,
    width: usize,
    panel: &mut [f32],
) {
    let line = |i: usize| &matrix.values[i * matrix.across..][depth.clone()];
    let (first, count) = (across.start, across.len());
    let whole = count / 4 * 4;
    for i in (0..whole).step_by(4) {
        let lines = [0, 1, 2, 3].map(|j| line(first + i + j));
        let places = panel.chunks_exact_mut(width);
        for ((((place, a), b), c), d) in places
            .zip(lines[0])
            .zip(lines[1])
            .zip(lines[2])
            .zip(lines[3])
        {
            place[i..i + 4].copy_from_slice(&[*a, *b, *c, *d]);
        }
    }
    for i in whole..count {
        for (place, x) in panel.chunks_exact_mut(width).zip(line(first + i)) {
            place[i] = *x;
        }
    }
}
