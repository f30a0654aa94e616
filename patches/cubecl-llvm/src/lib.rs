//! Stand-in for `cubecl-llvm` 0.11.3: what `cubecl-cuda` and `cubecl-hip` name, without LLVM. See this folder's README.md.
//!
//! Names and fields are those of the crate it stands for. A kernel that arrives here is refused.

pub mod nvptx;
pub mod shared;

use core::ffi::c_char;
use core::fmt;

use cubecl_common::bytes::Bytes;
use cubecl_core::ir::{amd::GfxArch, nvidia::SmArch};
use cubecl_core::prelude::KernelDefinition;
use cubecl_environment::backtrace::BackTrace;
use cubecl_server::compiler::{CompilationError, Compiler};
use cubecl_server::kernel::BufferIOAttr;

use nvptx::ptx_version::PtxVersion;

/// What a compiler emits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LlvmTarget {
    /// Machine code of this processor.
    #[default]
    Cpu,
    /// An AMD code object.
    AmdGpu,
    /// PTX.
    Nvptx,
}

/// The compiler that is not there.
#[derive(Clone, Debug, Default)]
pub struct PlironCompiler {
    /// What it would emit.
    pub target: LlvmTarget,
}

/// Options of the compiler.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    /// The AMD architecture.
    pub arch: Option<GfxArch>,
    /// The NVIDIA architecture.
    pub sm_arch: Option<SmArch>,
    /// The PTX version.
    pub ptx_version: Option<PtxVersion>,
    /// Whether scalars and metadata lie in the kernel's parameter block.
    pub grid_constants: bool,
}

/// A kernel for an AMD GPU.
#[derive(Clone, Debug)]
pub struct AmdGpuModule {
    /// Loadable code object.
    pub code_object: Bytes,
    /// Name of the kernel.
    pub entrypoint: String,
    /// Text for logs.
    pub ir: String,
    /// Assembly, when asked for.
    pub asm: Option<String>,
    /// Shared memory of a launch, in bytes.
    pub shared_memory_size: usize,
    /// How each buffer is used.
    pub io: Vec<BufferIOAttr>,
}

/// A kernel for an NVIDIA GPU.
#[derive(Clone, Debug)]
pub struct NvptxModule {
    /// PTX, ended by a zero.
    pub ptx: Vec<c_char>,
    /// Name of the kernel.
    pub entrypoint: String,
    /// Text for logs.
    pub ir: String,
    /// Shared memory of a launch, in bytes.
    pub shared_memory_size: usize,
    /// How each buffer is used.
    pub io: Vec<BufferIOAttr>,
}

/// A compiled kernel. None is ever made.
#[derive(Clone)]
pub enum PlironArtifact {
    /// For an AMD GPU.
    AmdGpuCode(AmdGpuModule),
    /// For an NVIDIA GPU.
    NvptxCode(NvptxModule),
}

impl PlironArtifact {
    fn text(&self) -> &str {
        match self {
            Self::AmdGpuCode(module) => &module.ir,
            Self::NvptxCode(module) => &module.ir,
        }
    }
}

impl fmt::Display for PlironArtifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl fmt::Debug for PlironArtifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl Compiler for PlironCompiler {
    type Representation = PlironArtifact;
    type CompilationOptions = PlironOptions;

    fn buffer_io(_kernel: &Self::Representation) -> Option<Vec<BufferIOAttr>> {
        None
    }

    fn compile(
        &mut self,
        _kernel: KernelDefinition,
        _options: &Self::CompilationOptions,
    ) -> Result<Self::Representation, CompilationError> {
        Err(CompilationError::Validation {
            reason: "this build has no LLVM compiler; enable cubecl's features cuda-cpp and hip-cpp, or remove the \
                     patch of cubecl-llvm"
                .into(),
            backtrace: BackTrace::capture(),
        })
    }

    fn extension(&self) -> &'static str {
        "ll"
    }

    fn lang_tag(&self) -> &'static str {
        "llvm"
    }
}
