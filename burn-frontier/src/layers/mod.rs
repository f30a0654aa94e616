//! Burn modules for models that are trained on many ranks, beside those of `burn::nn`: dropout and noise that are functions of
//! (seed, step, name, index), and a batch norm over all replicas' samples. [`check`] finds the layers of Burn that they replace.

mod batch_norm;
mod check;
mod dropout;
mod noise;

pub use batch_norm::{SyncBatchNorm, SyncBatchNormConfig};
pub(crate) use check::batch_norms;
pub use check::{check, synchronises};
pub use dropout::{Dropout, DropoutConfig};
pub use noise::{GaussianNoise, GaussianNoiseConfig};
