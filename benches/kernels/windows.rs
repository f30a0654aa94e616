//! What goes over places of an image or a volume: convolutions and batch norm.

use anyhow::{Result, ensure};
use burn::tensor::Tensor;
use burn::tensor::ops::{ConvOptions, ConvTransposeOptions};
use burn_frontier::comm::local;
use burn_frontier::layers::SyncBatchNormConfig;
use burn_frontier::ops::convolution::{conv_transpose2d, conv2d, conv3d};

use crate::case::{Case, Pass, Place, Work};
use crate::catalog::{BOTH, Operation};

pub const OPERATIONS: &[Operation] = &[
    Operation {
        name: "conv2d",
        form: &["batch", "in", "out", "height", "width", "kernel", "stride"],
        shapes: [
            &[&[1, 2, 3, 6, 5, 3, 1]],
            &[&[32, 64, 128, 32, 32, 3, 1], &[16, 128, 256, 16, 16, 4, 2]],
            &[&[64, 256, 256, 56, 56, 3, 1]],
        ],
        passes: BOTH,
        make: |shape, pass, place| image(shape, false, pass, place),
    },
    Operation {
        name: "conv2d_depthwise",
        form: &["batch", "channels", "height", "width", "kernel", "stride"],
        shapes: [
            &[&[1, 2, 6, 5, 3, 1]],
            &[&[2, 128, 96, 144, 3, 1], &[2, 728, 24, 36, 3, 1]],
            &[&[64, 728, 48, 72, 3, 1]],
        ],
        passes: BOTH,
        make: |shape, pass, place| {
            let [batch, channels, rest @ ..] = shape else {
                unreachable!("a shape has the numbers of its form");
            };
            let shape = [&[*batch, *channels, *channels], rest].concat();
            image(&shape, true, pass, place)
        },
    },
    Operation {
        name: "conv_transpose2d",
        form: &["batch", "in", "out", "height", "width", "kernel", "stride"],
        shapes: [
            &[&[1, 2, 3, 6, 5, 4, 2]],
            &[&[16, 256, 128, 16, 16, 4, 2]],
            &[&[64, 512, 256, 28, 28, 4, 2]],
        ],
        passes: BOTH,
        make: transposed,
    },
    Operation {
        name: "conv3d",
        form: &["batch", "in", "out", "side", "kernel"],
        shapes: [
            &[&[1, 2, 3, 5, 3]],
            &[&[4, 32, 64, 16, 3]],
            &[&[16, 64, 128, 32, 3]],
        ],
        passes: BOTH,
        make: volume,
    },
    Operation {
        name: "batch_norm",
        form: &["samples", "features", "places"],
        shapes: [&[&[3, 2, 7]], &[&[100, 64, 784]], &[&[256, 256, 3136]]],
        passes: BOTH,
        make: norm,
    },
];

/// A convolution of so many inputs, weights and results, of which a weight is multiplied at `places`.
fn work(pass: Pass, place: &Place, [x, weight, y]: [usize; 3], places: usize) -> Work {
    let forward = 2.0 * (weight * places) as f64;
    let (flops, elements) = match pass {
        Pass::Forward => (forward, x + weight + y),
        // The gradients of input and weight; the bias is not counted.
        Pass::Backward => (2.0 * forward, 2 * (x + weight) + y),
    };
    Work {
        flops,
        bytes: place.bytes(elements),
    }
}

