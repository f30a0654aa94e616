//! Burn's layers of convolutions, whose fields and records these have, by the operations of [`ops::convolution`](crate::ops::convolution).

use burn::config::Config;
use burn::module::{Content, DisplaySettings, Module, ModuleDisplay, Param};
use burn::nn::{Initializer, PaddingConfig1d, PaddingConfig2d, PaddingConfig3d, conv as burns};
use burn::tensor::{Device, Tensor};

use crate::error::{Error, Result};
use crate::ops::convolution as ops;
use crate::ops::convolution::{ConvOptions, ConvTransposeOptions};

/// A number a dimension; Burn's layers of one dimension have it without brackets.
trait Sizes<const N: usize>: Copy {
    fn sizes(self) -> [usize; N];
}

impl Sizes<1> for usize {
    fn sizes(self) -> [usize; 1] {
        [self]
    }
}

impl<const N: usize> Sizes<N> for [usize; N] {
    fn sizes(self) -> [usize; N] {
        self
    }
}

/// Zeros before and behind each dimension.
pub(super) trait Padding<const N: usize> {
    /// `None` where they follow from the sizes.
    fn explicit(&self) -> Option<[(usize, usize); N]>;

    /// Of x with the places `input`. "Same" gives a result of `input / stride` places, rounded up, of a kernel without dilation; of an
    /// odd number of zeros the larger half is behind.
    fn pairs(
        &self,
        input: [usize; N],
        kernel: [usize; N],
        stride: [usize; N],
    ) -> [(usize, usize); N] {
        self.explicit().unwrap_or_else(|| {
            std::array::from_fn(|i| {
                let output = input[i].div_ceil(stride[i].max(1));
                let reach = output.saturating_sub(1) * stride[i] + kernel[i];
                let zeros = reach.saturating_sub(input[i]);
                (zeros / 2, zeros - zeros / 2)
            })
        })
    }
}

impl Padding<1> for PaddingConfig1d {
    fn explicit(&self) -> Option<[(usize, usize); 1]> {
        match *self {
            Self::Same => None,
            Self::Valid => Some([(0, 0)]),
            Self::Explicit(left, right) => Some([(left, right)]),
        }
    }
}

impl Padding<2> for PaddingConfig2d {
    fn explicit(&self) -> Option<[(usize, usize); 2]> {
        match *self {
            Self::Same => None,
            Self::Valid => Some([(0, 0); 2]),
            Self::Explicit(top, left, bottom, right) => Some([(top, bottom), (left, right)]),
        }
    }
}

impl Padding<3> for PaddingConfig3d {
    fn explicit(&self) -> Option<[(usize, usize); 3]> {
        match *self {
            Self::Same => None,
            Self::Valid => Some([(0, 0); 3]),
            Self::Explicit(depth, height, width) => {
                Some([depth, height, width].map(|zeros| (zeros, zeros)))
            }
        }
    }
}

/// Fails unless a layer can be made of these numbers.
fn check<const N: usize>(
    layer: &str,
    channels: [usize; 2],
    groups: usize,
    [kernel, stride, dilation]: [[usize; N]; 3],
) -> Result<()> {
    let divides = groups > 0 && channels.iter().all(|n| n.is_multiple_of(groups));
    let sizes = [kernel, stride, dilation].concat();
    if divides && sizes.iter().chain(&channels).all(|&n| n > 0) {
        return Ok(());
    }
    Err(Error::config(
        format!(
            "a {layer} from {} channels to {} in {groups} groups, with kernel {kernel:?}, stride {stride:?} and dilation {dilation:?}",
            channels[0], channels[1]
        ),
        "use 1 at least for each number, and groups that divide the channels on both sides",
    ))
}

