//! Rows of a table, whose gradient is added to the rows that were taken and to no others.

use burn::backend::DispatchTensor;
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};

use super::backends;
use super::gradient::with_gradient;
use super::gradient_sum::GradientSum;
use super::shape::{expect, expect_type};
use crate::error::{Error, Result};
use crate::precision::full_precision;

/// The rows `rows` of a table, zeros where there is none, whose backward pass may add the table's gradient to `sum` rather than to
/// the graph's.
///
/// On the CPU the gradient goes straight to the rows of the sum, in the order of `rows`.
///
/// # Shapes
/// table `[n, hidden]`; gives `[rows, hidden]`.
///
/// # Errors
/// A row that the table does not have.
pub fn embedding(
    table: Tensor<2>,
    rows: Vec<Option<u32>>,
    sum: Option<&GradientSum>,
) -> Result<Tensor<2>> {
    let [count, _] = table.dims();
    if let Some(row) = rows.iter().flatten().find(|&&row| row as usize >= count) {
        return Err(Error::config(
            format!("embedding: row {row} of a table of {count}"),
            "give rows that the table has",
        ));
    }
    let plain = table.clone().without_autodiff();
    let backend = backends::of(&plain.device());
    let taken = backend.rows(&plain, &rows).unwrap_or_else(|| {
        let taken = plain.clone().select(0, indices(&plain, &rows));
        masked(taken, &rows)
    });
    backend.refusal()?;
    let way_back = WayBack::new(&plain, sum);
    Ok(with_gradient([table.into_dispatch()], taken, move |g| {
        [way_back.gradient(g, &rows)]
    }))
}

/// x plus rows `first` to `first + seq` of a table, the same for every sample: learned positions. The table's gradient is as in
/// [`embedding`].
///
/// # Shapes
/// x and the result `[batch, seq, hidden]`, table `[n, hidden]`.
///
/// # Errors
/// Rows that the table does not have, or a table of another width or type than x.
pub fn add_rows(
    x: Tensor<3>,
    table: Tensor<2>,
    first: usize,
    sum: Option<&GradientSum>,
) -> Result<Tensor<3>> {
    let ([batch, seq, hidden], [count, _]) = (x.dims(), table.dims());
    let (what, axes) = ("the table", "[rows, hidden], with as many rows as x needs");
    let needed = [count.max(first + seq), hidden];
    expect("add_rows", what, table.dims(), needed, axes)?;
    expect_type("add_rows", what, &table, x.dtype())?;
    let rows = move || -> Vec<_> {
        let of_sample = first as u32..(first + seq) as u32;
        (0..batch)
            .flat_map(|_| of_sample.clone().map(Some))
            .collect()
    };
    let plain = table.clone().without_autodiff();
    let backend = backends::of(&plain.device());
    let fused = backend.rows(&plain, &rows()).and_then(|taken| {
        let x = x.clone().without_autodiff();
        backend.dropout(&taken.reshape([batch, seq, hidden]), Some(&x), None)
    });
    let Some(added) = fused else {
        backend.refusal()?;
        return Ok(x + table.narrow(0, first, seq).unsqueeze());
    };
    let way_back = WayBack::new(&plain, sum);
    let inputs = [x.into_dispatch(), table.into_dispatch()];
    Ok(with_gradient(inputs, added, move |g| {
        let flat = g.clone().reshape([batch * seq, hidden]);
        [Some(g.into_dispatch()), way_back.gradient(flat, &rows())]
    }))
}

/// From the gradients of rows to that of their table.
struct WayBack {
    table: [usize; 2],
    sum: Option<GradientSum>,
}

impl WayBack {
    fn new(table: &Tensor<2>, sum: Option<&GradientSum>) -> Self {
        Self {
            table: table.dims(),
            sum: sum.cloned(),
        }
    }

    /// Adds to the sum if there is one; gives the gradient otherwise.
    fn gradient(self, g: Tensor<2>, rows: &[Option<u32>]) -> Option<DispatchTensor> {
        let count = self.table[0] * self.table[1];
        let kept = self.sum.as_ref().and_then(GradientSum::take);
        let kept = kept
            .unwrap_or_else(|| full_precision(Tensor::zeros([count], (&g.device(), g.dtype()))));
        let added = backends::of(&g.device())
            .add_rows(kept, &g, rows)
            .unwrap_or_else(|kept| {
                let table = kept.reshape(self.table);
                let g = masked(full_precision(g), rows);
                let rows = indices(&table, rows);
                let sum = table.select_assign(0, rows, g, IndexingUpdateOp::Add);
                sum.reshape([count])
            });
        match &self.sum {
            Some(sum) => {
                sum.put(added);
                None
            }
            None => Some(added.reshape(self.table).into_dispatch()),
        }
    }
}

