//! Operations of f32 on the CPU in one pass over memory each; Burn's flex backend takes a pass for every step of a composition.
//!
//! Results are the same on every x86-64 CPU: loops are compiled for several instruction sets, but none fuses or reorders.

mod activation;
mod cross_entropy;
mod math;
mod softmax;
#[cfg(test)]
mod tests;

pub(crate) use activation::{gelu, gelu_gradient, swiglu, swiglu_gradient};
pub(crate) use cross_entropy::cross_entropy;
pub(crate) use softmax::{softmax, softmax_gradient};

use burn::backend::Flex;
use burn::tensor::{DType, Shape, Tensor, TensorData};
use burn_flex::FlexTensor;
use pulp::Arch;
use rayon::prelude::*;

/// Elements that are worth another thread.
const PARALLEL: usize = 1 << 17;

/// The f32 tensor without autodiff, contiguous; `None` where it has another type or lives elsewhere.
fn open<const D: usize>(x: &Tensor<D>) -> Option<FlexTensor> {
    if x.dtype() != DType::F32 {
        return None;
    }
    let x = x.clone().try_into_primitive::<Flex>().ok()?;
    Some(if x.as_slice::<f32>().is_some() {
        x
    } else {
        x.to_contiguous()
    })
}

/// Its elements.
fn elements(x: &FlexTensor) -> &[f32] {
    x.as_slice().unwrap_or_default()
}

/// A tensor of these elements.
fn close<const D: usize>(elements: Vec<f32>, shape: impl Into<Shape>) -> Tensor<D> {
    let data = TensorData::new(elements, shape.into());
    Tensor::from_primitive::<Flex>(FlexTensor::from_data(data))
}

/// Lets `change` overwrite the elements, in place if nobody else holds them; the tensor where [`open`] gives `None`.
fn overwrite<const D: usize>(
    x: Tensor<D>,
    change: impl FnOnce(&mut [f32]),
) -> Result<Tensor<D>, Box<Tensor<D>>> {
    if x.dtype() != DType::F32 {
        return Err(Box::new(x));
    }
    let Ok(primitive) = x.clone().try_into_primitive::<Flex>() else {
        return Err(Box::new(x));
    };
    drop(x);
    let mut data = primitive.into_data();
    if let Ok(elements) = data.as_mut_slice::<f32>() {
        change(elements);
    }
    Ok(Tensor::from_primitive::<Flex>(FlexTensor::from_data(data)))
}

/// Calls `work` with each row of `out` and its index, on several threads if that pays.
fn for_rows(out: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    if width == 0 {
        return;
    }
    let rows = (PARALLEL / width).clamp(1, out.len().div_ceil(width).max(1));
    let part = |(part, out): (usize, &mut [f32])| {
        Arch::new().dispatch(
            #[inline(always)]
            || {
                for (row, out) in out.chunks_mut(width).enumerate() {
                    work(part * rows + row, out);
                }
            },
        );
    };
    if out.len() < 2 * PARALLEL {
        part((0, out));
    } else {
        out.par_chunks_mut(rows * width).enumerate().for_each(part);
    }
}
