//! What does not fit is an error that says what would.

use burn::nn::PaddingConfig2d;
use burn::tensor::ops::{ConvOptions, ConvTransposeOptions};
use burn::tensor::{DType, Device, Tensor};
use burn_frontier::Result;
use burn_frontier::layers::{Conv1dConfig, Conv2dConfig, ConvTranspose3dConfig};
use burn_frontier::ops::convolution::{conv_transpose2d, conv2d};

fn x<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::ones(shape, (&Device::flex(), DType::F32))
}

/// Fails unless it failed with all of these words.
fn says<T>(result: Result<T>, words: &[&str]) {
    let Err(error) = result else {
        panic!("no error that says {words:?}");
    };
    let message = error.to_string();
    for word in words {
        assert!(message.contains(word), "{message:?} does not say {word:?}");
    }
}

fn plain(groups: usize) -> ConvOptions<2> {
    ConvOptions::new([1, 1], [0, 0], [1, 1], groups)
}

#[test]
fn a_convolution_says_what_does_not_fit() {
    let of = |weight, bias, options| conv2d(x([2, 4, 6, 6]), weight, bias, options);
    says(
        of(x([8, 3, 3, 3]), None, plain(1)),
        &[
            "conv2d",
            "[8, 3, 3, 3] in 1 groups",
            "4 channels",
            "[out, in / groups, taps...]",
        ],
    );
    says(
        of(x([9, 2, 3, 3]), None, plain(2)),
        &["2 groups", "divide the channels"],
    );
    says(
        of(x([8, 4, 3, 3]), Some(x([7])), plain(1)),
        &["the bias has shape [7]", "[8]", "[out]"],
    );
    says(
        of(x([8, 4, 7, 3]), None, plain(1)),
        &["spans 7 places along axis 2", "has 6", "pad x more"],
    );
    says(
        of(x([8, 4, 0, 3]), None, plain(1)),
        &["[8, 4, 0, 3]", "without an empty axis"],
    );
    says(
        of(x([8, 4, 3, 3]).cast(DType::F64), None, plain(1)),
        &["the weight is of F64", "cast"],
    );
    let bias = Some(x([8]).cast(DType::F64));
    says(
        of(x([8, 4, 3, 3]), bias, plain(1)),
        &["the bias is of F64", "cast"],
    );
    for change in [
        |o: &mut ConvOptions<2>| o.stride[1] = 0,
        |o: &mut ConvOptions<2>| o.dilation[0] = 0,
        |o: &mut ConvOptions<2>| o.groups = 0,
    ] {
        let mut options = plain(1);
        change(&mut options);
        says(
            of(x([8, 4, 3, 3]), None, options),
            &["stride [", "1 at least"],
        );
    }
}

#[test]
fn a_transposed_convolution_says_what_does_not_fit() {
    let options = |padding| ConvTransposeOptions::new([2, 2], [padding; 2], [0, 0], [1, 1], 1);
    let of = |x, weight, padding| conv_transpose2d(x, weight, None, options(padding));
    says(
        of(x([2, 4, 6, 6]), x([3, 8, 3, 3]), 0),
        &[
            "conv_transpose2d",
            "4 channels",
            "[in, out / groups, taps...]",
        ],
    );
    says(
        of(x([2, 4, 1, 6]), x([4, 8, 3, 3]), 2),
        &["1 places along axis 2 reach over 3", "takes 4", "pad less"],
    );
    says(
        of(x([2, 4, 0, 6]), x([4, 8, 3, 3]), 0),
        &["0 places", "larger x"],
    );
}

#[test]
fn a_layer_says_what_it_cannot_be_made_of() {
    let device = Device::flex();
    says(
        Conv2dConfig::new([3, 8], [3, 3])
            .with_groups(2)
            .init(&device),
        &[
            "Conv2d from 3 channels to 8 in 2 groups",
            "divide the channels",
        ],
    );
    says(
        Conv1dConfig::new(3, 8, 3).with_stride(0).init(&device),
        &["stride [0]", "1 at least"],
    );
    says(
        ConvTranspose3dConfig::new([3, 8], [3, 0, 3]).init(&device),
        &["ConvTranspose3d", "kernel [3, 0, 3]"],
    );
    let layer = Conv2dConfig::new([3, 8], [5, 5]).init(&device).unwrap();
    says(layer.forward(x([1, 3, 4, 4])), &["spans 5", "has 4"]);
    let mut layer = Conv2dConfig::new([3, 8], [2, 2])
        .with_padding(PaddingConfig2d::Same)
        .init(&device)
        .unwrap();
    layer.stride = [0, 1];
    says(
        layer.forward(x([1, 3, 4, 4])),
        &["stride [0, 1]", "1 at least"],
    );
}
