//! Pools in three dimensions, as Burn's layers of two.

use burn::config::Config;
use burn::module::Module;
use burn::nn::PaddingConfig3d;
use burn::tensor::Tensor;

use super::convolution::Padding;
use crate::error::Result;
use crate::ops::pool::{AvgPoolOptions, MaxPoolOptions, avg_pool3d, max_pool3d};

/// Configuration of [`MaxPool3d`], as that of Burn's pool of two dimensions.
#[derive(Config, Debug)]
pub struct MaxPool3dConfig {
    /// Size of a window.
    pub kernel_size: [usize; 3],
    /// From one window to the next. Default: a window's size.
    #[config(default = "kernel_size")]
    pub strides: [usize; 3],
    /// Places around x, which are never the greatest. Default: none.
    #[config(default = "PaddingConfig3d::Valid")]
    pub padding: PaddingConfig3d,
    /// From one element of a window to the next. Default: 1.
    #[config(default = "[1, 1, 1]")]
    pub dilation: [usize; 3],
    /// Whether a window that is not whole is one too. Default: false.
    #[config(default = "false")]
    pub ceil_mode: bool,
}

impl MaxPool3dConfig {
    /// The layer.
    pub fn init(&self) -> MaxPool3d {
        MaxPool3d {
            stride: self.strides,
            kernel_size: self.kernel_size,
            padding: self.padding.clone(),
            dilation: self.dilation,
            ceil_mode: self.ceil_mode,
        }
    }
}

/// The greatest element of each window in three dimensions.
#[derive(Module, Debug)]
pub struct MaxPool3d {
    /// From one window to the next.
    pub stride: [usize; 3],
    /// Size of a window.
    pub kernel_size: [usize; 3],
    /// Places around x.
    #[module(skip)]
    pub padding: PaddingConfig3d,
    /// From one element of a window to the next.
    pub dilation: [usize; 3],
    /// Whether a window that is not whole is one too.
    pub ceil_mode: bool,
}

impl MaxPool3d {
    /// The pool of x `[batch, channels, depth, height, width]`.
    ///
    /// # Errors
    /// Those of [`max_pool3d`].
    pub fn forward(&self, x: Tensor<5>) -> Result<Tensor<5>> {
        let [_, _, input @ ..] = x.dims();
        let options = MaxPoolOptions {
            kernel_size: self.kernel_size,
            stride: self.stride,
            padding: self.padding.pairs(input, self.kernel_size, self.stride),
            dilation: self.dilation,
            ceil_mode: self.ceil_mode,
        };
        max_pool3d(x, options)
    }
}

/// Configuration of [`AvgPool3d`], as that of Burn's pool of two dimensions.
#[derive(Config, Debug)]
pub struct AvgPool3dConfig {
    /// Size of a window.
    pub kernel_size: [usize; 3],
    /// From one window to the next. Default: a window's size.
    #[config(default = "kernel_size")]
    pub strides: [usize; 3],
    /// Zeros around x. Default: none.
    #[config(default = "PaddingConfig3d::Valid")]
    pub padding: PaddingConfig3d,
    /// Whether the zeros around x count. Default: true.
    #[config(default = "true")]
    pub count_include_pad: bool,
    /// Whether a window that is not whole is one too. Default: false.
    #[config(default = "false")]
    pub ceil_mode: bool,
}

impl AvgPool3dConfig {
    /// The layer.
    pub fn init(&self) -> AvgPool3d {
        AvgPool3d {
            stride: self.strides,
            kernel_size: self.kernel_size,
            padding: self.padding.clone(),
            count_include_pad: self.count_include_pad,
            ceil_mode: self.ceil_mode,
        }
    }
}

/// The mean of each window in three dimensions.
#[derive(Module, Debug)]
pub struct AvgPool3d {
    /// From one window to the next.
    pub stride: [usize; 3],
    /// Size of a window.
    pub kernel_size: [usize; 3],
    /// Zeros around x.
    #[module(skip)]
    pub padding: PaddingConfig3d,
    /// Whether the zeros around x count.
    pub count_include_pad: bool,
    /// Whether a window that is not whole is one too.
    pub ceil_mode: bool,
}

impl AvgPool3d {
    /// The pool of x `[batch, channels, depth, height, width]`.
    ///
    /// # Errors
    /// Those of [`avg_pool3d`].
    pub fn forward(&self, x: Tensor<5>) -> Result<Tensor<5>> {
        let [_, _, input @ ..] = x.dims();
        let options = AvgPoolOptions {
            kernel_size: self.kernel_size,
            stride: self.stride,
            padding: self.padding.pairs(input, self.kernel_size, self.stride),
            count_include_pad: self.count_include_pad,
            ceil_mode: self.ceil_mode,
        };
        avg_pool3d(x, options)
    }
}
