//! Tensor parallelism (arXiv 1909.08053) and sequence parallelism (arXiv 2205.05198).

pub mod embedding;
pub mod linear;
pub mod maps;