/// With a bias, and half a kernel of zeros around the image.
fn image(shape: &[usize], depthwise: bool, pass: Pass, place: &Place) -> Result<Case> {
    let &[batch, input, output, height, width, kernel, stride] = shape else {
        unreachable!("a shape has the numbers of its form");
    };
    let padding = (kernel - 1) / 2;
    let least = height.min(width) + 2 * padding;
    ensure!(
        kernel <= least,
        "a kernel of {kernel} places does not fit an image of {height} x {width}; choose a smaller one"
    );
    let groups = if depthwise { input } else { 1 };
    let x: Tensor<4> = place.tensor([batch, input, height, width]);
    let weight: Tensor<4> = place.tensor([output, input / groups, kernel, kernel]);
    let bias: Tensor<1> = place.tensor([output]);
    let size = |n: usize| (n + 2 * padding - kernel) / stride + 1;
    let places = batch * size(height) * size(width);
    let sizes = [
        x.shape().num_elements(),
        weight.shape().num_elements(),
        output * places,
    ];
    let work = work(pass, place, sizes, places);
    Ok(Case::of(pass, place, work, move |take| {
        let options = ConvOptions::new([stride; 2], [padding; 2], [1; 2], groups);
        conv2d(take.of(&x), take.of(&weight), Some(take.of(&bias)), options)
    }))
}

/// With a bias; so much is cut off that the result is `stride` times as large where the kernel is even.
fn transposed(shape: &[usize], pass: Pass, place: &Place) -> Result<Case> {
    let &[batch, input, output, height, width, kernel, stride] = shape else {
        unreachable!("a shape has the numbers of its form");
    };
    let padding = kernel.saturating_sub(stride) / 2;
    let x: Tensor<4> = place.tensor([batch, input, height, width]);
    let weight: Tensor<4> = place.tensor([input, output, kernel, kernel]);
    let bias: Tensor<1> = place.tensor([output]);
    let size = |n: usize| (n - 1) * stride + kernel - 2 * padding;
    let y = batch * output * size(height) * size(width);
    let sizes = [x.shape().num_elements(), weight.shape().num_elements(), y];
    let work = work(pass, place, sizes, batch * height * width);
    Ok(Case::of(pass, place, work, move |take| {
        let options = ConvTransposeOptions::new([stride; 2], [padding; 2], [0; 2], [1; 2], 1);
        conv_transpose2d(take.of(&x), take.of(&weight), Some(take.of(&bias)), options)
    }))
}

/// With a bias, and half a kernel of zeros around the volume.
fn volume(shape: &[usize], pass: Pass, place: &Place) -> Result<Case> {
    let &[batch, input, output, side, kernel] = shape else {
        unreachable!("a shape has the numbers of its form");
    };
    let padding = (kernel - 1) / 2;
    ensure!(
        kernel <= side + 2 * padding,
        "a kernel of {kernel} places does not fit a volume of {side}^3; choose a smaller one"
    );
    let x: Tensor<5> = place.tensor([batch, input, side, side, side]);
    let weight: Tensor<5> = place.tensor([output, input, kernel, kernel, kernel]);
    let bias: Tensor<1> = place.tensor([output]);
    let places = batch * (side + 2 * padding - kernel + 1).pow(3);
    let sizes = [
        x.shape().num_elements(),
        weight.shape().num_elements(),
        output * places,
    ];
    let work = work(pass, place, sizes, places);
    Ok(Case::of(pass, place, work, move |take| {
        let options = ConvOptions::new([1; 3], [padding; 3], [1; 3], 1);
        conv3d(take.of(&x), take.of(&weight), Some(take.of(&bias)), options)
    }))
}

/// In training, of one replica.
fn norm(shape: &[usize], pass: Pass, place: &Place) -> Result<Case> {
    let &[samples, features, places] = shape else {
        unreachable!("a shape has the numbers of its form");
    };
    let x: Tensor<3> = place.tensor([samples, features, places]);
    // Its parameters are in autodiff, so that it is in training in both passes.
    let device = place.device.clone().autodiff();
    let layer = SyncBatchNormConfig::new(features).init(&device, &local::single())?;
    let count = samples * features * places;
    let (flops, passes) = match pass {
        // Distance, square, their sums (2); distance, scale, shift.
        Pass::Forward => (7.0, 2),
        // Distance, product, their sums (2); the gradient of five.
        Pass::Backward => (9.0, 3),
    };
    let work = Work {
        flops: flops * count as f64,
        bytes: place.bytes(passes * count),
    };
    Ok(Case::of(pass, place, work, move |take| {
        layer.forward(take.of(&x))
    }))
}
