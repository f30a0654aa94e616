//! Burn modules for models that are trained on many ranks, beside those of `burn::nn`: dropout and noise that are functions of
//! (seed, step, name, index), and a batch norm over all replicas' samples. [`check`] finds the layers of Burn that they replace.
//! Convolutions are Burn's, with the records of Burn's layers and a faster way on the CPU; pools in three dimensions, what Burn has in
//! two.

mod batch_norm;
mod check;
mod convolution;
mod dropout;
mod noise;
mod pool;

pub use batch_norm::{SyncBatchNorm, SyncBatchNormConfig};
pub(crate) use check::batch_norms;
pub use check::{check, synchronises};
pub use convolution::{
    Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, Conv3d, Conv3dConfig, ConvTranspose1d,
    ConvTranspose1dConfig, ConvTranspose2d, ConvTranspose2dConfig, ConvTranspose3d,
    ConvTranspose3dConfig,
};
pub use dropout::{Dropout, DropoutConfig};
pub use noise::{GaussianNoise, GaussianNoiseConfig};
pub use pool::{AvgPool3d, AvgPool3dConfig, MaxPool3d, MaxPool3dConfig};