/// Shows attributes as Burn's layers do.
macro_rules! display {
    ($layer:ident, $this:ident, $content:ident, $attributes:expr) => {
        impl ModuleDisplay for $layer {
            fn custom_settings(&self) -> Option<DisplaySettings> {
                DisplaySettings::new()
                    .with_new_line_after_attribute(false)
                    .optional()
            }

            fn custom_content(&self, $content: Content) -> Option<Content> {
                let $this = self;
                $attributes.optional()
            }
        }
    };
}

/// A convolution of `$n` dimensions, of tensors of the rank `$rank`.
macro_rules! convolution {
    (
        $layer:ident, $config:ident, $operation:ident, $n:literal, $rank:literal, $words:literal,
        $size:ty = $one:literal, $padding:ident = $valid:literal,
        $($channel:ident: $channels:ty = $channels_doc:literal),+; $config_channels:expr
    ) => {
        #[doc = concat!("Configuration of [`", stringify!($layer), "`], as Burn's.")]
        #[derive(Config, Debug)]
        pub struct $config {
            $(#[doc = $channels_doc] pub $channel: $channels,)+
            /// Size of the kernel.
            pub kernel_size: $size,
            /// From one place of the result to the next, in places of x. Default: 1.
            #[config(default = $one)]
            pub stride: $size,
            /// From one tap of the kernel to the next, in places of x. Default: 1.
            #[config(default = $one)]
            pub dilation: $size,
            /// Parts of the channels that do not see each other. Default: 1.
            #[config(default = "1")]
            pub groups: usize,
            /// Zeros around x, which may be uneven. Default: none.
            #[config(default = $valid)]
            pub padding: $padding,
            /// Whether a bias is added. Default: true.
            #[config(default = true)]
            pub bias: bool,
            /// First values of weight and bias. Default: Burn's, uniform within 1 / sqrt(inputs of a result).
            #[config(
                default = "Initializer::KaimingUniform{gain:1.0/3.0f64.sqrt(),fan_out_only:false}"
            )]
            pub initializer: Initializer,
        }

        impl $config {
            /// The layer, whose parameters get their values later, as all of Burn's.
            ///
            /// # Errors
            /// A number of zero, or groups that do not divide the channels.
            pub fn init(&self, device: &Device) -> Result<$layer> {
                let channels: [usize; 2] = $config_channels(self);
                let sizes = [self.kernel_size, self.stride, self.dilation];
                check::<$n>(stringify!($layer), channels, self.groups, sizes.map(Sizes::sizes))?;
                let burns = burns::$config {
                    $($channel: self.$channel,)+
                    kernel_size: self.kernel_size,
                    stride: self.stride,
                    dilation: self.dilation,
                    groups: self.groups,
                    // Burn's layer of three dimensions refuses an uneven one, and this one does not.
                    padding: $padding::Valid,
                    bias: self.bias,
                    initializer: self.initializer.clone(),
                };
                let burns = burns.init(device);
                Ok($layer {
                    weight: burns.weight,
                    bias: burns.bias,
                    stride: self.stride,
                    kernel_size: self.kernel_size,
                    dilation: self.dilation,
                    groups: self.groups,
                    padding: self.padding.clone(),
                })
            }
        }

        #[doc = concat!("A ", $words, ": `burn::nn::conv::", stringify!($layer), "`, whose fields and records it has.")]
        #[derive(Module, Debug)]
        #[module(custom_display)]
        pub struct $layer {
            /// Weight `[out, in / groups, taps...]`.
            pub weight: Param<Tensor<$rank>>,
            /// Bias `[out]`.
            pub bias: Option<Param<Tensor<1>>>,
            /// From one place of the result to the next, in places of x.
            pub stride: $size,
            /// Size of the kernel.
            pub kernel_size: $size,
            /// From one tap of the kernel to the next, in places of x.
            pub dilation: $size,
            /// Parts of the channels that do not see each other.
            pub groups: usize,
            /// Zeros around x.
            #[module(skip)]
            pub padding: $padding,
        }

        impl $layer {
            /// The convolution of x `[batch, in, places...]`: `[batch, out, places...]`.
            ///
            /// # Errors
            /// Those of the operation.
            pub fn forward(&self, x: Tensor<$rank>) -> Result<Tensor<$rank>> {
                let dims = x.dims();
                let input: [usize; $n] = std::array::from_fn(|i| dims[i + 2]);
                let (kernel, stride) = (self.kernel_size.sizes(), self.stride.sizes());
                let options = ConvOptions {
                    stride,
                    padding: self.padding.pairs(input, kernel, stride),
                    dilation: self.dilation.sizes(),
                    groups: self.groups,
                };
                let bias = self.bias.as_ref().map(Param::val);
                ops::$operation(x, self.weight.val(), bias, options)
            }
        }

        display!($layer, this, content, {
            let dims: [usize; $rank] = this.weight.lazy_shape().dims();
            content
                .add("ch_in", &format!("{:?}", dims[1] * this.groups))
                .add("ch_out", &format!("{:?}", dims[0]))
                .add("stride", &format!("{:?}", this.stride))
                .add("kernel_size", &format!("{:?}", this.kernel_size))
                .add("dilation", &format!("{:?}", this.dilation))
                .add("groups", &this.groups)
                .add_debug_attribute("padding", &this.padding)
        });
    };
}

