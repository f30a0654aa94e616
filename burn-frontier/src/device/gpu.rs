//! GPUs: which are there, and whether they work.

use std::panic::{AssertUnwindSafe, catch_unwind};

#[cfg(any(feature = "wgpu", feature = "cuda", feature = "rocm"))]
use burn::backend::DispatchDevice;
#[cfg(feature = "wgpu")]
use burn::tensor::DeviceKind;
#[cfg(any(feature = "wgpu", feature = "cuda", feature = "rocm"))]
use burn::tensor::DeviceType;
use burn::tensor::{Device, Tensor};

/// Devices that work, the best first, and what to call them.
pub(super) type Taken = (Vec<Device>, String);

/// Why nothing was taken, and what to do.
pub(super) type Refusal = (String, &'static str);

/// A way to reach GPUs, named on the command line as among Cargo's features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Runtime {
    Rocm,
    Cuda,
    Wgpu,
}

/// In the order in which they are preferred.
pub(super) const RUNTIMES: [Runtime; 3] = [Runtime::Rocm, Runtime::Cuda, Runtime::Wgpu];

impl Runtime {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Rocm => "rocm",
            Self::Cuda => "cuda",
            Self::Wgpu => "wgpu",
        }
    }

    pub(super) const fn is_compiled_in(self) -> bool {
        match self {
            Self::Rocm => cfg!(feature = "rocm"),
            Self::Cuda => cfg!(feature = "cuda"),
            Self::Wgpu => cfg!(feature = "wgpu"),
        }
    }

    /// What must be on the machine, as a remedy.
    const fn needs(self) -> &'static str {
        match self {
            Self::Rocm => {
                "it needs an AMD GPU and ROCm's libamdhip64 and libhiprtc (ROCM_PATH names their folder)"
            }
            Self::Cuda => {
                "it needs an NVIDIA GPU, its driver, and the CUDA toolkit with NVRTC (CUDA_PATH names its folder)"
            }
            Self::Wgpu => "it needs a Vulkan, Metal or Direct3D 12 driver",
        }
    }

    const fn absent(self) -> &'static str {
        match self {
            Self::Rocm => "no AMD GPU with ROCm was found",
            Self::Cuda => "no NVIDIA GPU with a driver was found",
            Self::Wgpu => "no graphics driver was found",
        }
    }

    /// All GPUs, or the one numbered `index`; of graphics drivers, the best. The first has been tried out.
    pub(super) fn take(self, index: Option<usize>) -> Result<Taken, Refusal> {
        let mut devices = self.find()?;
        let last = devices.len() - 1;
        match index {
            Some(index) if index <= last => devices = vec![devices.swap_remove(index)],
            Some(index) => {
                let what = format!("there is no number {index}; the last is {last}");
                return Err((what, "leave the number out"));
            }
            // A laptop's second adapter is no match for its first.
            None if self == Self::Wgpu => devices.truncate(1),
            None => {}
        }
        let first = try_out(&devices[0]).map_err(|what| (what, self.needs()))?;
        let more = match devices.len() {
            1 => String::new(),
            count => format!(" and {} more, taken by the ranks in turn", count - 1),
        };
        let imitation = if is_imitation(&devices[0]) {
            ", a graphics driver that imitates a GPU on the CPU"
        } else {
            ""
        };
        Ok((
            devices,
            format!("{first}{more} ({}{imitation})", self.name()),
        ))
    }

    /// As [`Self::take`], but no graphics driver that only imitates a GPU: the CPU itself is faster.
    pub(super) fn take_hardware(self) -> Result<Taken, Refusal> {
        if is_imitation(&self.find()?[0]) {
            let what = "its graphics driver only imitates a GPU on the CPU";
            return Err((what.into(), "name it to take it all the same"));
        }
        self.take(None)
    }

    /// The devices that are there, at least one, the best first. Opens none of them.
    fn find(self) -> Result<Vec<Device>, Refusal> {
        let find = || match self {
            #[cfg(feature = "rocm")]
            Self::Rocm => Device::enumerate(DeviceType::Rocm).into_vec(),
            #[cfg(feature = "cuda")]
            Self::Cuda => Device::enumerate(DeviceType::Cuda).into_vec(),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => adapters(),
            #[allow(unreachable_patterns)]
            _ => Vec::new(),
        };
        match without_panic(find) {
            Ok(devices) if devices.is_empty() => Err((self.absent().into(), self.needs())),
            Ok(devices) => Ok(devices),
            Err(panic) => Err((format!("{}: {panic}", self.absent()), self.needs())),
        }
    }
}

