//! What the tests of operations share: tensors of numbers drawn from a seed, and a GPU, which may be one that the graphics driver
//! imitates.
#![cfg_attr(
    not(any(feature = "wgpu", feature = "cuda", feature = "rocm")),
    allow(dead_code)
)]

pub mod layers;

use burn::tensor::{DType, Device, Tensor, TensorData};

/// The GPU that the variable GPU names: wgpu, if there is none, cuda or rocm. Without such a device a test is skipped and says
/// so; where the variable names it, or CI is true, it fails.
pub fn gpu() -> Option<Device> {
    let named = std::env::var("GPU").ok();
    let must = named.is_some() || std::env::var("CI").is_ok_and(|ci| ci == "true");
    match crate::device::choose(Some(named.as_deref().unwrap_or("wgpu"))) {
        Ok(gpu) => Some(gpu.of_rank(0)),
        Err(error) if must => panic!("no device for GPU={named:?}: {error}"),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// The types that a device computes in.
pub fn types(device: &Device) -> Vec<DType> {
    let supported = |dtype: &DType| {
        let supported = device.supports_dtype(*dtype);
        if !supported {
            eprintln!("skipped for {dtype:?}: the device does not have it");
        }
        supported
    };
    [DType::F32, DType::F16, DType::BF16]
        .into_iter()
        .filter(supported)
        .collect()
}

/// Where and in which type a test computes.
pub struct Place {
    device: Device,
    dtype: DType,
    /// The type whose precision the numbers have.
    precision: DType,
    /// Whether leaves are under Burn's gradient checkpointing.
    checkpointing: bool,
}

impl Place {
    pub fn new(device: &Device, dtype: DType) -> Self {
        Self {
            device: device.clone(),
            dtype,
            precision: dtype,
            checkpointing: false,
        }
    }

    /// The same under Burn's gradient checkpointing.
    pub fn checkpointed(&self) -> Self {
        Self {
            device: self.device.clone(),
            checkpointing: true,
            ..*self
        }
    }

    /// Double precision on the CPU.
    pub fn exact() -> Self {
        Self::new(&Device::flex(), DType::F64)
    }

    /// Double precision on the CPU, for what was computed from numbers of type `precision`.
    pub fn reference(precision: DType) -> Self {
        Self {
            device: Device::flex(),
            dtype: DType::F64,
            precision,
            checkpointing: false,
        }
    }

    /// Numbers in (-1, 1).
    pub fn constant<const D: usize>(&self, shape: [usize; D], seed: u32) -> Tensor<D> {
        Tensor::from_data(self.data(shape, seed), (&self.device, self.dtype))
    }

    /// The same as the leaf of a graph.
    pub fn leaf<const D: usize>(&self, shape: [usize; D], seed: u32) -> Tensor<D> {
        let device = self.device.clone().autodiff();
        let device = match self.checkpointing {
            true => device.gradient_checkpointing(),
            false => device,
        };
        Tensor::from_data(self.data(shape, seed), (&device, self.dtype)).require_grad()
    }

    fn data<const D: usize>(&self, shape: [usize; D], seed: u32) -> TensorData {
        let values = crate::numbers::numbers(seed, shape.iter().product());
        TensorData::new(values, shape)
            .convert_dtype(self.precision)
            .convert_dtype(self.dtype)
    }
}

/// A tensor's numbers.
pub fn numbers<const D: usize>(x: Tensor<D>) -> Vec<f64> {
    x.without_autodiff().into_data().iter::<f64>().collect()
}

/// Asserts that the relative l2 error is within the kernels' limit for a type.
pub fn assert_close(what: &str, dtype: DType, own: &[f64], expected: &[f64]) {
    assert_eq!(own.len(), expected.len(), "{what}");
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut own.iter().zip(expected).map(|(a, b)| a - b));
    let error = difference / norm(&mut expected.iter().copied()).max(1e-30);
    // What docs/kernels.md says of the kernels.
    let limit = match dtype {
        DType::F16 => 1e-3,
        DType::BF16 => 8e-3,
        _ => 3e-6,
    };
    assert!(error <= limit, "{what} in {dtype:?}: error {error:e}");
}
