//! Sizes of a pool.

use burn::tensor::ops::{AvgPoolOptions, MaxPoolOptions};

/// How windows lie over x `[batch, channels, depth, height, width]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Windows {
    /// Size of a window.
    pub kernel: [usize; 3],
    /// From one window to the next.
    pub stride: [usize; 3],
    /// Places before and behind x.
    pub padding: [[usize; 2]; 3],
    /// From one element of a window to the next.
    pub dilation: [usize; 3],
    /// Whether a window that is not whole is one too.
    pub ceil: bool,
}

impl Windows {
    /// Of a greatest element.
    pub fn of_max(options: &MaxPoolOptions<3>) -> Self {
        Self {
            kernel: options.kernel_size,
            stride: options.stride,
            padding: options.padding.map(|(before, behind)| [before, behind]),
            dilation: options.dilation,
            ceil: options.ceil_mode,
        }
    }

    /// Of a mean.
    pub fn of_mean(options: &AvgPoolOptions<3>) -> Self {
        Self {
            kernel: options.kernel_size,
            stride: options.stride,
            padding: options.padding.map(|(before, behind)| [before, behind]),
            dilation: [1; 3],
            ceil: options.ceil_mode,
        }
    }

    /// How many places a window spans along a dimension.
    pub fn extent(&self, dimension: usize) -> usize {
        self.dilation[dimension] * (self.kernel[dimension] - 1) + 1
    }

    /// How many windows lie over a dimension of that size, which one fits. None begins behind x.
    pub fn count(&self, dimension: usize, size: usize) -> usize {
        let (stride, [before, behind]) = (self.stride[dimension], self.padding[dimension]);
        let room = size + before + behind - self.extent(dimension);
        if !self.ceil {
            return room / stride + 1;
        }
        let windows = room.div_ceil(stride) + 1;
        match windows > 1 && (windows - 1) * stride >= size + before {
            true => windows - 1,
            false => windows,
        }
    }
}
