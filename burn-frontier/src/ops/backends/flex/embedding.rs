//! Rows of a table.

use burn::tensor::Tensor;
use frontier_kernels_cpu::math::vectorised;
use frontier_kernels_cpu::parallel::zeros;
use rayon::prelude::*;

use super::{PARALLEL, close, elements, for_rows, open, overwrite};

/// The rows of a table `[n, hidden]`, zeros where there is none.
pub(super) fn rows(table: &Tensor<2>, rows: &[Option<u32>]) -> Option<Tensor<2>> {
    let [_, hidden] = table.dims();
    let table = open(table)?;
    let table = elements(&table);
    let mut taken = zeros(rows.len() * hidden);
    for_rows(
        &mut taken,
        hidden,
        #[inline(always)]
        |i, out| {
            if let Some(row) = rows[i] {
                out.copy_from_slice(&table[row as usize * hidden..][..hidden]);
            }
        },
    );
    Some(close(taken, [rows.len(), hidden]))
}

/// The table, flat, with g `[rows, hidden]` added to its rows; each row's numbers in their order, whatever the threads.
pub(super) fn add_rows(
    table: Tensor<1>,
    g: &Tensor<2>,
    rows: &[Option<u32>],
) -> Result<Tensor<1>, Box<Tensor<1>>> {
    let [_, hidden] = g.dims();
    let Some(g) = open(g) else {
        return Err(Box::new(table));
    };
    let g = elements(&g);
    let places = rows.iter().enumerate();
    let mut order: Vec<(usize, usize)> = places
        .filter_map(|(i, row)| Some(((*row)? as usize, i)))
        .collect();
    order.sort_unstable();
    // Rows of the table that one task changes.
    let share = (PARALLEL / hidden.max(1)).max(1);
    let add = |(task, table): (usize, &mut [f32])| {
        let first = task * share;
        let before = |end: usize| order.partition_point(|&(row, _)| row < end);
        let own = &order[before(first)..before(first + share)];
        vectorised(
            #[inline(always)]
            || {
                for &(row, i) in own {
                    let out = &mut table[(row - first) * hidden..][..hidden];
                    for (out, g) in out.iter_mut().zip(&g[i * hidden..]) {
                        *out += g;
                    }
                }
            },
        );
    };
    overwrite(table, |table| {
        let tasks = table.par_chunks_mut((share * hidden).max(1)).enumerate();
        tasks.for_each(add);
    })
}
