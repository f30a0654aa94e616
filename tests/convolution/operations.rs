//! The operations beside Burn's, over sizes and options.

use burn::tensor::module;
use burn::tensor::ops::{ConvOptions, ConvTransposeOptions, PadMode};
use burn::tensor::{DType, Tensor};
use burn_frontier::ops::convolution::{
    conv_transpose1d, conv_transpose2d, conv_transpose3d, conv1d, conv2d, conv3d,
};

use crate::agreement::{Inputs, Shapes, agree, assert_close, drawn, leaf, results, to_vec};
use crate::numbers::words;

/// Sizes and options that a seed draws, for `N` dimensions.
#[derive(Debug, Clone, Copy)]
struct Case<const N: usize> {
    batch: usize,
    groups: usize,
    /// Of a group.
    channels: [usize; 2],
    size: [usize; N],
    kernel: [usize; N],
    stride: [usize; N],
    padding: [(usize, usize); N],
    dilation: [usize; N],
    padding_out: [usize; N],
    bias: bool,
}

impl<const N: usize> Case<N> {
    fn drawn(seed: u32) -> Self {
        let mut words = words(seed);
        let mut below = |n: usize| (words.next().unwrap() >> 16) as usize % n;
        let mut case = Self {
            batch: 1 + below(3),
            groups: [1, 1, 2, 3][below(4)],
            channels: [1 + below(3), 1 + below(3)],
            size: [0; N],
            kernel: [0; N],
            stride: [0; N],
            padding: [(0, 0); N],
            dilation: [0; N],
            padding_out: [0; N],
            bias: below(2) == 0,
        };
        for i in 0..N {
            case.kernel[i] = 1 + below(4);
            case.stride[i] = 1 + below(3);
            case.dilation[i] = 1 + below(2);
            case.padding[i] = (below(3), below(3));
            case.padding_out[i] = below(case.stride[i]);
            // The kernel fits without padding, and a transposed one leaves something.
            case.size[i] = case.dilation[i] * (case.kernel[i] - 1) + 4 + below(5);
        }
        case
    }

    fn options(&self) -> ConvOptions<N> {
        ConvOptions::new_with_padding(self.stride, self.padding, self.dilation, self.groups)
    }

    fn transpose_options(&self) -> ConvTransposeOptions<N> {
        let padding = self.padding.map(|(before, _)| before);
        let (stride, out) = (self.stride, self.padding_out);
        ConvTransposeOptions::new(stride, padding, out, self.dilation, self.groups)
    }

    fn shape<const D: usize>(&self, [first, second]: [usize; 2], places: [usize; N]) -> [usize; D] {
        std::array::from_fn(|i| match i {
            0 => first,
            1 => second,
            i => places[i - 2],
        })
    }

    fn shapes<const D: usize>(&self) -> Shapes<D> {
        let [from, to] = self.channels.map(|n| n * self.groups);
        let x = self.shape([self.batch, from], self.size);
        let weight = self.shape([to, self.channels[0]], self.kernel);
        (x, weight, self.bias.then_some(to))
    }

    fn transpose_shapes<const D: usize>(&self) -> Shapes<D> {
        let [from, to] = self.channels.map(|n| n * self.groups);
        let x = self.shape([self.batch, from], self.size);
        let weight = self.shape([from, self.channels[1]], self.kernel);
        (x, weight, self.bias.then_some(to))
    }
}

/// Burn's by two dimensions: the weights' gradient of its one-dimensional one is wrong where there are groups and the stride leaves
/// places over.
fn burns_conv1d((x, w, b): Inputs<3>, options: ConvOptions<1>) -> Tensor<3> {
    let (stride, dilation) = ([1, options.stride[0]], [1, options.dilation[0]]);
    let padding = [(0, 0), options.padding[0]];
    let options = ConvOptions::new_with_padding(stride, padding, dilation, options.groups);
    module::conv2d(x.unsqueeze_dim(2), w.unsqueeze_dim(2), b, options).squeeze_dim(2)
}

