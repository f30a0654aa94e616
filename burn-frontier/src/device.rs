//! Which device a run takes, and how much memory it has.

mod gpu;
pub mod memory;

use burn::tensor::{DType, Device};

use crate::error::{Error, Result};
use gpu::{RUNTIMES, Taken};
use memory::{Limit, Room, peak_resident_bytes};

/// The devices of a run and why they were taken.
#[derive(Debug, Clone)]
pub struct Choice {
    /// At least one, without autodiff.
    devices: Vec<Device>,
    /// What they are called.
    name: String,
    /// One sentence for the user.
    pub reason: String,
}

impl Choice {
    /// The device of a rank, without autodiff. Ranks take the devices in turn, so several may share one.
    pub fn of_rank(&self, rank: usize) -> Device {
        self.devices[self.index_of_rank(rank)].clone()
    }

    /// The number of a rank's device, from 0.
    pub fn index_of_rank(&self, rank: usize) -> usize {
        rank % self.devices.len()
    }

    /// How many devices there are.
    pub fn count(&self) -> usize {
        self.devices.len()
    }

    /// Memory that the ranks of device number `index` can take together: of the host's where it is the processor, else of
    /// the GPU's own, all of which counts as free. `None` where the system or the driver does not say.
    pub fn room(&self, index: usize) -> Option<Room> {
        if self.is_processor() {
            return memory::host();
        }
        let bytes = gpu::capacity(self.devices.get(index)?)?;
        let limit = Limit::Gpu;
        Some(Room { bytes, limit })
    }

    /// Memory that this process holds, in bytes, where it is known: of the processor's the most so far (see
    /// [`peak_resident_bytes`]); of a GPU's what its allocator has reserved now, on the fullest of several.
    pub fn held_bytes(&self) -> Option<u64> {
        if self.is_processor() {
            return peak_resident_bytes();
        }
        let reserved = |device: &Device| Some(device.memory_pool_usage()?.bytes_reserved);
        self.devices.iter().filter_map(reserved).max()
    }

    /// What the devices are called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is the processor that computes: by Burn's flex backend, or by a graphics driver that imitates a GPU.
    pub fn is_processor(&self) -> bool {
        self.devices.iter().all(gpu::is_processor)
    }

    /// Whether it is Burn's flex backend that computes.
    pub fn is_flex(&self) -> bool {
        self.devices.iter().all(gpu::is_flex)
    }

    /// Refuses a type of floats that the devices cannot compute with.
    ///
    /// # Errors
    /// Such a type.
    pub fn check_dtype(&self, dtype: DType) -> Result<()> {
        let can = |device: &Device| device.supports_dtype(dtype);
        if self.devices.iter().all(can) {
            return Ok(());
        }
        Err(Error::config(
            format!("{} cannot compute in {dtype:?}", self.name),
            "use another precision (fp32 works everywhere), or another device",
        ))
    }

    /// By what the CPU computes in a type of half precision; `None` for other types and devices.
    pub fn half_by(&self, dtype: DType) -> Option<&'static str> {
        match dtype {
            _ if !self.is_flex() => None,
            #[cfg(feature = "flex")]
            DType::BF16 if frontier_kernels_cpu::product::multiplies_pairs() => {
                Some("bf16 products by AVX512-BF16, summed in fp32")
            }
            DType::BF16 => Some("bf16 products in fp32: this CPU has no AVX512-BF16"),
            DType::F16 => Some(
                "fp16 by Burn's own operations, which are slow on a CPU: bf16 and fp32 have kernels",
            ),
            _ => None,
        }
    }
}

/// Takes the devices named `name`, or the best that are compiled in and present: `rocm`, `cuda`, `wgpu`, then the CPU.
///
/// `name` is `auto`, `cpu`, `wgpu`, `cuda` or `rocm`. `cuda:1` is one GPU; `cuda` and `rocm` are all of the machine's, which
/// the ranks take in turn; `wgpu` is the best that the graphics driver offers. A GPU that is taken has computed a sum first. A
/// graphics driver that only imitates a GPU on the CPU (Mesa's llvmpipe) is taken only by name.
///
/// # Errors
/// A device that is unknown, not compiled in, not there, or not usable.
pub fn choose(name: Option<&str>) -> Result<Choice> {
    match name {
        None | Some("auto") => best(),
        Some("cpu" | "flex") => {
            cpu("it was asked for").ok_or_else(|| not_compiled_in("cpu", "flex"))
        }
        Some(name) => named(name),
    }
}

