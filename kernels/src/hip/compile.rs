//! Compiles a kernel's text for its GPU, with a plain clang and no ROCm but its library of mathematical functions.
//!
//! `kernels/hip/gpu.h` stands in for what hipRTC has built in; the options are those that CubeCL gives hipRTC.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::hip::emit::Source;
use crate::hip::isa::Assembly;
use crate::hip::tools::{self, fingerprint, made_once, write};
use crate::matrix::instruction::Target;

/// Everything that decides what a compilation gives, but the text and the compiler.
const FILES: [(&str, &str); 5] = [
    ("arithmetic.h", include_str!("../../hip/arithmetic.h")),
    ("controls.c", include_str!("../../hip/controls.c")),
    ("gpu.h", include_str!("../../hip/gpu.h")),
    ("types.h", include_str!("../../hip/types.h")),
    // The header that a text with bf16 asks for; its types are in types.h.
    ("hip/hip_bf16.h", "#pragma once\n"),
];
const OPTIONS: [&str; 10] = [
    "-x",
    "hip",
    "-std=c++17",
    "-O3",
    "-fms-extensions",
    "--cuda-device-only",
    "--no-gpu-bundle-output",
    "-nogpuinc",
    "-nogpulib",
    "-w",
];
/// A compilation takes less than a second; one that explores many schedules, ten.
const LIMIT: Duration = Duration::from_secs(300);

/// A kernel, compiled for its GPU.
#[derive(Debug, Clone, PartialEq)]
pub struct Compiled {
    /// The assembly.
    pub assembly: Assembly,
    /// What it occupies.
    pub usage: Usage,
}

/// What a kernel occupies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// Vector registers of a lane.
    pub vgprs: usize,
    /// Accumulation registers of a lane, which share the same file on CDNA.
    pub agprs: usize,
    /// Scalar registers of a wave.
    pub sgprs: usize,
    /// LDS of a workgroup, bytes.
    pub shared_memory: usize,
    /// Scratch memory of a lane, bytes.
    pub scratch: usize,
    /// Vector and scalar registers that were spilled.
    pub spills: usize,
    /// Waves that a SIMD holds at a time, as registers and LDS allow.
    pub occupancy: f64,
}

impl Usage {
    /// Registers of a lane in the one file that vector and accumulation registers share.
    pub fn registers(&self) -> usize {
        match self.agprs {
            0 => self.vgprs,
            // Accumulation registers begin at a multiple of four.
            agprs => self.vgprs.next_multiple_of(4) + agprs,
        }
    }
}

/// Compiles `source` for its GPU, or takes the assembly from the cache.
///
/// # Errors
/// A target that is no AMD GPU, a text that does not compile, clang or the device library missing.
pub fn compile(source: &Source) -> Result<Compiled> {
    let architecture = Architecture::of(source)?;
    let (clang, library) = (tools::clang()?, tools::device_library()?);
    let folder = tools::cache()?.join(fingerprint((FILES, OPTIONS, clang, library)));
    for (name, text) in FILES {
        made_once(&folder, name, |file| write(file, text.as_bytes()))?;
    }
    let unit = format!(
        "#include \"gpu.h\"\n#line 1 \"{}.hip\"\n{}",
        source.name, source.text
    );
    let name = fingerprint((&unit, architecture.name));
    let file = made_once(&folder, &format!("{name}.s"), |assembly| {
        let text = made_once(&folder, &format!("{name}.hip"), |file| {
            write(file, unit.as_bytes())
        })?;
        let mut command = Command::new(clang);
        command
            .args(OPTIONS)
            .arg(format!("--offload-arch={}", architecture.name));
        for bitcode in [library.to_owned(), controls(&folder, &architecture, clang)?] {
            command
                .args(["-Xclang", "-mlink-builtin-bitcode", "-Xclang"])
                .arg(bitcode);
        }
        command
            .arg("-I")
            .arg(&folder)
            .arg("-S")
            .arg(text)
            .arg("-o")
            .arg(assembly);
        tools::compile(&mut command, &folder, &source.name, LIMIT)
    })?;
    let text = fs::read_to_string(&file).map_err(|error| tools::cannot("read", &file, &error))?;
    let assembly = Assembly::new(source.target, text);
    let usage = usage(source, &assembly, &architecture)?;
    Ok(Compiled { assembly, usage })
}

/// The name and release of the compiler that kernels are compiled with.
///
/// # Errors
/// It is missing, or does not say.
pub fn compiler() -> Result<String> {
    let folder = tools::cache()?;
    let ended = tools::run(
        Command::new(tools::clang()?).arg("--version"),
        &folder,
        LIMIT,
    )?;
    let mut words = ended
        .output
        .split_whitespace()
        .skip_while(|word| *word != "version");
    match words.nth(1) {
        Some(release) => Ok(format!("clang {release}")),
        None => Err(Error::Tool("clang --version names no version".into())),
    }
}

