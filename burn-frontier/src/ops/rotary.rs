//! Rotary position embedding (arXiv 2104.09864), the form that rotates the two halves of a head (GPT-NeoX, Llama).

use burn::tensor::{Tensor, TensorData};

/// Rotates queries or keys by their position.
///
/// # Shapes
/// x `[batch, heads, seq, head_dim]` with an even head_dim; positions are `0..seq`. `base` is usually 10000.
pub fn rotary(x: Tensor<4>, base: f64) -> Tensor<4> {
    let [_, _, seq, head_dim] = x.dims();
    let half = head_dim / 2;
    let table = |f: fn(f64) -> f64| {
        let angles = (0..seq).flat_map(|position| {
            (0..half)
                .map(move |i| f(position as f64 * base.powf(-2.0 * i as f64 / head_dim as f64)))
        });
        let data = TensorData::new(angles.collect::<Vec<f64>>(), [1, 1, seq, half]);
        Tensor::<4>::from_data(data, (&x.device().without_autodiff(), x.dtype()))
    };
    let (cos, sin) = (table(f64::cos), table(f64::sin));
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
    use burn::tensor::{DType, Device};

    #[test]
    fn products_of_rotated_vectors_depend_on_their_distance_alone() {
        let row: Vec<f64> = (0..8).map(|i| (i as f64 * 0.7).sin()).collect();
        let data = TensorData::new(row.repeat(6), [1, 1, 6, 8]);
        let x = Tensor::<4>::from_data(data, (&Device::flex(), DType::F64));
        let y = rotary(x, 10_000.0);
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
}
