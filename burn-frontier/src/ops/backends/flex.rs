//! Operations of f32 on the CPU in one pass over memory each; Burn's flex backend takes a pass for every step of a composition.
//!
//! Results are the same on every x86-64 CPU: loops are compiled for several instruction sets, but none fuses or reorders.

mod activation;
mod cross_entropy;
mod math;
mod norm;
mod softmax;
#[cfg(test)]
mod tests;

pub(crate) use activation::{gelu, gelu_gradient, swiglu, swiglu_gradient};
pub(crate) use cross_entropy::cross_entropy;
pub(crate) use norm::norm;
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
    let x = match x.as_slice::<f32>() {
        Some(_) => x,
        None => x.to_contiguous(),
    };
    x.as_slice::<f32>().is_some().then_some(x)
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
    let changed = data.as_mut_slice::<f32>().map(change).is_ok();
    let x = Tensor::from_primitive::<Flex>(FlexTensor::from_data(data));
    if changed { Ok(x) } else { Err(Box::new(x)) }
}

/// Calls `work` with the index of each row of `out` and the row, on several threads if that pays.
fn for_rows(out: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    sum_rows(
        out,
        width,
        1,
        #[inline(always)]
        |row, out, _| work(row, out),
    );
}

/// As [`for_rows`], and `work` adds to sums over all rows, so many as `sums`. Gives them; how many threads there are does not
/// change them.
fn sum_rows(
    out: &mut [f32],
    width: usize,
    sums: usize,
    work: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) -> Vec<f32> {
    if out.is_empty() {
        return vec![0.0; sums];
    }
    let rows = (PARALLEL / width).clamp(1, out.len().div_ceil(width));
    let parts = out.len().div_ceil(rows * width);
    let mut partial = vec![0.0; parts * sums];
    let part = |(part, (out, sums)): (usize, (&mut [f32], &mut [f32]))| {
        Arch::new().dispatch(
            #[inline(always)]
            || {
                for (row, out) in out.chunks_mut(width).enumerate() {
                    work(part * rows + row, out, sums);
                }
            },
        );
    };
    if parts == 1 {
        part((0, (out, &mut partial)));
        return partial;
    }
    let pieces = out.par_chunks_mut(rows * width);
    let pieces = pieces.zip(partial.par_chunks_mut(sums)).enumerate();
    pieces.for_each(part);
    let (total, rest) = partial.split_at_mut(sums);
    for part in rest.chunks(sums) {
        total.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
    }
    partial.truncate(sums);
    partial
}
