//! Sum of squares, for gradient norms.

use burn::tensor::Tensor;

use super::backends;
use crate::comm::Buffer;
use crate::comm::tensor::to_buffer;
use crate::error::{Error, Result};

/// Sum of the squares of all elements of tensors on one device, the same to the bit on every run. On the CPU in one pass and in
/// f64: the same to 1e-12 however the elements are divided over tensors and ranks. On a GPU in f32, by a kernel that reads each
/// tensor once: the same to 1e-6.
///
/// # Errors
/// A device that cannot be read, or half precision (gradients are reduced in f32).
pub fn sum_of_squares(all: &[Tensor<1>]) -> Result<f64> {
    let Some(first) = all.first() else {
        return Ok(0.0);
    };
    let backend = backends::of(&first.device());
    let fused = backend.sum_of_squares(all);
    // What a backward pass was refused, too: it cannot say so itself.
    backend.refusal()?;
    if let Some(sum) = fused {
        return sum;
    }
    let of = |x: &Tensor<1>| -> Result<f64> {
        match to_buffer(x.clone())? {
            Buffer::F32(v) => Ok(v.iter().map(|&x| f64::from(x) * f64::from(x)).sum()),
            Buffer::F64(v) => Ok(v.iter().map(|x| x * x).sum()),
            other => Err(Error::Internal(format!("gradients are {}", other.dtype()))),
        }
    };
    all.iter().map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{DType, Device, TensorData};

    #[test]
    fn it_is_the_sum_of_squares_of_any_type_and_length() {
        for n in [1usize, 15, 17, 40_001] {
            let values: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7).cos()).collect();
            let expected: f64 = values.iter().map(|&x| f64::from(x).powi(2)).sum();
            for dtype in [DType::F32, DType::F64] {
                let data = TensorData::new(values.clone(), [n]);
                let x = Tensor::<1>::from_data(data, (&Device::flex(), dtype));
                let sum = sum_of_squares(&[x]).unwrap();
                assert!(
                    (sum - expected).abs() < 1e-12 * expected,
                    "{n} {dtype:?}: {sum}"
                );
            }
        }
    }
}
