//! Tensors on their way between ranks: out of a device into a buffer, and back.

use burn::tensor::{DType, Device, Shape, Tensor, TensorData};
use half::{bf16, f16};

use super::Buffer;
use crate::error::{Error, Result};

/// A float tensor's elements, row-major.
///
/// # Errors
/// A device that cannot be read, or a type that ranks do not exchange.
pub fn to_buffer<const D: usize>(x: Tensor<D>) -> Result<Buffer> {
    let unreadable =
        |e: &dyn std::fmt::Debug| Error::Internal(format!("cannot read a tensor: {e:?}"));
    let data = x.try_into_data().map_err(|e| unreadable(&e))?;
    match data.dtype() {
        DType::F32 => data
            .try_into_vec::<f32>()
            .map(Buffer::F32)
            .map_err(|e| unreadable(&e)),
        DType::F64 => data
            .try_into_vec::<f64>()
            .map(Buffer::F64)
            .map_err(|e| unreadable(&e)),
        DType::F16 => data
            .try_into_vec::<f16>()
            .map(Buffer::F16)
            .map_err(|e| unreadable(&e)),
        DType::BF16 => data
            .try_into_vec::<bf16>()
            .map(Buffer::BF16)
            .map_err(|e| unreadable(&e)),
        other => Err(Error::Internal(format!("ranks do not exchange {other:?}"))),
    }
}

/// A float tensor of the buffer's own element type.
///
/// # Errors
/// A count that does not fit the shape, or a buffer of integers.
pub fn from_buffer<const D: usize>(
    data: Buffer,
    shape: Shape,
    device: &Device,
) -> Result<Tensor<D>> {
    if data.len() != shape.num_elements() {
        return Err(Error::Internal(format!(
            "{} elements do not fill the shape {shape:?}",
            data.len()
        )));
    }
    let (data, dtype) = match data {
        Buffer::F32(v) => (TensorData::new(v, shape), DType::F32),
        Buffer::F64(v) => (TensorData::new(v, shape), DType::F64),
        Buffer::F16(v) => (TensorData::new(v, shape), DType::F16),
        Buffer::BF16(v) => (TensorData::new(v, shape), DType::BF16),
        other => {
            return Err(Error::Internal(format!(
                "{} is not a float tensor's type",
                other.dtype()
            )));
        }
    };
    Ok(Tensor::from_data(data, (device, dtype)))
}
