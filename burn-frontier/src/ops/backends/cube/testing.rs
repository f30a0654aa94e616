//! What the tests of the kernels' use share: a GPU, which may be one that the graphics driver imitates, and tensors.

use burn::tensor::{DType, Device, Tensor, TensorData};

/// The GPU; without one a test is skipped and says so, and fails in CI.
pub fn gpu() -> Option<Device> {
    let Ok(gpu) = crate::device::choose(Some("wgpu")) else {
        assert!(std::env::var_os("CI").is_none(), "no Vulkan adapter");
        eprintln!("skipped: wgpu finds no adapter");
        return None;
    };
    Some(gpu.of_rank(0))
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
        let mut s = seed;
        let next = || {
            s = s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            s as f32 / 2f32.powi(31) - 1.0
        };
        let values = std::iter::repeat_with(next).take(shape.iter().product());
        TensorData::new(values.collect::<Vec<f32>>(), shape)
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
    let limit = match dtype {
        DType::F16 => 1e-3,
        DType::BF16 => 8e-3,
        _ => 3e-6,
    };
    assert!(error <= limit, "{what} in {dtype:?}: error {error:e}");
}
