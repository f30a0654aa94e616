//! Tensors as bytes: element types, and boxes cut out of row-major tensors.

use half::slice::HalfFloatSliceExt;
use safetensors::Dtype;

use crate::comm::Buffer;
use crate::placement::{Block, for_each_run_of};

// safetensors is little-endian; buffers are written as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"));

/// Element type of a buffer.
pub(crate) fn dtype_of(buffer: &Buffer) -> Dtype {
    match buffer {
        Buffer::F32(_) => Dtype::F32,
        Buffer::F64(_) => Dtype::F64,
        Buffer::F16(_) => Dtype::F16,
        Buffer::BF16(_) => Dtype::BF16,
        Buffer::I64(_) => Dtype::I64,
        Buffer::U8(_) => Dtype::U8,
    }
}

/// `count` zeros, or nothing if no buffer holds elements of this type.
pub(crate) fn zeros(dtype: Dtype, count: usize) -> Option<Buffer> {
    Some(match dtype {
        Dtype::F32 => Buffer::F32(vec![0.0; count]),
        Dtype::F64 => Buffer::F64(vec![0.0; count]),
        Dtype::F16 => Buffer::F16(vec![half::f16::ZERO; count]),
        Dtype::BF16 => Buffer::BF16(vec![half::bf16::ZERO; count]),
        Dtype::I64 => Buffer::I64(vec![0; count]),
        Dtype::U8 => Buffer::U8(vec![0; count]),
        _ => return None,
    })
}

/// A buffer's elements as they lie in memory.
pub(crate) fn as_bytes(buffer: &Buffer) -> &[u8] {
    match buffer {
        Buffer::F32(v) => bytemuck::cast_slice(v),
        Buffer::F64(v) => bytemuck::cast_slice(v),
        Buffer::F16(v) => bytemuck::cast_slice(v.reinterpret_cast()),
        Buffer::BF16(v) => bytemuck::cast_slice(v.reinterpret_cast()),
        Buffer::I64(v) => bytemuck::cast_slice(v),
        Buffer::U8(v) => v,
    }
}

/// A buffer's elements as they lie in memory, to be written.
pub(crate) fn as_bytes_mut(buffer: &mut Buffer) -> &mut [u8] {
    match buffer {
        Buffer::F32(v) => bytemuck::cast_slice_mut(v),
        Buffer::F64(v) => bytemuck::cast_slice_mut(v),
        Buffer::F16(v) => bytemuck::cast_slice_mut(v.reinterpret_cast_mut()),
        Buffer::BF16(v) => bytemuck::cast_slice_mut(v.reinterpret_cast_mut()),
        Buffer::I64(v) => bytemuck::cast_slice_mut(v),
        Buffer::U8(v) => v,
    }
}

/// The first float of a block that is NaN or infinite, and its place in the logical tensor of `shape`, row-major.
pub(crate) fn first_non_finite(
    data: &Buffer,
    block: &Block,
    shape: &[usize],
    local_shape: &[usize],
) -> Option<(usize, f64)> {
    let mut found = None;
    for_each_run_of(block, shape, local_shape, &mut |global, local, len| {
        if found.is_some() {
            return;
        }
        let run = local..local + len;
        let at = match data {
            Buffer::F32(v) => v[run].iter().position(|x| !x.is_finite()),
            Buffer::F64(v) => v[run].iter().position(|x| !x.is_finite()),
            Buffer::F16(v) => v[run].iter().position(|x| !x.is_finite()),
            Buffer::BF16(v) => v[run].iter().position(|x| !x.is_finite()),
            Buffer::I64(_) | Buffer::U8(_) => None,
        };
        found = at.map(|i| (global + i, value(data, local + i)));
    });
    found
}

/// An element as a float.
fn value(data: &Buffer, index: usize) -> f64 {
    match data {
        Buffer::F32(v) => v[index].into(),
        Buffer::F64(v) => v[index],
        Buffer::F16(v) => v[index].into(),
        Buffer::BF16(v) => v[index].into(),
        Buffer::I64(v) => v[index] as f64,
        Buffer::U8(v) => v[index].into(),
    }
}

/// Number of elements of a shape, if its bytes can be counted at any element size.
pub(crate) fn count(shape: &[usize]) -> Option<usize> {
    // A zero elsewhere must not hide an overflow: the strides of such a shape are used too.
    let nonzero = shape.iter().filter(|&&n| n > 0);
    let bound = nonzero.copied().try_fold(1usize, usize::checked_mul)?;
    bound.checked_mul(size_of::<f64>())?;
    Some(shape.iter().product())
}

/// What is wrong with blocks that should lie in a logical tensor of shape `shape` and a local one of `local_shape`.
pub(crate) fn fault(shape: &[usize], blocks: &[Block], local_shape: &[usize]) -> Option<String> {
    if count(shape).is_none() || count(local_shape).is_none() {
        return Some(format!(
            "shape {shape:?} or {local_shape:?} is too large to count"
        ));
    }
    let wrong = blocks.iter().find(|block| {
        !inside(&block.global, &block.len, shape) || !inside(&block.local, &block.len, local_shape)
    })?;
    Some(format!(
        "{wrong:?} is empty or does not lie in the logical shape {shape:?} and the local shape {local_shape:?}"
    ))
}

/// Whether the box is of the shape's rank, not empty, and within it.
pub(crate) fn inside(start: &[usize], len: &[usize], shape: &[usize]) -> bool {
    start.len() == shape.len()
        && len.len() == shape.len()
        && start
            .iter()
            .zip(len)
            .zip(shape)
            .all(|((&start, &len), &size)| {
                len > 0 && start.checked_add(len).is_some_and(|end| end <= size)
            })
}

/// The bytes of a block of a local tensor of elements of `size` bytes, row-major.
pub(crate) fn cut(data: &[u8], size: usize, block: &Block, local_shape: &[usize]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(block.count() * size);
    let alone = Block {
        global: vec![0; block.len.len()],
        ..block.clone()
    };
    for_each_run_of(&alone, &block.len, local_shape, &mut |_, local, len| {
        bytes.extend_from_slice(&data[local * size..(local + len) * size]);
    });
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_whose_strides_overflow_is_not_counted() {
        assert_eq!(count(&[]), Some(1));
        assert_eq!(count(&[3, 0]), Some(0));
        assert_eq!(count(&[usize::MAX / 4, 0, 2]), None);
        assert_eq!(count(&[usize::MAX / 4]), None);
    }

    #[test]
    fn a_box_that_wraps_around_is_outside() {
        assert!(inside(&[2], &[2], &[4]));
        assert!(!inside(&[usize::MAX], &[2], &[4]));
        assert!(!inside(&[0], &[0], &[4]));
        assert!(!inside(&[0, 0], &[1, 1], &[4]));
    }
}
