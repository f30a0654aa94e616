//! GPU kernels written once in Rust, over a matrix-core layer of our own.
//!
//! [`matrix`] has the matrix instructions as data, their register maps, and operations of our own: MFMA on CDNA, where CubeCL has
//! rocWMMA's fragments only, `mma.sync` on NVIDIA with its operands exchanged, `exp2`, scheduling hints. [`hip`] writes kernels as
//! HIP C++ or CUDA C++ and proves what can be proved without such a GPU.

// `#[cube]` functions are Rust, but not all of Rust: what clippy proposes instead does not expand.
#![allow(
    clippy::manual_is_multiple_of,
    clippy::needless_range_loop,
    clippy::too_many_arguments,
    clippy::useless_conversion
)]
// Kernels are launched with arguments that only their launcher has checked.
#![allow(unsafe_code)]

pub mod adamw;
mod argument;
pub mod attention;
pub mod catalog;
pub mod cross_entropy;
pub mod device;
pub mod dropout;
pub mod error;
pub mod gemm;
pub mod hip;
pub mod matrix;
pub mod norm;
pub mod random;
pub mod rotary;
pub mod rows;
pub mod tune;
