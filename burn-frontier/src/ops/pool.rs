//! Pools in three dimensions, which Burn has in one and two: the greatest element of each window, and the mean. On the CPU in f32 a
//! pass over memory each way; elsewhere Burn's over height and width, and then over the depth.

pub use burn::tensor::ops::{AvgPoolOptions, MaxPoolOptions};
use burn::tensor::{Tensor, module};

use super::backends;
use super::gradient::with_gradient;
use super::problem::pool::Windows;
use crate::error::{Error, Result};

/// The greatest element of each window; its gradient goes to the first that is it.
///
/// # Shapes
/// x `[batch, channels, depth, height, width]`; gives `[batch, channels, depth', height', width']`.
///
/// # Errors
/// A window, stride or dilation of zero, or a window larger than the padded x.
pub fn max_pool3d(x: Tensor<5>, options: MaxPoolOptions<3>) -> Result<Tensor<5>> {
    let windows = Windows::of_max(&options);
    check("max_pool3d", x.dims(), &windows)?;
    let plain = x.clone().without_autodiff();
    let backend = backends::of(&plain.device());
    let Some(y) = backend.max_pool(&plain, &windows) else {
        return Ok(max_by_two(x, &options));
    };
    let kept = y.clone();
    Ok(with_gradient([x.into_dispatch()], y, move |g| {
        let dx = backend.max_pool_gradient([&plain, &kept, &g], &windows);
        let dx = dx.expect("a gradient is where its value is, and of its type");
        [Some(dx.into_dispatch())]
    }))
}

/// The mean of each window, over its places within x, or those of the padding too if `count_include_pad`.
///
/// # Shapes
/// x `[batch, channels, depth, height, width]`; gives `[batch, channels, depth', height', width']`.
///
/// # Errors
/// A window or stride of zero, or a window larger than the padded x.
pub fn avg_pool3d(x: Tensor<5>, options: AvgPoolOptions<3>) -> Result<Tensor<5>> {
    let (windows, padded) = (Windows::of_mean(&options), options.count_include_pad);
    check("avg_pool3d", x.dims(), &windows)?;
    let plain = x.clone().without_autodiff();
    let backend = backends::of(&plain.device());
    let Some(y) = backend.avg_pool(&plain, &windows, padded) else {
        return Ok(mean_by_two(x, &options));
    };
    let shape = x.dims();
    Ok(with_gradient([x.into_dispatch()], y, move |g| {
        let dx = backend.avg_pool_gradient(&g, shape, &windows, padded);
        let dx = dx.expect("a gradient is where its value is, and of its type");
        [Some(dx.into_dispatch())]
    }))
}

fn check(operation: &str, shape: [usize; 5], windows: &Windows) -> Result<()> {
    let numbers = [windows.kernel, windows.stride, windows.dilation];
    if numbers.concat().contains(&0) {
        let [kernel, stride, dilation] = numbers;
        return Err(Error::config(
            format!(
                "{operation}: a window {kernel:?} with stride {stride:?} and dilation {dilation:?}"
            ),
            "use 1 at least for each number",
        ));
    }
    for i in 0..3 {
        let ([before, behind], size) = (windows.padding[i], shape[i + 2]);
        let (extent, padded) = (windows.extent(i), size + before + behind);
        if extent > padded {
            return Err(Error::config(
                format!(
                    "{operation}: a window spans {extent} places along axis {}, where the padded x has {padded}",
                    i + 2
                ),
                "pad x more, or take a smaller window or dilation",
            ));
        }
    }
    Ok(())
}

/// [`max_pool3d`] by Burn's pool of two dimensions.
fn max_by_two(x: Tensor<5>, options: &MaxPoolOptions<3>) -> Tensor<5> {
    let part = |dimensions: [Option<usize>; 2]| {
        let of = |all: [usize; 3]| dimensions.map(|d| d.map_or(1, |d| all[d]));
        MaxPoolOptions::new(of(options.kernel_size))
            .with_stride(of(options.stride))
            .with_dilation(of(options.dilation))
            .with_padding_pairs(dimensions.map(|d| d.map_or((0, 0), |d| options.padding[d])))
            .with_ceil_mode(options.ceil_mode)
    };
    by_two(
        x,
        |x| module::max_pool2d(x, part([Some(1), Some(2)])),
        |x| module::max_pool2d(x, part([Some(0), None])),
    )
}

/// [`avg_pool3d`] by Burn's pool of two dimensions: a window's places are a product of those along each dimension.
fn mean_by_two(x: Tensor<5>, options: &AvgPoolOptions<3>) -> Tensor<5> {
    let part = |dimensions: [Option<usize>; 2]| {
        let of = |all: [usize; 3]| dimensions.map(|d| d.map_or(1, |d| all[d]));
        AvgPoolOptions::new(of(options.kernel_size))
            .with_stride(of(options.stride))
            .with_padding_pairs(dimensions.map(|d| d.map_or((0, 0), |d| options.padding[d])))
            .with_count_include_pad(options.count_include_pad)
            .with_ceil_mode(options.ceil_mode)
    };
    by_two(
        x,
        |x| module::avg_pool2d(x, part([Some(1), Some(2)])),
        |x| module::avg_pool2d(x, part([Some(0), None])),
    )
}

/// `across` height and width, and then `along` the depth.
fn by_two(
    x: Tensor<5>,
    across: impl FnOnce(Tensor<4>) -> Tensor<4>,
    along: impl FnOnce(Tensor<4>) -> Tensor<4>,
) -> Tensor<5> {
    let [batch, channels, depth, height, width] = x.dims();
    let x = across(x.reshape([batch, channels * depth, height, width]));
    let [_, _, height, width] = x.dims();
    let x = along(x.reshape([batch, channels, depth, height * width]));
    let [_, _, depth, _] = x.dims();
    x.reshape([batch, channels, depth, height, width])
}