fn best() -> Result<Choice> {
    let mut absent = Vec::new();
    for runtime in RUNTIMES.into_iter().filter(|r| r.is_compiled_in()) {
        match runtime.take_hardware() {
            Ok(taken) => {
                absent.push("it is the best that is compiled in and present".into());
                return Ok(choice(taken, &absent.join("; ")));
            }
            Err((what, _)) => absent.push(format!("{} is compiled in, but {what}", runtime.name())),
        }
    }
    let why = if absent.is_empty() {
        "it is the only device compiled in".to_string()
    } else {
        absent.join("; ")
    };
    cpu(&why).ok_or_else(|| {
        let remedy = "build with --features flex for the CPU, or wgpu, cuda or rocm for a GPU";
        if absent.is_empty() {
            Error::config("no device is compiled in", remedy)
        } else {
            Error::config(format!("there is no device: {why}"), remedy)
        }
    })
}

fn named(name: &str) -> Result<Choice> {
    let unknown = || {
        Error::config(
            format!("there is no device named '{name}'"),
            "use auto, cpu, wgpu, cuda or rocm, or one GPU by its number, as in cuda:1",
        )
    };
    let (family, index) = match name.split_once(':') {
        None => (name, None),
        Some((family, index)) => (family, Some(index.parse().map_err(|_| unknown())?)),
    };
    let runtime = RUNTIMES
        .into_iter()
        .find(|runtime| runtime.name() == family)
        .ok_or_else(unknown)?;
    if !runtime.is_compiled_in() {
        return Err(not_compiled_in(runtime.name(), runtime.name()));
    }
    let taken = runtime.take(index).map_err(|(what, remedy)| {
        let remedy = format!("{remedy}, or use the device auto");
        Error::config(format!("the device {name}: {what}"), remedy)
    })?;
    Ok(choice(taken, "it was asked for"))
}

fn not_compiled_in(name: &str, feature: &str) -> Error {
    Error::config(
        format!("the device {name} is not compiled in"),
        format!("build with --features {feature}, or use the device auto"),
    )
}

fn choice((devices, name): Taken, why: &str) -> Choice {
    Choice {
        devices,
        reason: format!("{name}, because {why}"),
        name,
    }
}

#[cfg(feature = "flex")]
fn cpu(why: &str) -> Option<Choice> {
    let name = "CPU (Burn's flex backend)".to_string();
    Some(choice((vec![Device::flex()], name), why))
}

#[cfg(not(feature = "flex"))]
fn cpu(_why: &str) -> Option<Choice> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(name: &str) -> String {
        choose(Some(name)).unwrap_err().to_string()
    }

    #[test]
    fn the_cpu_is_taken_by_name_and_computes_in_every_type() {
        let cpu = choose(Some("cpu")).unwrap();
        assert_eq!(cpu.of_rank(3), Device::flex());
        assert!(cpu.is_processor());
        for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
            cpu.check_dtype(dtype).unwrap();
            // What is half as wide is not silently as slow.
            assert_eq!(cpu.half_by(dtype).is_some(), dtype.size() == 2);
        }
    }

    #[test]
    #[cfg(not(any(feature = "wgpu", feature = "cuda", feature = "rocm")))]
    fn a_build_without_gpus_takes_the_cpu_and_names_the_missing_feature() {
        let auto = choose(None).unwrap();
        assert_eq!(auto.of_rank(0), Device::flex());
        assert!(auto.reason.contains("the only device"), "{}", auto.reason);
        for name in ["rocm", "cuda", "wgpu:1"] {
            let feature = format!("--features {}", name.trim_end_matches(":1"));
            let message = refusal(name);
            assert!(message.contains(&feature), "{message}");
        }
    }

    #[test]
    fn a_name_that_no_device_has_is_refused_with_the_names_there_are() {
        for name in ["gpu", "cuda:first", "cpu:1", ""] {
            let message = refusal(name);
            assert!(
                message.contains("use auto, cpu, wgpu, cuda or rocm"),
                "{message}"
            );
        }
    }

    #[test]
    fn the_processor_has_the_hosts_memory_and_the_processs_peak() {
        let cpu = choose(Some("cpu")).unwrap();
        assert_eq!(cpu.count(), 1);
        assert_eq!(cpu.room(0).is_some(), memory::host().is_some());
        assert_eq!(cpu.held_bytes().is_some(), peak_resident_bytes().is_some());
    }

    #[test]
    fn ranks_take_the_devices_in_turn() {
        let devices = vec![Device::flex(), Device::flex().autodiff()];
        let two = choice((devices, "two".into()), "of a test");
        let takes = |rank| two.of_rank(rank).is_autodiff();
        assert_eq!([0, 1, 2, 3].map(takes), [false, true, false, true]);
    }
}
