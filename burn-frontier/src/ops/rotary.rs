//! Rotary position embedding (arXiv 2104.09864), the form that rotates the two halves of a head (GPT-NeoX, Llama).

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::backends;
use super::gradient::with_gradient;
use crate::error::{Error, Result};

/// Cosines and sines of the angles by which every position is rotated.
#[derive(Debug, Clone)]
pub struct RotaryTable {
    /// `[seq, head_dim / 2]`
    pub(super) cos: Tensor<2>,
    /// `[seq, head_dim / 2]`
    pub(super) sin: Tensor<2>,
}

impl RotaryTable {
    /// The angles `position base^(-2 i / head_dim)` of the positions `0..seq`, for heads of even length. `base` is usually
    /// 10000. Half precision does not tell far positions apart, so `dtype` is at least f32.
    pub fn new(seq: usize, head_dim: usize, base: f64, (device, dtype): (&Device, DType)) -> Self {
        let half = head_dim / 2;
        let dtype = if dtype == DType::F64 {
            dtype
        } else {
            DType::F32
        };
        let table = |f: fn(f64) -> f64| {
            let angles = (0..seq).flat_map(|position| {
                (0..half)
                    .map(move |i| f(position as f64 * base.powf(-2.0 * i as f64 / head_dim as f64)))
            });
            let data = TensorData::new(angles.collect::<Vec<f64>>(), [seq, half]);
            Tensor::<2>::from_data(data, (&device.clone().without_autodiff(), dtype))
        };
        Self {
            cos: table(f64::cos),
            sin: table(f64::sin),
        }
    }

    /// The first positions.
    fn first(&self, seq: usize) -> Self {
        Self {
            cos: self.cos.clone().narrow(0, 0, seq),
            sin: self.sin.clone().narrow(0, 0, seq),
        }
    }

    /// The angles of the rotation back, which is the gradient's: the rotation is orthogonal.
    fn inverse(&self) -> Self {
        Self {
            cos: self.cos.clone(),
            sin: self.sin.clone().neg(),
        }
    }
}

/// Rotates queries or keys by their position.
///
/// # Shapes
/// x `[batch, heads, seq, head_dim]` with an even head_dim; positions are `0..seq`, and the table has them.
///
/// # Errors
/// A table of other heads, or of fewer positions.
pub fn rotary(x: Tensor<4>, table: &RotaryTable) -> Result<Tensor<4>> {
    let ([_, _, seq, head_dim], [positions, half]) = (x.dims(), table.cos.dims());
    if seq > positions || head_dim != 2 * half {
        return Err(Error::config(
            format!(
                "rotary: x has {seq} positions of {head_dim} numbers, and the table {positions} of {}",
                2 * half
            ),
            "make the table for x's head dimension (even), and for as many positions at least",
        ));
    }
    let table = table.first(seq);
    let x0 = x.clone().without_autodiff();
    let Some(y) = backends::rotary(&x0, &table, false) else {
        super::kernels::check()?;
        return Ok(composition(x, &table));
    };
    Ok(with_gradient([x.into_dispatch()], y, move |g| {
        let d =
            backends::rotary(&g, &table, true).unwrap_or_else(|| composition(g, &table.inverse()));
        [Some(d.into_dispatch())]
    }))
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
