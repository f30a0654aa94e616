//! A tensor's memory on a CubeCL device.

use super::bridge;
use super::refusal::refused;
use burn::backend::TensorMetadata;
use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use bytemuck::NoUninit;
use cubecl::client::Client;
use cubecl::prelude::BufferArg;
use frontier_kernels::device;
use frontier_kernels::matrix::instruction::{Element, Target};

/// A float tensor of a CubeCL device.
#[derive(Debug, Clone)]
pub(super) struct Buffer(CubeTensor);

impl Buffer {
    /// The tensor without autodiff, contiguous; `None` where it lives on another backend.
    pub fn of<const D: usize>(x: &Tensor<D>) -> Option<Self> {
        Self::take(x.clone())
    }

    /// As [`Self::of`], of a tensor that is given up: if nobody else holds its memory, the buffer is the only one that does.
    pub fn take<const D: usize>(x: Tensor<D>) -> Option<Self> {
        bridge::open(x).map(into_contiguous).map(Self)
    }

    /// The tensor without autodiff, if it is contiguous already.
    pub fn of_contiguous<const D: usize>(x: &Tensor<D>) -> Option<Self> {
        bridge::open(x.clone())
            .filter(CubeTensor::is_contiguous)
            .map(Self)
    }

    /// The tensor without autodiff, in its own strides if its last dimension is contiguous.
    pub fn with_rows<const D: usize>(x: &Tensor<D>) -> Option<Self> {
        let primitive = bridge::open(x.clone())?;
        let rows = primitive.meta.strides().last() == Some(&1) && !primitive.meta.is_tiled();
        Some(Self(if rows {
            primitive
        } else {
            into_contiguous(primitive)
        }))
    }

    /// Its shape.
    pub fn shape(&self) -> Shape {
        self.0.shape()
    }

    /// Its four sizes, as the kernels of an operation count.
    pub fn sizes(&self, operation: &'static str) -> Option<[u32; 4]> {
        numbers(operation, self.0.shape().as_slice())
    }

    /// Its four strides in elements, as the kernels of an operation count.
    pub fn strides(&self, operation: &'static str) -> Option<[u32; 4]> {
        numbers(operation, self.0.meta.strides())
    }

    /// An uninitialised contiguous one on the same device.
    pub fn beside(&self, shape: impl Into<Shape>, dtype: DType) -> Self {
        let shape = shape.into();
        let (client, device) = (self.0.client.clone(), self.0.device.clone());
        let handle = client.empty(shape.num_elements() * dtype.size());
        Self(CubeTensor::new_contiguous(
            client, device, shape, handle, dtype,
        ))
    }

    /// One of the given values on the same device.
    pub fn with_values<T: NoUninit>(&self, values: &[T], dtype: DType) -> Self {
        let (client, device) = (self.0.client.clone(), self.0.device.clone());
        let handle = client.create_from_slice(bytemuck::cast_slice(values));
        Self(CubeTensor::new_contiguous(
            client,
            device,
            Shape::from([values.len()]),
            handle,
            dtype,
        ))
    }

    /// Itself if nobody else holds its memory, else a copy: a kernel may write to it.
    pub fn own(self) -> Self {
        if self.is_alone() {
            self
        } else {
            Self(self.0.copy())
        }
    }

    /// Whether nobody else holds its memory.
    pub fn is_alone(&self) -> bool {
        self.0.can_mut()
    }

    /// Where its kernels are launched.
    pub fn client(&self) -> &Client {
        &self.0.client
    }

    /// The type of its elements.
    pub fn dtype(&self) -> DType {
        self.0.dtype
    }

    /// As a kernel's argument: from its first element to its last.
    #[expect(unsafe_code)]
    pub fn argument(&self) -> BufferArg {
        let (shape, strides) = (self.0.shape(), self.0.meta.strides());
        let last = shape
            .iter()
            .zip(strides.iter())
            .map(|(&n, &stride)| (n.max(1) - 1) * stride);
        let length = if shape.num_elements() == 0 {
            0
        } else {
            last.sum::<usize>() + 1
        };
        // SAFETY: the tensor's elements lie in its handle.
        unsafe { BufferArg::from_raw_parts(self.0.handle.clone(), length) }
    }

    /// The tensor.
    pub fn tensor<const D: usize>(self) -> Tensor<D> {
        bridge::close(self.0)
    }

    /// What its device's kernels are generated for.
    pub fn target(&self) -> Target {
        device::choose(&self.0.client).target
    }

    /// Its element type, as the kernels of an operation know it; `None` for one that they do not take.
    pub fn element(&self, operation: &'static str) -> Option<Element> {
        match element(self.0.dtype) {
            Some(element) => Some(element),
            None => refused(operation, &format!("there are none for {:?}", self.0.dtype)),
        }
    }
}

/// A type of elements, as the kernels know it; `None` for one that they do not take.
pub(super) const fn element(dtype: DType) -> Option<Element> {
    match dtype {
        DType::F32 => Some(Element::F32),
        DType::F16 => Some(Element::F16),
        DType::BF16 => Some(Element::Bf16),
        _ => None,
    }
}

fn numbers(operation: &'static str, of: &[usize]) -> Option<[u32; 4]> {
    let numbers: Option<Vec<u32>> = of.iter().map(|&n| u32::try_from(n).ok()).collect();
    match numbers.and_then(|numbers| numbers.try_into().ok()) {
        Some(numbers) => Some(numbers),
        None => refused(
            operation,
            &format!("{of:?} are not four numbers of 32 bits"),
        ),
    }
}

/// A number as the kernels of an operation count.
pub(super) fn number<T: Copy + std::fmt::Display + TryInto<u32>>(
    operation: &'static str,
    n: T,
) -> Option<u32> {
    match n.try_into() {
        Ok(n) => Some(n),
        Err(_) => refused(operation, &format!("{n} does not fit 32 bits")),
    }
}
