//! Convolutions have the values, gradients, first values and records of Burn's, and pools in three dimensions those of their windows.

#[path = "convolution/agreement.rs"]
mod agreement;
#[path = "convolution/checkpoints.rs"]
mod checkpoints;
#[path = "convolution/layers.rs"]
mod layers;
#[path = "convolution/misuse.rs"]
mod misuse;
#[path = "numbers/mod.rs"]
mod numbers;
#[path = "convolution/operations.rs"]
mod operations;
#[path = "convolution/pools.rs"]
mod pools;