/// The graphics adapters: discrete GPUs, integrated, virtual, unknown, imitations.
#[cfg(feature = "wgpu")]
fn adapters() -> Vec<Device> {
    const KINDS: [fn(usize) -> DeviceKind; 3] = [
        DeviceKind::DiscreteGpu,
        DeviceKind::IntegratedGpu,
        DeviceKind::VirtualGpu,
    ];
    let mut devices = Device::enumerate(DeviceType::Wgpu).into_vec();
    let count = devices.len();
    let place = |device: &Device| {
        let is =
            |kind: &fn(usize) -> DeviceKind| (0..count).any(|i| *device == Device::wgpu(kind(i)));
        let known = KINDS.iter().position(is);
        known.unwrap_or(KINDS.len() + usize::from(is_imitation(device)))
    };
    devices.sort_by_key(place);
    devices
}

/// Whether a device computes on the CPU.
pub(super) fn is_processor(device: &Device) -> bool {
    is_flex(device) || is_imitation(device)
}

/// Whether a device is Burn's flex backend.
#[cfg(feature = "flex")]
pub(super) fn is_flex(device: &Device) -> bool {
    *device == Device::flex()
}

#[cfg(not(feature = "flex"))]
pub(super) const fn is_flex(_device: &Device) -> bool {
    false
}

/// Whether a graphics driver computes on the CPU.
#[cfg(feature = "wgpu")]
fn is_imitation(device: &Device) -> bool {
    *device == Device::wgpu(DeviceKind::Cpu)
}

#[cfg(not(feature = "wgpu"))]
fn is_imitation(_device: &Device) -> bool {
    false
}

/// Bytes of a GPU's own memory, if its driver says how much that is; wgpu says it on Vulkan and Metal.
#[cfg(any(feature = "wgpu", feature = "cuda", feature = "rocm"))]
pub(super) fn capacity(device: &Device) -> Option<u64> {
    match device.as_dispatch() {
        DispatchDevice::Cube(device) => device.client().properties().memory.max_memory(),
        _ => None,
    }
}

#[cfg(not(any(feature = "wgpu", feature = "cuda", feature = "rocm")))]
pub(super) fn capacity(_device: &Device) -> Option<u64> {
    None
}

/// Computes a sum on a device. Gives the device's name, or says what went wrong.
fn try_out(device: &Device) -> Result<String, String> {
    let sum = || {
        let two = Tensor::<1>::ones([1], device).add_scalar(1.0);
        let data = two.try_into_data().map_err(|e| e.to_string())?;
        match data.try_to_vec::<f32>().as_deref() {
            Ok([2.0]) => Ok(name(device)),
            other => Err(format!("1 + 1 gave {other:?}")),
        }
    };
    without_panic(sum)
        .flatten()
        .map_err(|what| format!("{device:?} is there but does not work: {what}"))
}

#[cfg(any(feature = "wgpu", feature = "cuda", feature = "rocm"))]
fn name(device: &Device) -> String {
    device
        .identity()
        .map_or_else(|| format!("{device:?}"), |identity| identity.name)
}

#[cfg(not(any(feature = "wgpu", feature = "cuda", feature = "rocm")))]
fn name(device: &Device) -> String {
    format!("{device:?}")
}

/// What `body` gives, or the message of its panic: CubeCL panics where a driver is there but a compiler or a permission
/// is not.
fn without_panic<T>(body: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(body)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("a panic without a message")
            .into()
    })
}
