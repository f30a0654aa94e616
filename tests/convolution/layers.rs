//! The layers beside Burn's.

use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::module::Module;
use burn::nn::conv as burns;
use burn::nn::{Initializer, PaddingConfig1d, PaddingConfig2d, PaddingConfig3d};
use burn::tensor::{DType, Device, Tensor};
use burn_frontier::layers as ours;
use burn_frontier::random::initialize;

use crate::agreement::{drawn, to_vec};

const SEED: u64 = 3;

/// The process's generator, which one test at a time may use.
fn generator() -> MutexGuard<'static, ()> {
    static GENERATOR: Mutex<()> = Mutex::new(());
    GENERATOR.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Largest distance of two results, compared with the largest number.
fn distance<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let (a, b) = (to_vec(a), to_vec(b));
    let largest = |x: &mut dyn Iterator<Item = f64>| x.fold(0.0, |m: f64, x| m.max(x.abs()));
    largest(&mut a.iter().zip(&b).map(|(a, b)| a - b)) / largest(&mut b.iter().copied())
}

/// A layer of ours and Burn's, of one configuration, have one text, first values, forward, and records of each other.
macro_rules! twins {
    ($layer:ident, $rank:literal, $shape:expr, $make:expr) => {{
        use burns::$layer as Burns;
        use ours::$layer as Ours;
        let _alone = generator();
        let device = Device::flex();
        let (own, theirs): (Ours, Burns) = $make(&device);
        let own = initialize(own, SEED).unwrap();
        let theirs = initialize(theirs, SEED).unwrap();
        // Burn's text draws what has no value yet.
        assert_eq!(own.to_string(), theirs.to_string());
        assert_eq!(to_vec(own.weight.val()), to_vec(theirs.weight.val()));
        let bias = |bias: &Option<_>| {
            bias.as_ref()
                .map(|bias: &burn::module::Param<Tensor<1>>| to_vec(bias.val()))
        };
        assert_eq!(bias(&own.bias), bias(&theirs.bias));

        let x: Tensor<$rank> = drawn($shape, 5, DType::F32);
        let (y, expected) = (own.forward(x.clone()).unwrap(), theirs.forward(x));
        assert!(distance(y, expected) < 1e-5, "{own}");

        // Other values, each way.
        let (fresh, _) = $make(&device);
        let mut other: Burns = theirs.clone();
        other.weight = other.weight.map(|w| w.mul_scalar(-2.0));
        let expected = to_vec(other.weight.val());
        let loaded: Ours = Ours::try_load_record(fresh, other.into_record()).unwrap();
        assert_eq!(to_vec(loaded.weight.val()), expected);
        let (_, fresh) = $make(&device);
        let back: Burns = Burns::try_load_record(fresh, loaded.into_record()).unwrap();
        assert_eq!(to_vec(back.weight.val()), expected);
        assert_eq!(bias(&back.bias), bias(&theirs.bias));
    }};
}

#[test]
fn a_layer_of_one_dimension_is_burns() {
    twins!(Conv1d, 3, [2, 4, 11], |device: &Device| {
        let padding = PaddingConfig1d::Explicit(2, 1);
        let own = ours::Conv1dConfig::new(4, 6, 3)
            .with_stride(2)
            .with_groups(2);
        let theirs = burns::Conv1dConfig::new(4, 6, 3)
            .with_stride(2)
            .with_groups(2);
        (
            own.with_padding(padding.clone()).init(device).unwrap(),
            theirs.with_padding(padding).init(device),
        )
    });
    twins!(ConvTranspose1d, 3, [2, 4, 11], |device: &Device| {
        let own = ours::ConvTranspose1dConfig::new([4, 6], 3)
            .with_stride(2)
            .with_padding_out(1);
        let theirs = burns::ConvTranspose1dConfig::new([4, 6], 3)
            .with_stride(2)
            .with_padding_out(1);
        (own.init(device).unwrap(), theirs.init(device))
    });
}

#[test]
fn a_layer_of_two_dimensions_is_burns() {
    let paddings = [
        PaddingConfig2d::Valid,
        PaddingConfig2d::Same,
        PaddingConfig2d::Explicit(1, 0, 2, 3),
    ];
    for padding in paddings {
        for (stride, dilation) in [([1, 1], [1, 2]), ([2, 3], [1, 1])] {
            twins!(Conv2d, 4, [2, 4, 9, 10], |device: &Device| {
                let own = ours::Conv2dConfig::new([4, 6], [3, 2]).with_stride(stride);
                let theirs = burns::Conv2dConfig::new([4, 6], [3, 2]).with_stride(stride);
                let (own, theirs) = (own.with_dilation(dilation), theirs.with_dilation(dilation));
                (
                    own.with_padding(padding.clone()).init(device).unwrap(),
                    theirs.with_padding(padding.clone()).init(device),
                )
            });
        }
    }
    twins!(ConvTranspose2d, 4, [2, 4, 5, 6], |device: &Device| {
        let own = ours::ConvTranspose2dConfig::new([4, 6], [4, 4]).with_stride([2, 2]);
        let theirs = burns::ConvTranspose2dConfig::new([4, 6], [4, 4]).with_stride([2, 2]);
        let (own, theirs) = (own.with_padding([1, 1]), theirs.with_padding([1, 1]));
        let constant = Initializer::Normal {
            mean: 1.0,
            std: 0.5,
        };
        (
            own.with_initializer(constant.clone())
                .with_bias(false)
                .init(device)
                .unwrap(),
            theirs
                .with_initializer(constant)
                .with_bias(false)
                .init(device),
        )
    });
}

#[test]
fn a_layer_of_three_dimensions_is_burns() {
    for padding in [PaddingConfig3d::Same, PaddingConfig3d::Explicit(0, 1, 2)] {
        twins!(Conv3d, 5, [2, 4, 5, 6, 7], |device: &Device| {
            let own = ours::Conv3dConfig::new([4, 6], [3, 3, 3]).with_groups(2);
            let theirs = burns::Conv3dConfig::new([4, 6], [3, 3, 3]).with_groups(2);
            (
                own.with_padding(padding.clone()).init(device).unwrap(),
                theirs.with_padding(padding.clone()).init(device),
            )
        });
    }
    twins!(ConvTranspose3d, 5, [2, 4, 3, 4, 5], |device: &Device| {
        let own = ours::ConvTranspose3dConfig::new([4, 6], [3, 3, 3]).with_stride([2, 2, 2]);
        let theirs = burns::ConvTranspose3dConfig::new([4, 6], [3, 3, 3]).with_stride([2, 2, 2]);
        let (own, theirs) = (
            own.with_padding_out([1, 0, 1]),
            theirs.with_padding_out([1, 0, 1]),
        );
        let (own, theirs) = (
            own.with_dilation([1, 2, 1]),
            theirs.with_dilation([1, 2, 1]),
        );
        (own.init(device).unwrap(), theirs.init(device))
    });
}

#[test]
fn an_even_kernel_of_three_dimensions_keeps_the_size_too() {
    // Where Burn's layer refuses: the padding is uneven.
    let layer = ours::Conv3dConfig::new([2, 3], [2, 4, 3])
        .with_padding(PaddingConfig3d::Same)
        .init(&Device::flex())
        .unwrap();
    let x: Tensor<5> = drawn([1, 2, 5, 6, 7], 1, DType::F32);
    assert_eq!(layer.forward(x).unwrap().dims(), [1, 3, 5, 6, 7]);
}
