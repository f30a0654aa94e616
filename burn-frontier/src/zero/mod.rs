//! Data parallelism and ZeRO (arXiv 1910.02054): gradients summed over replicas in buckets; who holds which piece of them and
//! of the optimiser's state, which is whole on every replica (stage 0) or split over the replicas (stage 1).

pub mod partition;
pub mod reducer;
