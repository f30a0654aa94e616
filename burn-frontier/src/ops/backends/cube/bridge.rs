//! From Burn's tensors to the memory of a CubeCL device, and back.

use burn::backend::Cube;
#[cfg(feature = "fusion")]
use burn::backend::{
    TensorMetadata,
    fusion::{NoOp, custom::StreamId, get_client},
    ir::{InitOperationIr, OperationIr},
};
use burn::tensor::Tensor;
use burn_cubecl::tensor::CubeTensor;
#[cfg(feature = "fusion")]
use burn_cubecl::{CubeBackend, fusion::CubeFusionHandle};

/// Whether a tensor lives on a CubeCL device.
pub(super) fn is_here<const D: usize>(x: &Tensor<D>) -> bool {
    let x = x.clone().without_autodiff();
    x.try_into_primitive::<Cube>().is_ok()
}

/// The memory of a tensor without autodiff; `None` where it lives on another backend. With Fusion, what the tensor still
/// waits for is launched first.
pub(super) fn open<const D: usize>(x: Tensor<D>) -> Option<CubeTensor> {
    let x = x.without_autodiff().try_into_primitive::<Cube>().ok()?;
    #[cfg(feature = "fusion")]
    let x = {
        let client = x.client.clone();
        client.resolve_tensor_float::<CubeBackend>(x)
    };
    Some(x)
}

/// The tensor of a memory. To Fusion it is one that was made from data.
pub(super) fn close<const D: usize>(x: CubeTensor) -> Tensor<D> {
    #[cfg(feature = "fusion")]
    let x = {
        let client = get_client::<CubeBackend>(&x.device);
        let (shape, dtype) = (x.shape(), x.dtype);
        let handle = CubeFusionHandle::from(x);
        let made = InitOperationIr::create(shape, dtype, || client.register_tensor_handle(handle));
        let nothing = NoOp::<CubeBackend>::new();
        let mut outputs = client.register(StreamId::current(), OperationIr::Init(made), nothing);
        outputs.remove(0)
    };
    Tensor::from_primitive::<Cube>(x)
}