/// Burn's, which has one padding for both sides.
fn burns_conv3d((x, w, b): Inputs<5>, mut options: ConvOptions<3>) -> Tensor<5> {
    let x = x.pad(options.padding, PadMode::Constant(0.0));
    options.padding = [(0, 0); 3];
    module::conv3d(x, w, b, options)
}

const CASES: u32 = 40;

#[test]
fn convolutions_are_burns_in_every_option() {
    for seed in 0..CASES {
        let case = Case::<1>::drawn(seed);
        agree(
            &format!("conv1d, seed {seed}: {case:?}"),
            case.shapes(),
            |(x, w, b)| conv1d(x, w, b, case.options()),
            |inputs| burns_conv1d(inputs, case.options()),
        );
        let case = Case::<2>::drawn(seed);
        agree(
            &format!("conv2d, seed {seed}: {case:?}"),
            case.shapes(),
            |(x, w, b)| conv2d(x, w, b, case.options()),
            |(x, w, b)| module::conv2d(x, w, b, case.options()),
        );
        let case = Case::<3>::drawn(seed);
        agree(
            &format!("conv3d, seed {seed}: {case:?}"),
            case.shapes(),
            |(x, w, b)| conv3d(x, w, b, case.options()),
            |inputs| burns_conv3d(inputs, case.options()),
        );
    }
}

#[test]
fn transposed_convolutions_are_burns_in_every_option() {
    for seed in 0..CASES {
        let case = Case::<1>::drawn(seed);
        agree(
            &format!("conv_transpose1d, seed {seed}: {case:?}"),
            case.transpose_shapes(),
            |(x, w, b)| conv_transpose1d(x, w, b, case.transpose_options()),
            |(x, w, b)| module::conv_transpose1d(x, w, b, case.transpose_options()),
        );
        let case = Case::<2>::drawn(seed);
        agree(
            &format!("conv_transpose2d, seed {seed}: {case:?}"),
            case.transpose_shapes(),
            |(x, w, b)| conv_transpose2d(x, w, b, case.transpose_options()),
            |(x, w, b)| module::conv_transpose2d(x, w, b, case.transpose_options()),
        );
        let case = Case::<3>::drawn(seed);
        agree(
            &format!("conv_transpose3d, seed {seed}: {case:?}"),
            case.transpose_shapes(),
            |(x, w, b)| conv_transpose3d(x, w, b, case.transpose_options()),
            |(x, w, b)| module::conv_transpose3d(x, w, b, case.transpose_options()),
        );
    }
}

/// x and weights that lie in memory in another order, or are parts of larger tensors.
fn views((x, w, b): Inputs<4>) -> Inputs<4> {
    let dims = x.dims();
    let larger = Tensor::cat(vec![x.clone(), x], 3).narrow(3, 0, dims[3]);
    let turned = larger
        .permute([0, 2, 3, 1])
        .reshape([dims[0], dims[2], dims[3], dims[1]]);
    (turned.permute([0, 3, 1, 2]), w.swap_dims(2, 3), b)
}

#[test]
fn views_are_read_as_what_they_show() {
    let options = || ConvOptions::new([1, 2], [1, 0], [1, 1], 2);
    agree(
        "conv2d of views",
        ([2, 4, 6, 7], [6, 2, 3, 2], Some(6)),
        |inputs| {
            let (x, w, b) = views(inputs);
            conv2d(x, w, b, options())
        },
        |inputs| {
            let (x, w, b) = views(inputs);
            module::conv2d(x, w, b, options())
        },
    );
    let options = || ConvTransposeOptions::new([2, 1], [1, 0], [1, 0], [1, 1], 2);
    agree(
        "conv_transpose2d of views",
        ([2, 4, 6, 7], [4, 3, 3, 2], Some(6)),
        |inputs| {
            let (x, w, b) = views(inputs);
            conv_transpose2d(x, w, b, options())
        },
        |inputs| {
            let (x, w, b) = views(inputs);
            module::conv_transpose2d(x, w, b, options())
        },
    );
}