/// The constants by which the device library is told of its program.
fn controls(folder: &Path, architecture: &Architecture, clang: &Path) -> Result<PathBuf> {
    made_once(
        folder,
        &format!("controls-{}.bc", architecture.name),
        |bitcode| {
            let mut command = Command::new(clang);
            command
                .args([
                    "-x",
                    "c",
                    "-target",
                    "amdgcn-amd-amdhsa",
                    "-nogpulib",
                    "-O2",
                ])
                .arg(format!("-DFRONTIER_ISA={}", architecture.isa))
                .arg(format!("-DFRONTIER_WAVE={}", architecture.lanes))
                .args(["-emit-llvm", "-c"])
                .arg(folder.join("controls.c"))
                .arg("-o")
                .arg(bitcode);
            tools::compile(
                &mut command,
                folder,
                "the device library's constants",
                LIMIT,
            )
        },
    )
}

/// What is to be known of a GPU.
struct Architecture {
    /// The compiler's name.
    name: &'static str,
    /// AMD's number of the instruction set.
    isa: u32,
    lanes: usize,
    /// LDS that four SIMDs share, bytes: a compute unit of CDNA, a workgroup processor of RDNA3.
    shared_memory: usize,
}

impl Architecture {
    const SIMDS: usize = 4;

    fn of(source: &Source) -> Result<Self> {
        let (isa, shared_memory) = match source.target {
            Target::Gfx90a => (9010, 64 << 10),
            Target::Gfx942 => (9402, 64 << 10),
            Target::Gfx1100 => (11000, 128 << 10),
            Target::Cuda | Target::Portable => {
                return Err(Error::Run {
                    kernel: source.name.clone(),
                    reason: format!("{:?} is no AMD GPU; emit the kernel for one", source.target),
                });
            }
        };
        Ok(Self {
            name: source.target.name(),
            isa,
            lanes: source.target.lanes(),
            shared_memory,
        })
    }

    /// Waves a SIMD, of the `waves` that registers allow, when whole workgroups must fit into the LDS as well.
    fn occupancy(&self, source: &Source, waves: usize) -> f64 {
        let units: u32 = source.units.iter().product();
        let of_a_group = (units as usize).div_ceil(self.lanes);
        let by_registers = Self::SIMDS * waves / of_a_group;
        let groups = match source.shared_memory {
            0 => by_registers,
            bytes => by_registers.min(self.shared_memory / bytes),
        };
        (groups * of_a_group) as f64 / Self::SIMDS as f64
    }
}

/// Reads the compiler's own summary, in the comments and metadata that follow the instructions.
fn usage(source: &Source, assembly: &Assembly, architecture: &Architecture) -> Result<Usage> {
    let find = |key: &str| {
        let lines = assembly.text().lines().map(str::trim);
        let value = lines.filter_map(|line| line.strip_prefix(key)).next()?;
        value.trim().parse::<usize>().ok()
    };
    let read = |key: &str| {
        find(key).ok_or_else(|| Error::Run {
            kernel: source.name.clone(),
            reason: format!(
                "the assembly does not say \"{key}\"; use clang {}",
                tools::LLVM
            ),
        })
    };
    Ok(Usage {
        vgprs: read("; NumVgprs:")?,
        agprs: find("; NumAgprs:").unwrap_or(0),
        sgprs: read("; NumSgprs:")?,
        shared_memory: source.shared_memory,
        scratch: read("; ScratchSize:")?,
        spills: read(".sgpr_spill_count:")? + read(".vgpr_spill_count:")?,
        occupancy: architecture.occupancy(source, read("; Occupancy:")?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn occupancy(target: Target, units: u32, shared_memory: usize, waves: usize) -> f64 {
        let source = Source {
            name: "test".into(),
            entry: "test".into(),
            text: String::new(),
            target,
            units: [units, 1, 1],
            shared_memory,
        };
        Architecture::of(&source).unwrap().occupancy(&source, waves)
    }

    #[test]
    fn occupancy_is_what_registers_and_shared_memory_both_allow() {
        assert_eq!(occupancy(Target::Gfx90a, 256, 0, 3), 3.0);
        assert_eq!(occupancy(Target::Gfx90a, 256, 16 << 10, 8), 4.0);
        assert_eq!(occupancy(Target::Gfx90a, 256, 33 << 10, 8), 1.0);
        // Whole workgroups: one of 8 waves is all that three waves a SIMD leave room for.
        assert_eq!(occupancy(Target::Gfx942, 512, 1 << 10, 3), 2.0);
        assert_eq!(occupancy(Target::Gfx942, 64, 40 << 10, 8), 0.25);
        assert_eq!(occupancy(Target::Gfx1100, 128, 64 << 10, 16), 2.0);
    }
}
