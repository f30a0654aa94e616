//! Kernels as HIP C++, for NVIDIA as CUDA C++, and what can be proved of them without such a GPU: [`emit`] writes the text,
//! [`compile`] compiles it for its AMD GPU, [`isa`] reads the assembly, [`table`] keeps the figures, [`run`] executes the same text on the CPU.

pub mod compile;
pub mod emit;
pub mod isa;
pub mod run;
pub mod table;
mod text;
pub(crate) mod tools;
