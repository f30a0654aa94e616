//! Pools in three dimensions beside Burn's of two, and in f32 beside the composition in f64.

use burn::nn::PaddingConfig3d;
use burn::tensor::ops::{AvgPoolOptions, MaxPoolOptions};
use burn::tensor::{DType, Device, Tensor, module};
use burn_frontier::Result;
use burn_frontier::layers::{AvgPool3dConfig, MaxPool3dConfig};
use burn_frontier::ops::pool::{avg_pool3d, max_pool3d};

use crate::agreement::{assert_close, drawn, leaf, to_vec};

/// Value, and gradient of x.
fn results<const D: usize>(
    shape: [usize; D],
    dtype: DType,
    function: impl Fn(Tensor<D>) -> Tensor<D>,
) -> Vec<Vec<f64>> {
    let x = leaf(shape, 1, dtype);
    let y = function(x.clone());
    let g = drawn([y.dims().iter().product()], 4, dtype).autodiff();
    let gradients = (y.clone() * g.reshape(y.dims())).sum().backward();
    vec![to_vec(y), to_vec(x.grad(&gradients).unwrap())]
}

/// Windows, strides, padding, dilation, and whether those that are not whole count.
type Case = (
    [usize; 3],
    [usize; 3],
    [(usize, usize); 3],
    [usize; 3],
    bool,
);

const CASES: [Case; 5] = [
    ([2, 2, 2], [2, 2, 2], [(0, 0); 3], [1, 1, 1], false),
    (
        [3, 2, 3],
        [2, 1, 2],
        [(1, 1), (0, 0), (1, 1)],
        [1, 1, 1],
        false,
    ),
    (
        [2, 3, 2],
        [3, 2, 2],
        [(0, 0), (1, 1), (0, 0)],
        [1, 1, 1],
        true,
    ),
    (
        [2, 3, 3],
        [1, 2, 2],
        [(1, 0), (0, 2), (1, 1)],
        [1, 1, 1],
        false,
    ),
    (
        [2, 2, 3],
        [2, 1, 2],
        [(1, 1), (0, 0), (1, 1)],
        [2, 1, 2],
        false,
    ),
];

fn max((kernel, stride, padding, dilation, ceil): Case) -> MaxPoolOptions<3> {
    MaxPoolOptions::new(kernel)
        .with_stride(stride)
        .with_padding_pairs(padding)
        .with_dilation(dilation)
        .with_ceil_mode(ceil)
}

fn mean((kernel, stride, padding, _, ceil): Case, padded: bool) -> AvgPoolOptions<3> {
    AvgPoolOptions::new(kernel)
        .with_stride(stride)
        .with_padding_pairs(padding)
        .with_count_include_pad(padded)
        .with_ceil_mode(ceil)
}

#[test]
fn the_kernels_are_the_composition() {
    for case in CASES {
        for shape in [[2, 3, 5, 6, 7], [1, 2, 4, 4, 40]] {
            let what = format!("{case:?} of {shape:?}");
            let run = |dtype| results(shape, dtype, |x| max_pool3d(x, max(case)).unwrap());
            let (found, expected) = (run(DType::F32), run(DType::F64));
            assert_close(&format!("max {what}"), DType::F32, &found, &expected);
            for padded in [true, false] {
                let run =
                    |dtype| results(shape, dtype, |x| avg_pool3d(x, mean(case, padded)).unwrap());
                let (found, expected) = (run(DType::F32), run(DType::F64));
                let what = format!("mean {what}, padding counts {padded}");
                assert_close(&what, DType::F32, &found, &expected);
            }
        }
    }
}

#[test]
fn a_depth_of_one_is_burns_pool_of_two_dimensions() {
    for (mut kernel, mut stride, mut padding, mut dilation, ceil) in CASES {
        (kernel[0], stride[0], padding[0], dilation[0]) = (1, 1, (0, 0), 1);
        let case = (kernel, stride, padding, dilation, ceil);
        let two = |of: [usize; 3]| [of[1], of[2]];
        let pads = [padding[1], padding[2]];
        for dtype in [DType::F32, DType::F64] {
            let burns = MaxPoolOptions::new(two(kernel))
                .with_stride(two(stride))
                .with_padding_pairs(pads)
                .with_dilation(two(dilation))
                .with_ceil_mode(ceil);
            let expected = results([2, 3, 6, 7], dtype, |x| {
                module::max_pool2d(x, burns.clone())
            });
            let found = results([2, 3, 6, 7], dtype, |x| {
                let y = max_pool3d(x.unsqueeze_dim(2), max(case)).unwrap();
                y.squeeze_dim(2)
            });
            assert_close(&format!("max {case:?}"), dtype, &found, &expected);
            for padded in [true, false] {
                let burns = AvgPoolOptions::new(two(kernel))
                    .with_stride(two(stride))
                    .with_padding_pairs(pads)
                    .with_count_include_pad(padded)
                    .with_ceil_mode(ceil);
                let expected = results([2, 3, 6, 7], dtype, |x| {
                    module::avg_pool2d(x, burns.clone())
                });
                let found = results([2, 3, 6, 7], dtype, |x| {
                    let y = avg_pool3d(x.unsqueeze_dim(2), mean(case, padded)).unwrap();
                    y.squeeze_dim(2)
                });
                let what = format!("mean {case:?}, padding counts {padded}");
                assert_close(&what, dtype, &found, &expected);
            }
        }
    }
}

#[test]
fn of_equal_elements_the_first_gets_the_gradient() -> Result<()> {
    for dtype in [DType::F32, DType::F64] {
        let x = Tensor::<5>::ones([1, 1, 2, 2, 4], (&Device::flex(), dtype));
        let x = x.autodiff().require_grad();
        let y = max_pool3d(x.clone(), MaxPoolOptions::new([2, 2, 2]))?;
        let gradient = to_vec(x.grad(&y.sum().backward()).unwrap());
        let first = [1.0, 0.0, 1.0, 0.0];
        assert_eq!(gradient, [first.to_vec(), vec![0.0; 12]].concat());
    }
    Ok(())
}

#[test]
fn layers_pool_as_configured() -> Result<()> {
    let x: Tensor<5> = drawn([1, 2, 4, 6, 8], 1, DType::F32);
    let layer = MaxPool3dConfig::new([2, 2, 2]).init();
    assert_eq!(layer.forward(x.clone())?.dims(), [1, 2, 2, 3, 4]);
    let same = MaxPool3dConfig::new([3, 2, 3])
        .with_strides([1, 1, 1])
        .with_padding(PaddingConfig3d::Same)
        .init();
    assert_eq!(same.forward(x.clone())?.dims(), [1, 2, 4, 6, 8]);
    let mean = AvgPool3dConfig::new([2, 3, 2])
        .with_padding(PaddingConfig3d::Explicit(0, 1, 0))
        .with_count_include_pad(false)
        .init();
    let y = mean.forward(Tensor::ones([1, 1, 2, 3, 2], &Device::flex()))?;
    assert_eq!(to_vec(y), [1.0]);
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused() {
    let x: Tensor<5> = drawn([1, 2, 4, 6, 8], 1, DType::F32);
    let error = max_pool3d(x.clone(), MaxPoolOptions::new([5, 1, 1])).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("spans 5 places along axis 2") && error.contains("has 4"),
        "{error}"
    );
    let layer = AvgPool3dConfig::new([2, 0, 2]).init();
    let error = layer.forward(x).unwrap_err().to_string();
    assert!(
        error.contains("[2, 0, 2]") && error.contains("1 at least"),
        "{error}"
    );
}
