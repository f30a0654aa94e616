//! The kernels on a device through `launch`: one that wgpu finds, in CI Mesa's software Vulkan, or with `GPU=cuda` or
//! `GPU=rocm` (and that feature) one of those. One module a family.

#![cfg(any(feature = "wgpu", feature = "cuda", feature = "rocm"))]
#![allow(missing_docs)]

mod adamw;
mod attention;
#[path = "../cases/mod.rs"]
mod cases;
mod cross_entropy;
mod device;
mod dropout;
mod gemm;
mod norm;
mod refusals;
mod refused_attention;
mod rotary;
mod tune;
