//! Rotary position embedding (arXiv 2104.09864), the form that rotates the two halves of a head (GPT-NeoX, Llama).

use burn::tensor::Tensor;

use super::backends;
use super::gradient::with_gradient;
pub use super::problem::rotary::RotaryTable;
use crate::error::{Error, Result};

/// Rotates queries or keys by their position.
///
/// # Shapes
/// x `[batch, heads, seq, head_dim]` with an even head_dim; positions are `0..seq`, and the table has them.
///
/// # Errors
/// A table of other heads, or of fewer positions.
pub fn rotary(x: Tensor<4>, table: &RotaryTable) -> Result<Tensor<4>> {
    let [_, _, seq, head_dim] = x.dims();
    check([seq, head_dim], table)?;
    let table = table.first(seq);
    let x0 = x.clone().without_autodiff();
    let backend = backends::of(&x0.device());
    let Some(y) = backend.rotary(&x0, &table, false) else {
        backend.refusal()?;
        return Ok(composition(x, &table));
    };
    Ok(with_gradient([x.into_dispatch()], y, move |g| {
        let back = backend.rotary(&g, &table, true);
        let d = back.unwrap_or_else(|| composition(g, &table.inverse()));
        [Some(d.into_dispatch())]
    }))
}

/// Fails unless the table is of such heads, and has as many positions.
pub(super) fn check([seq, head_dim]: [usize; 2], table: &RotaryTable) -> Result<()> {
    let [positions, half] = table.cos.dims();
    if seq > positions || head_dim != 2 * half {
        return Err(Error::config(
            format!(
                "rotary: x has {seq} positions of {head_dim} numbers, and the table {positions} of {}",
                2 * half
            ),
            "make the table for x's head dimension (even), and for as many positions at least",
        ));
    }
    Ok(())
}

/// The definition.
fn composition(x: Tensor<4>, table: &RotaryTable) -> Tensor<4> {
    let half = x.dims()[3] / 2;
    let [cos, sin] = [&table.cos, &table.sin].map(|x0| x0.clone().cast(x.dtype()).unsqueeze::<4>());
    let (a, b) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
    Tensor::cat(
        vec![
            a.clone() * cos.clone() - b.clone() * sin.clone(),
            b * cos + a * sin,
        ],
        3,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{DType, Device, TensorData};

    #[test]
    fn products_of_rotated_vectors_depend_on_their_distance_alone() {
        let row: Vec<f64> = (0..8).map(|i| (i as f64 * 0.7).sin()).collect();
        let data = TensorData::new(row.repeat(6), [1, 1, 6, 8]);
        let x = Tensor::<4>::from_data(data, (&Device::flex(), DType::F64));
        let table = RotaryTable::new(6, 8, 10_000.0, (&x.device(), x.dtype()));
        let y = rotary(x, &table).unwrap();
        let products = y
            .clone()
            .matmul(y.swap_dims(2, 3))
            .into_data()
            .try_to_vec::<f64>()
            .unwrap();
        for i in 1..6 {
            for j in 1..6 {
                let (here, before) = (products[i * 6 + j], products[(i - 1) * 6 + j - 1]);
                assert!((here - before).abs() < 1e-12);
            }
        }
        assert!((products[0] - products[1]).abs() > 1e-3);
    }

    #[test]
    fn the_gradient_is_the_rotation_back() {
        let values: Vec<f64> = (0..2 * 3 * 6).map(|i| f64::from(i).cos()).collect();
        let place = (&Device::flex(), DType::F64);
        let table = RotaryTable::new(4, 6, 10_000.0, place);
        let x = Tensor::<4>::from_data(TensorData::new(values, [1, 2, 3, 6]), place);
        let back = composition(
            rotary(x.clone(), &table).unwrap(),
            &table.first(3).inverse(),
        );
        let worst = (back - x).abs().max().into_scalar::<f64>();
        assert!(worst < 1e-14, "{worst}");
    }
}
