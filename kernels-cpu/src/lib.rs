//! Kernels for a CPU's vector units, on plain slices: no tensors, no autodiff.
//!
//! A family is a folder: products of matrices whose operands are packed on the way ([`product`]), and what is built on them. Loops are
//! written once over [`pulp`]'s vectors and compiled for each instruction set. How many threads there are changes no result: work is
//! cut by shapes alone, and sums have an order of their own.

pub mod attention;
pub mod batch_norm;
pub mod convolution;
pub mod element;
pub mod linear;
pub mod math;
pub mod memory;
pub mod parallel;
pub mod pool;
mod prefetch;
pub mod product;
