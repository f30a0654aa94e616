//! Convolutions have the values, gradients, first values and records of Burn's.

#[path = "convolution/agreement.rs"]
mod agreement;
#[path = "convolution/layers.rs"]
mod layers;
#[path = "convolution/misuse.rs"]
mod misuse;
#[path = "numbers/mod.rs"]
mod numbers;
#[path = "convolution/operations.rs"]
mod operations;
