//! CubeCL devices: Burn's tensors as the buffers of frontier-kernels.

pub(crate) mod norm;

use burn::backend::{Cube, tensor::FloatTensor};
use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::kernel::into_contiguous;
use cubecl::client::Client;
use cubecl::prelude::BufferArg;
use frontier_kernels::device;
use frontier_kernels::error::{Error, Result};
use frontier_kernels::matrix::instruction::{Element, Target};

/// A contiguous float tensor of a CubeCL device.
#[derive(Debug, Clone)]
pub(crate) struct Buffer(FloatTensor<Cube>);

impl Buffer {
    /// The tensor without autodiff; `None` where it lives on another backend.
    pub fn of<const D: usize>(x: &Tensor<D>) -> Option<Self> {
        let x = x.clone().without_autodiff();
        let primitive = x.try_into_primitive::<Cube>().ok()?;
        Some(Self(into_contiguous(primitive)))
    }

    /// An uninitialised one on the same device.
    pub fn beside(&self, shape: impl Into<Shape>, dtype: DType) -> Self {
        let shape = shape.into();
        let (client, device) = (self.0.client.clone(), self.0.device.clone());
        let handle = client.empty(shape.num_elements() * dtype.size());
        Self(FloatTensor::<Cube>::new_contiguous(
            client, device, shape, handle, dtype,
        ))
    }

    /// Where its kernels are launched.
    pub fn client(&self) -> &Client {
        &self.0.client
    }

    /// The type of its elements.
    pub fn dtype(&self) -> DType {
        self.0.dtype
    }

    /// As a kernel's argument.
    pub fn argument(&self) -> BufferArg {
        self.0.clone().into_buffer_arg()
    }

    /// The tensor.
    pub fn tensor<const D: usize>(self) -> Tensor<D> {
        Tensor::from_primitive::<Cube>(self.0)
    }

    /// What its device's kernels are generated for.
    pub fn target(&self) -> Target {
        device::choose(&self.0.client).target
    }

    /// Its element type, as the kernels know it; `None` for one that they do not take.
    pub fn element(&self) -> Option<Element> {
        match self.0.dtype {
            DType::F32 => Some(Element::F32),
            DType::F16 => Some(Element::F16),
            DType::BF16 => Some(Element::Bf16),
            _ => None,
        }
    }
}

/// What a launch gave. One that refuses its arguments leaves the operation to Burn's own kernels.
pub(crate) fn accepted<T>(result: Result<T>) -> Option<T> {
    result
        .inspect_err(|error: &Error| tracing::debug!("Burn's own kernels are used: {error}"))
        .ok()
}
