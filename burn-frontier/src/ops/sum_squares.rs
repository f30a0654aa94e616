//! Sum of squares, for gradient norms.

use burn::tensor::Tensor;

use super::backends;
use crate::comm::Buffer;
use crate::comm::tensor::to_buffer;
use crate::error::{Error, Result};

/// Elements that one task sums.
const CHUNK: usize = 1 << 14;

/// Sum of the squares of `x`, the same to the bit on every run. On the CPU in f64: the same to 1e-12 however the elements are
/// divided over ranks. On a GPU in f32, by a kernel that reads `x` once: the same to 1e-6.
///
/// # Errors
/// A device that cannot be read, or half precision (gradients are reduced in f32).
pub fn sum_of_squares(x: Tensor<1>) -> Result<f64> {
    #[cfg(feature = "flex")]
    if let Some(sum) = flex(&x) {
        return Ok(sum);
    }
    let fused = backends::sum_of_squares(&x);
    // What a backward pass was refused, too: it cannot say so itself.
    super::kernels::check()?;
    if let Some(sum) = fused {
        return sum;
    }
    match to_buffer(x)? {
        Buffer::F32(v) => Ok(in_chunks(&v)),
        Buffer::F64(v) => Ok(v.iter().map(|x| x * x).sum()),
        other => Err(Error::Internal(format!("gradients are {}", other.dtype()))),
    }
}

/// Without a copy of the elements.
#[cfg(feature = "flex")]
fn flex(x: &Tensor<1>) -> Option<f64> {
    let x = x.clone().try_into_primitive::<burn::backend::Flex>().ok()?;
    x.as_slice::<f32>().map(in_chunks)
}

fn in_chunks(x: &[f32]) -> f64 {
    use rayon::prelude::*;
    let sums: Vec<f64> = x.par_chunks(CHUNK).map(lanes).collect();
    sums.iter().sum()
}

/// Several running sums, so that additions need not wait for each other.
fn lanes(x: &[f32]) -> f64 {
    let mut sums = [0.0f64; 16];
    for x in x.chunks(16) {
        for (sum, &x) in sums.iter_mut().zip(x) {
            *sum += f64::from(x) * f64::from(x);
        }
    }
    sums.iter().sum()
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
                let sum = sum_of_squares(x).unwrap();
                assert!(
                    (sum - expected).abs() < 1e-12 * expected,
                    "{n} {dtype:?}: {sum}"
                );
            }
        }
    }
}
