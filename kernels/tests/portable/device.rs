//! The device, and its buffers.

use std::io::Write;
use std::sync::OnceLock;

use cubecl_core::client::Client;
use cubecl_core::prelude::BufferArg;
use cubecl_core::server::Handle;
use cubecl_runtime::runtime::Runtime;
use frontier_kernels::hip::emit::elem_type;
use frontier_kernels::matrix::instruction::Element;

use crate::cases::unpack;

/// A device.
pub struct Device {
    pub client: Client,
}

/// A buffer of a number of elements.
pub struct Buffer {
    handle: Handle,
    count: usize,
    element: Element,
}

impl Device {
    /// The device that the variable GPU names: wgpu, if there is none, cuda or rocm; none, with a line that says so, where there
    /// is no such device.
    ///
    /// # Panics
    /// Where the variable names one, and in CI, where these tests must run.
    pub fn find() -> Option<Self> {
        static FOUND: OnceLock<Result<Client, String>> = OnceLock::new();
        let named = std::env::var("GPU").ok();
        let must = named.is_some() || std::env::var("CI").as_deref() == Ok("true");
        match FOUND.get_or_init(|| client(named.as_deref().unwrap_or("wgpu"))) {
            Ok(client) => Some(Self {
                client: client.clone(),
            }),
            Err(reason) => {
                assert!(!must, "{reason}");
                say(&format!("skipped: {reason}"));
                None
            }
        }
    }

    /// The types that it computes with.
    pub fn elements(&self) -> Vec<Element> {
        let supported = |element: &Element| {
            let supported = self.client.properties().supports_type(elem_type(*element));
            if !supported {
                say(&format!(
                    "skipped for {element:?}: the device does not have it"
                ));
            }
            supported
        };
        [Element::F32, Element::F16, Element::Bf16]
            .into_iter()
            .filter(supported)
            .collect()
    }

    /// A buffer with these bytes.
    pub fn buffer(&self, element: Element, bytes: &[u8]) -> Buffer {
        Buffer {
            handle: self.client.create_from_slice(bytes),
            count: bytes.len() / element.bytes(),
            element,
        }
    }
}

/// The runtime's first device.
fn client(name: &str) -> Result<Client, String> {
    match name {
        #[cfg(feature = "wgpu")]
        "wgpu" => first::<cubecl_wgpu::WgpuRuntime>(
            "wgpu finds no adapter; Mesa's software Vulkan is one: apt-get install mesa-vulkan-drivers",
        ),
        #[cfg(feature = "cuda")]
        "cuda" => first::<cubecl_cuda::CudaRuntime>("there is no NVIDIA GPU, or no driver of one"),
        #[cfg(feature = "rocm")]
        "rocm" => first::<cubecl_hip::HipRuntime>("there is no AMD GPU, or no ROCm"),
        _ => Err(format!(
            "GPU={name} is not compiled in: it may be wgpu, cuda or rocm, each with the feature of that name"
        )),
    }
}

fn first<R: Runtime>(nothing: &str) -> Result<Client, String>
where
    R::Device: Default,
{
    match R::enumerate_all_devices().is_empty() {
        true => Err(nothing.into()),
        false => Ok(R::client(&R::Device::default())),
    }
}

/// Writes a line that is seen even where a test passes.
fn say(line: &str) {
    // Without a standard error nobody reads it.
    let _ = writeln!(std::io::stderr(), "{line}");
}

impl Buffer {
    /// As a launch takes it.
    #[expect(unsafe_code)]
    pub fn arg(&self) -> BufferArg {
        // SAFETY: the buffer was made with this length.
        unsafe { BufferArg::from_raw_parts(self.handle.clone(), self.count) }
    }

    /// Its bytes.
    pub fn bytes(&self, device: &Device) -> Vec<u8> {
        device
            .client
            .read_one_unchecked(self.handle.clone())
            .to_vec()
    }

    /// Its numbers.
    pub fn numbers(&self, device: &Device) -> Vec<f64> {
        unpack(self.element, &self.bytes(device))
    }
}
