//! Kernels for AMD's matrix cores.
//!
//! What is here: the matrix instructions of CDNA2 and CDNA3 as data, and the maps that say which element of a matrix
//! each lane holds ([`matrix`]). The kernels themselves, and their emission as HIP C++, come with a later change: this
//! crate runs nothing on a GPU yet.

pub mod matrix;
