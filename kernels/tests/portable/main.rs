//! The kernels on a device that wgpu finds, through `launch`: in CI Mesa's software Vulkan. One module a family.

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
mod rotary;
mod tune;