#[test]
fn a_gradient_in_another_order_is_read_as_what_it_shows() {
    let turned = |y: Tensor<4>| {
        let scale = drawn([y.dims()[3]], 6, y.dtype()).autodiff();
        y.permute([0, 2, 1, 3]) * scale.unsqueeze()
    };
    let options = || ConvOptions::new([1, 1], [1, 1], [1, 1], 1);
    agree(
        "the gradient of a view",
        ([2, 3, 6, 7], [4, 3, 3, 3], Some(4)),
        |(x, w, b)| conv2d(x, w, b, options()).map(turned),
        |(x, w, b)| turned(module::conv2d(x, w, b, options())),
    );
}

#[test]
fn large_convolutions_repeat_bit_for_bit_and_are_burns() {
    // More than a thread's work, in each direction.
    let shapes = ([4, 32, 24, 24], [64, 32, 3, 3], Some(64));
    let options = || ConvOptions::new([1, 1], [1, 1], [1, 1], 1);
    let ours = || {
        results(shapes, DType::F32, |(x, w, b)| {
            conv2d(x, w, b, options()).unwrap()
        })
    };
    let first = ours();
    assert_eq!(first, ours());
    let burns = results(shapes, DType::F64, |(x, w, b)| {
        module::conv2d(x, w, b, options())
    });
    assert_close("a large convolution", DType::F32, &first, &burns);
}

#[test]
fn what_is_not_tracked_has_no_gradient_and_changes_no_other() {
    let options = || ConvOptions::new([1, 1], [0, 0], [1, 1], 1);
    let (shape, kernel) = ([2, 3, 6, 7], [4, 3, 3, 3]);
    let (x, w) = (leaf(shape, 1, DType::F32), leaf(kernel, 2, DType::F32));
    let all = conv2d(x.clone(), w.clone(), None, options()).unwrap();
    let gradients = all.sum().backward();
    let expected = [
        to_vec(x.grad(&gradients).unwrap()),
        to_vec(w.grad(&gradients).unwrap()),
    ];

    let constant = x.clone().without_autodiff();
    let gradients = conv2d(constant, w.clone(), None, options())
        .unwrap()
        .sum()
        .backward();
    assert!(x.grad(&gradients).is_none());
    assert_eq!(to_vec(w.grad(&gradients).unwrap()), expected[1]);

    let constant = w.clone().without_autodiff().autodiff();
    let gradients = conv2d(x.clone(), constant, None, options())
        .unwrap()
        .sum()
        .backward();
    assert!(w.grad(&gradients).is_none());
    assert_eq!(to_vec(x.grad(&gradients).unwrap()), expected[0]);
}

#[test]
fn no_samples_give_none_and_gradients_of_zero() {
    let options = ConvOptions::new([1, 1], [1, 1], [1, 1], 1);
    let transposed = ConvTransposeOptions::new([2, 2], [1, 1], [0, 0], [1, 1], 1);
    let (x, w) = (
        leaf([0, 3, 6, 7], 1, DType::F32),
        leaf([4, 3, 3, 3], 2, DType::F32),
    );
    let t = leaf([3, 4, 4, 4], 3, DType::F32);
    let b = leaf([4], 3, DType::F32);
    let y = conv2d(x.clone(), w.clone(), Some(b.clone()), options).unwrap();
    let z = conv_transpose2d(x.clone(), t.clone(), Some(b.clone()), transposed).unwrap();
    assert_eq!([y.dims(), z.dims()], [[0, 4, 6, 7], [0, 4, 12, 14]]);
    let gradients = (y.sum() + z.sum()).backward();
    assert_eq!(x.grad(&gradients).unwrap().dims(), [0, 3, 6, 7]);
    for gradient in [w.grad(&gradients), t.grad(&gradients)] {
        assert!(to_vec(gradient.unwrap()).iter().all(|&x| x == 0.0));
    }
    assert_eq!(to_vec(b.grad(&gradients).unwrap()), [0.0; 4]);
}
