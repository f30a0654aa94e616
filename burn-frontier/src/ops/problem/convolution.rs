//! Sizes of a convolution.

/// A convolution of x `[batch, inputs, input...]` with weights `[outputs, inputs / groups, kernel...]`. It always has three
/// dimensions: one that is missing stands ahead of the others and has size 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Convolution {
    /// Samples.
    pub batch: usize,
    /// Parts that the channels are divided into, which do not see each other.
    pub groups: usize,
    /// Channels of x.
    pub inputs: usize,
    /// Channels of the result.
    pub outputs: usize,
    /// Places of x.
    pub input: [usize; 3],
    /// Taps.
    pub kernel: [usize; 3],
    /// From one place of the result to the next, in places of x.
    pub stride: [usize; 3],
    /// Zeros before and behind x.
    pub padding: [[usize; 2]; 3],
    /// From one tap to the next, in places of x.
    pub dilation: [usize; 3],
}

impl Convolution {
    /// Places of the result, of a kernel that fits.
    pub fn output(&self) -> [usize; 3] {
        std::array::from_fn(|i| {
            let [before, behind] = self.padding[i];
            let extent = self.dilation[i] * (self.kernel[i] - 1) + 1;
            (self.input[i] + before + behind - extent) / self.stride[i] + 1
        })
    }
}