convolution!(
    Conv1d, Conv1dConfig, conv1d, 1, 3, "convolution of one dimension",
    usize = "1", PaddingConfig1d = "PaddingConfig1d::Valid",
    channels_in: usize = "Channels of x.", channels_out: usize = "Channels of the result.";
    |config: &Conv1dConfig| [config.channels_in, config.channels_out]
);
convolution!(
    Conv2d, Conv2dConfig, conv2d, 2, 4, "convolution of two dimensions",
    [usize; 2] = "[1, 1]", PaddingConfig2d = "PaddingConfig2d::Valid",
    channels: [usize; 2] = "Channels of x, and of the result.";
    |config: &Conv2dConfig| config.channels
);
convolution!(
    Conv3d, Conv3dConfig, conv3d, 3, 5, "convolution of three dimensions",
    [usize; 3] = "[1, 1, 1]", PaddingConfig3d = "PaddingConfig3d::Valid",
    channels: [usize; 2] = "Channels of x, and of the result.";
    |config: &Conv3dConfig| config.channels
);

/// A transposed convolution of `$n` dimensions, of tensors of the rank `$rank`.
macro_rules! transposed {
    (
        $layer:ident, $config:ident, $operation:ident, $n:literal, $rank:literal, $words:literal,
        $size:ty = $one:literal, $zero:literal
    ) => {
        #[doc = concat!("Configuration of [`", stringify!($layer), "`], as Burn's.")]
        #[derive(Config, Debug)]
        pub struct $config {
            /// Channels of x, and of the result.
            pub channels: [usize; 2],
            /// Size of the kernel.
            pub kernel_size: $size,
            /// From one place of x to the next, in places of the result. Default: 1.
            #[config(default = $one)]
            pub stride: $size,
            /// From one tap of the kernel to the next, in places of the result. Default: 1.
            #[config(default = $one)]
            pub dilation: $size,
            /// Parts of the channels that do not see each other. Default: 1.
            #[config(default = "1")]
            pub groups: usize,
            /// Places of the result that are cut off on both sides. Default: 0.
            #[config(default = $zero)]
            pub padding: $size,
            /// Places that are added behind the result. Default: 0.
            #[config(default = $zero)]
            pub padding_out: $size,
            /// Whether a bias is added. Default: true.
            #[config(default = true)]
            pub bias: bool,
            /// First values of weight and bias. Default: Burn's, uniform within 1 / sqrt(outputs of a group x taps).
            #[config(
                default = "Initializer::KaimingUniform{gain:1.0/3.0f64.sqrt(),fan_out_only:false}"
            )]
            pub initializer: Initializer,
        }

        impl $config {
            /// The layer, whose parameters get their values later, as all of Burn's.
            ///
            /// # Errors
            /// A number of zero, or groups that do not divide the channels.
            pub fn init(&self, device: &Device) -> Result<$layer> {
                let sizes = [self.kernel_size, self.stride, self.dilation].map(Sizes::sizes);
                check::<$n>(stringify!($layer), self.channels, self.groups, sizes)?;
                let burns = burns::$config {
                    channels: self.channels,
                    kernel_size: self.kernel_size,
                    stride: self.stride,
                    dilation: self.dilation,
                    groups: self.groups,
                    padding: self.padding,
                    padding_out: self.padding_out,
                    bias: self.bias,
                    initializer: self.initializer.clone(),
                };
                let burns = burns.init(device);
                Ok($layer {
                    weight: burns.weight,
                    bias: burns.bias,
                    stride: self.stride,
                    kernel_size: self.kernel_size,
                    dilation: self.dilation,
                    groups: self.groups,
                    padding: self.padding,
                    padding_out: self.padding_out,
                    channels: self.channels,
                })
            }
        }

        #[doc = concat!("A ", $words, ": `burn::nn::conv::", stringify!($layer), "`, whose fields and records it has.")]
        #[derive(Module, Debug)]
        #[module(custom_display)]
        pub struct $layer {
            /// Weight `[in, out / groups, taps...]`.
            pub weight: Param<Tensor<$rank>>,
            /// Bias `[out]`.
            pub bias: Option<Param<Tensor<1>>>,
            /// From one place of x to the next, in places of the result.
            pub stride: $size,
            /// Size of the kernel.
            pub kernel_size: $size,
            /// From one tap of the kernel to the next, in places of the result.
            pub dilation: $size,
            /// Parts of the channels that do not see each other.
            pub groups: usize,
            /// Places of the result that are cut off on both sides.
            pub padding: $size,
            /// Places that are added behind the result.
            pub padding_out: $size,
            /// Channels of x, and of the result.
            pub channels: [usize; 2],
        }

        impl $layer {
            /// The transposed convolution of x `[batch, in, places...]`: `[batch, out, places...]`.
            ///
            /// # Errors
            /// Those of the operation.
            pub fn forward(&self, x: Tensor<$rank>) -> Result<Tensor<$rank>> {
                let options = ConvTransposeOptions {
                    stride: self.stride.sizes(),
                    padding: self.padding.sizes(),
                    padding_out: self.padding_out.sizes(),
                    dilation: self.dilation.sizes(),
                    groups: self.groups,
                };
                let bias = self.bias.as_ref().map(Param::val);
                ops::$operation(x, self.weight.val(), bias, options)
            }
        }

        display!($layer, this, content, {
            content
                .add("channels", &format!("{:?}", this.channels))
                .add("stride", &format!("{:?}", this.stride))
                .add("kernel_size", &format!("{:?}", this.kernel_size))
                .add("dilation", &format!("{:?}", this.dilation))
                .add("groups", &this.groups)
                .add("padding", &format!("{:?}", this.padding))
                .add("padding_out", &format!("{:?}", this.padding_out))
        });
    };
}

transposed!(
    ConvTranspose1d,
    ConvTranspose1dConfig,
    conv_transpose1d,
    1,
    3,
    "transposed convolution of one dimension",
    usize = "1",
    "0"
);
transposed!(
    ConvTranspose2d,
    ConvTranspose2dConfig,
    conv_transpose2d,
    2,
    4,
    "transposed convolution of two dimensions",
    [usize; 2] = "[1, 1]",
    "[0, 0]"
);
transposed!(
    ConvTranspose3d,
    ConvTranspose3dConfig,
    conv_transpose3d,
    3,
    5,
    "transposed convolution of three dimensions",
    [usize; 3] = "[1, 1, 1]",
    "[0, 0, 0]"
);
