//! Writes a kernel as HIP C++, for NVIDIA as CUDA C++, with no device, no ROCm and no CUDA toolkit.

use std::sync::Arc;

use cubecl_core::ir::features::Features;
use cubecl_core::ir::types::MatrixLayout;
use cubecl_core::ir::{
    AddressType, ContiguousElements, DeviceIdentity, DeviceProperties, ElemType, FloatKind,
    HardwareProperties, IntKind, MemoryDeviceProperties, MmaProperties, TargetProperties,
    VectorSize,
};
use cubecl_core::prelude::*;
use cubecl_core::{Compiler, CubeKernel, define_kernel};
use cubecl_cpp::hip::arch::AmdWmma;
use cubecl_cpp::hip::mma::manual::contiguous_elements_rdna3;
use cubecl_cpp::shared::{CompilationOptions, CppCompiler};
use cubecl_cpp::target::{Cuda, Hip};

use crate::error::{Error, Result};
use crate::matrix::instruction::{Element, Target};

/// A kernel as HIP C++ or, for [`Target::Cuda`], as CUDA C++.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Its name in the catalog.
    pub name: String,
    /// The symbol to launch.
    pub entry: String,
    /// The text.
    pub text: String,
    /// The GPU that it was generated for.
    pub target: Target,
    /// Units of a workgroup, along x, y, z.
    pub units: [u32; 3],
    /// Shared memory (LDS) of a workgroup, bytes.
    pub shared_memory: usize,
}

/// What a kernel's constructor takes before its own arguments.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Workgroup, execution mode, address type.
    pub settings: KernelSettings,
    /// The device that is assumed.
    pub device: Arc<DeviceProperties>,
    /// CubeCL's view of its matrix unit.
    pub target: Arc<TargetProperties>,
}

/// A kernel's buffer argument, as its constructor takes it.
pub fn buffer() -> BufferCompilationArg {
    BufferCompilationArg { inplace: None }
}

/// CubeCL's name of an element type.
pub fn elem_type(element: Element) -> ElemType {
    match element {
        Element::F16 => ElemType::Float(FloatKind::F16),
        Element::Bf16 => ElemType::Float(FloatKind::BF16),
        Element::F32 => ElemType::Float(FloatKind::F32),
        Element::F64 => ElemType::Float(FloatKind::F64),
        Element::I8 => ElemType::Int(IntKind::I8),
        Element::I32 => ElemType::Int(IntKind::I32),
    }
}

/// Writes the kernel that `build` constructs, for workgroups of `units`. Accesses are not checked: a kernel of this crate
/// stays within its buffers by itself.
///
/// # Errors
/// [`Target::Portable`], or a kernel that CubeCL cannot render.
pub fn emit<K: CubeKernel>(
    name: impl Into<String>,
    target: Target,
    units: [u32; 3],
    build: impl FnOnce(Setting) -> K,
) -> Result<Source> {
    let name = name.into();
    let failed = |reason: String| Error::Emit {
        kernel: name.clone(),
        reason,
    };
    if !target.has_operations() {
        return Err(failed(format!(
            "{target:?} is rendered by its runtime alone"
        )));
    }
    let kernel = build(Setting {
        settings: KernelSettings::new(
            *CubeDim::new_3d(units[0], units[1], units[2]),
            ExecutionMode::Unchecked,
            AddressType::U32,
        ),
        device: device(target),
        target: Arc::new(matrix_unit()),
    });
    let definition = define_kernel(&kernel).map_err(|e| failed(format!("{e:?}")))?;
    let options = CompilationOptions {
        warp_size: target.lanes(),
        amd_wmma: (target == Target::Gfx1100).then_some(AmdWmma::Rdna3),
        ..CompilationOptions::default()
    };
    let compiled = match target {
        Target::Cuda => CppCompiler::<Cuda>::default().compile(definition, &options),
        _ => CppCompiler::<Hip>::default().compile(definition, &options),
    }
    .map_err(|e| failed(format!("{e:?}")))?;
    let entry = entry(&compiled.source).ok_or_else(|| failed("the text has no entry".into()))?;
    Ok(Source {
        entry,
        text: compiled.source,
        target,
        units,
        shared_memory: compiled.shared_memory_size,
        name,
    })
}

/// The name after `extern "C" __global__ void __launch_bounds__(..)`.
fn entry(text: &str) -> Option<String> {
    let line = text
        .lines()
        .find(|l| l.starts_with("extern \"C\" __global__"))?;
    let (_, rest) = line.split_once("__launch_bounds__(")?;
    let (_, rest) = rest.split_once(") ")?;
    let (name, _) = rest.split_once('(')?;
    Some(name.trim().to_owned())
}

fn device(target: Target) -> Arc<DeviceProperties> {
    let lanes = target.lanes() as u32;
    let hardware = HardwareProperties {
        load_width: 128,
        vector_register_count: None,
        plane_size_min: lanes,
        plane_size_max: lanes,
        max_bindings: 32,
        max_shared_memory_size: target.shared_memory(),
        max_cube_count: (u32::MAX, 65535, 65535),
        max_units_per_cube: 1024,
        max_cube_dim: (1024, 1024, 1024),
        num_streaming_multiprocessors: None,
        num_tensor_cores: None,
        min_tensor_cores_dim: None,
        num_cpu_cores: None,
        last_level_cache_size: None,
        max_vector_size: VectorSize::MAX,
        cube_mma_reserved_shared_memory: 0,
    };
    Arc::new(DeviceProperties::new(
        Features::default(),
        MemoryDeviceProperties::new(u64::MAX, 256),
        hardware,
        cubecl_core::profile::TimingMethod::Device,
        DeviceIdentity {
            name: "offline".into(),
            fingerprint: "offline".into(),
            physical: None,
        },
    ))
}

/// RDNA3's matrix unit, as CubeCL's HIP runtime describes it; MFMA is ours and asks nothing of this.
fn matrix_unit() -> TargetProperties {
    TargetProperties {
        mma: MmaProperties {
            register_size_bits: 32,
            const_plane_size: 32,
            register_layout_a: MatrixLayout::RowMajor,
            register_layout_b: MatrixLayout::ColMajor,
            register_layout_acc: MatrixLayout::ColMajor,
            register_duplication_a: 2,
            register_duplication_b: 2,
            register_duplication_acc: 1,
            contiguous_elements: ContiguousElements::new(contiguous_elements_rdna3),
        },
    }
}