/// The rows' numbers, the first where there is none.
fn indices(table: &Tensor<2>, rows: &[Option<u32>]) -> Tensor<1, Int> {
    let numbers: Vec<i64> = rows.iter().map(|row| i64::from(row.unwrap_or(0))).collect();
    Tensor::from_data(TensorData::new(numbers, [rows.len()]), &table.device())
}

/// Zeros in place of the rows that there are not.
fn masked(x: Tensor<2>, rows: &[Option<u32>]) -> Tensor<2> {
    if rows.iter().all(Option::is_some) {
        return x;
    }
    let mask = rows.iter().map(|row| f32::from(u8::from(row.is_some())));
    let data = TensorData::new(mask.collect::<Vec<_>>(), [rows.len(), 1]);
    let place = (&x.device(), x.dtype());
    x * Tensor::from_data(data, place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Place, assert_close, numbers};
    use burn::tensor::{DType, Device};

    const ROWS: [Option<u32>; 6] = [Some(3), None, Some(0), Some(3), Some(299), Some(0)];

    /// What a table's rows get of gradients g `[rows, hidden]`, by the definition.
    fn gradient([count, hidden]: [usize; 2], rows: &[Option<u32>], g: &[f64]) -> Vec<f64> {
        let mut table = vec![0.0; count * hidden];
        for (row, g) in rows.iter().zip(g.chunks(hidden)) {
            let Some(row) = row else { continue };
            let own = table[*row as usize * hidden..].iter_mut();
            own.zip(g).for_each(|(sum, g)| *sum += g);
        }
        table
    }

    #[test]
    fn an_embedding_takes_rows_and_gives_each_its_gradients() {
        let shape = [300, 200];
        for dtype in [DType::F32, DType::F64] {
            let place = Place::new(&Device::flex(), dtype);
            for kept in [None, Some(false), Some(true)] {
                let table = place.leaf(shape, 1);
                let sum = kept.map(|_| GradientSum::default());
                let before = place.constant([300 * 200], 5);
                if let (Some(sum), Some(true)) = (&sum, kept) {
                    sum.add(before.clone());
                }
                let y = embedding(table.clone(), ROWS.to_vec(), sum.as_ref()).unwrap();
                let values = numbers(table.clone().without_autodiff());
                for (i, row) in ROWS.iter().enumerate() {
                    let own = numbers(y.clone().without_autodiff().narrow(0, i, 1));
                    match row {
                        Some(row) => assert_eq!(own, values[*row as usize * 200..][..200]),
                        None => assert!(own.iter().all(|&x| x == 0.0)),
                    }
                }
                let g = place.constant([ROWS.len(), 200], 2);
                let expected = gradient(shape, &ROWS, &numbers(g.clone()));
                let mut all = (y * g).sum().backward();
                let graph = table.grad_remove(&mut all).map(|g| g.flatten::<1>(0, 1));
                let summed = sum.and_then(|sum| sum.take());
                let own = match (graph, summed) {
                    (Some(graph), Some(before)) => graph + before,
                    (Some(one), None) | (None, Some(one)) => one,
                    (None, None) => panic!("the table has no gradient"),
                };
                let mut expected = expected;
                if kept == Some(true) {
                    let before = numbers(before);
                    expected.iter_mut().zip(before).for_each(|(x, b)| *x += b);
                }
                assert_close("gradient", dtype, &numbers(own), &expected);
            }
        }
    }

    #[test]
    fn positions_are_added_to_every_sample_and_get_the_sum_of_gradients() {
        let device = Device::flex();
        for dtype in [DType::F32, DType::F64] {
            let place = Place::new(&device, dtype);
            let (x, table) = (place.leaf([3, 4, 5], 1), place.leaf([9, 5], 2));
            let g = place.constant([3, 4, 5], 3);
            let y = add_rows(x.clone(), table.clone(), 2, None).unwrap();
            let plain = table.clone().without_autodiff().narrow(0, 2, 4).unsqueeze();
            let expected = x.clone().without_autodiff() + plain;
            assert_eq!(numbers(y.clone().without_autodiff()), numbers(expected));
            let all = (y * g.clone()).sum().backward();
            assert_eq!(numbers(x.grad(&all).unwrap()), numbers(g.clone()));
            let rows: Vec<_> = (0..12).map(|i| Some(2 + i % 4)).collect();
            let expected = gradient([9, 5], &rows, &numbers(g));
            assert_close(
                "table",
                dtype,
                &numbers(table.grad(&all).unwrap()),
                &expected,
            );
        }
    }

    #[test]
    fn a_row_that_is_not_there_is_refused() {
        let place = Place::new(&Device::flex(), DType::F32);
        let table = || place.leaf([4, 2], 1);
        let error = embedding(table(), vec![Some(4)], None).unwrap_err();
        assert!(
            error.to_string().contains("row 4 of a table of 4"),
            "{error}"
        );
        let error = add_rows(place.leaf([1, 3, 2], 1), table(), 2, None).unwrap_err();
        assert!(error.to_string().contains("shape [4, 2]"), "{error}");
    }
}
