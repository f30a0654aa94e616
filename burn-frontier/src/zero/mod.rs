//! Data parallelism and ZeRO (arXiv 1910.02054): gradients summed over replicas in buckets, optimiser state kept whole
//! (stage 0) or split over the replicas (stage 1).

pub mod optimizer;
pub mod partition;
pub mod reducer;
pub mod state;
