//! Convolutions of one to three dimensions and their transposes. On the CPU in f32 they are products whose operands are packed from
//! the images, with gradients of their own; elsewhere Burn's.

use burn::backend::DispatchTensor;
use burn::tensor::ops::PadMode;
pub use burn::tensor::ops::{ConvOptions, ConvTransposeOptions};
use burn::tensor::{Tensor, module};

use super::backends;
use super::gradient::with_gradient;
use super::problem::convolution::Convolution;
use super::shape::{expect, expect_type};
use crate::error::{Error, Result};

/// The convolution of x and a kernel, and a bias.
///
/// # Shapes
/// x `[batch, in, length]`, weight `[out, in / groups, taps]`, bias `[out]`; gives `[batch, out, length']`.
///
/// # Errors
/// Others, channels that the groups do not divide, a stride, dilation or number of groups of zero, a kernel larger than the padded
/// x, or parameters of another type than x.
pub fn conv1d(
    x: Tensor<3>,
    weight: Tensor<3>,
    bias: Option<Tensor<1>>,
    options: ConvOptions<1>,
) -> Result<Tensor<3>> {
    convolve("conv1d", (x, weight, bias), options, |(x, w, b), o| {
        // By two dimensions: Burn's gradient of the weights of several groups is wrong where the stride leaves places over.
        let options = ConvOptions {
            stride: [1, o.stride[0]],
            padding: [(0, 0), o.padding[0]],
            dilation: [1, o.dilation[0]],
            groups: o.groups,
        };
        let [x, w] = [x, w].map(|x| x.unsqueeze_dim(2));
        module::conv2d(x, w, b, options).squeeze_dim(2)
    })
}

/// As [`conv1d`], of two dimensions.
///
/// # Shapes
/// x `[batch, in, height, width]`, weight `[out, in / groups, taps, taps]`, bias `[out]`; gives `[batch, out, height', width']`.
///
/// # Errors
/// Those of [`conv1d`].
pub fn conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    options: ConvOptions<2>,
) -> Result<Tensor<4>> {
    convolve("conv2d", (x, weight, bias), options, |(x, w, b), o| {
        module::conv2d(x, w, b, o)
    })
}

/// As [`conv1d`], of three dimensions.
///
/// # Shapes
/// x `[batch, in, depth, height, width]`, weight `[out, in / groups, taps, taps, taps]`, bias `[out]`; gives
/// `[batch, out, depth', height', width']`.
///
/// # Errors
/// Those of [`conv1d`].
pub fn conv3d(
    x: Tensor<5>,
    weight: Tensor<5>,
    bias: Option<Tensor<1>>,
    options: ConvOptions<3>,
) -> Result<Tensor<5>> {
    convolve("conv3d", (x, weight, bias), options, |(x, w, b), mut o| {
        let mut x = x;
        if o.is_asymmetric() {
            // Burn's has one padding for both sides.
            x = x.pad(o.padding, PadMode::Constant(0.0));
            o.padding = [(0, 0); 3];
        }
        module::conv3d(x, w, b, o)
    })
}

/// The transposed convolution of x and a kernel, the gradient of a convolution's input as an operation of its own, and a bias.
///
/// # Shapes
/// x `[batch, in, length]`, weight `[in, out / groups, taps]`, bias `[out]`; gives `[batch, out, length']` with
/// `length' = (length - 1) stride + dilation (taps - 1) + 1 + padding_out - 2 padding`.
///
/// # Errors
/// Others, channels that the groups do not divide, a stride, dilation or number of groups of zero, a padding that leaves nothing, or
/// parameters of another type than x.
pub fn conv_transpose1d(
    x: Tensor<3>,
    weight: Tensor<3>,
    bias: Option<Tensor<1>>,
    options: ConvTransposeOptions<1>,
) -> Result<Tensor<3>> {
    let inputs = (x, weight, bias);
    transpose("conv_transpose1d", inputs, options, |(x, w, b), o| {
        module::conv_transpose1d(x, w, b, o)
    })
}

/// As [`conv_transpose1d`], of two dimensions.
///
/// # Shapes
/// x `[batch, in, height, width]`, weight `[in, out / groups, taps, taps]`, bias `[out]`; gives `[batch, out, height', width']`.
///
/// # Errors
/// Those of [`conv_transpose1d`].
pub fn conv_transpose2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    options: ConvTransposeOptions<2>,
) -> Result<Tensor<4>> {
    let inputs = (x, weight, bias);
    transpose("conv_transpose2d", inputs, options, |(x, w, b), o| {
        module::conv_transpose2d(x, w, b, o)
    })
}

/// As [`conv_transpose1d`], of three dimensions.
///
/// # Shapes
/// x `[batch, in, depth, height, width]`, weight `[in, out / groups, taps, taps, taps]`, bias `[out]`; gives
/// `[batch, out, depth', height', width']`.
///
/// # Errors
/// Those of [`conv_transpose1d`].
pub fn conv_transpose3d(
    x: Tensor<5>,
    weight: Tensor<5>,
    bias: Option<Tensor<1>>,
    options: ConvTransposeOptions<3>,
) -> Result<Tensor<5>> {
    let inputs = (x, weight, bias);
    transpose("conv_transpose3d", inputs, options, |(x, w, b), o| {
        module::conv_transpose3d(x, w, b, o)
    })
}

/// x, weight and bias.
type Inputs<const D: usize> = (Tensor<D>, Tensor<D>, Option<Tensor<1>>);

/// A convolution over `N = D - 2` dimensions, by `plain` where no faster way is.
fn convolve<const D: usize, const N: usize>(
    operation: &str,
    inputs: Inputs<D>,
    options: ConvOptions<N>,
    plain: fn(Inputs<D>, ConvOptions<N>) -> Tensor<D>,
) -> Result<Tensor<D>> {
    let padding = options.padding.map(|(before, behind)| [before, behind]);
    let window = Window {
        stride: options.stride,
        dilation: options.dilation,
        padding,
        groups: options.groups,
    };
    let [inputs_per_group, outputs] = check(operation, &inputs, &window, false)?;
    let input = spatial::<D, N>(inputs.0.dims());
    for (i, (&size, [before, behind])) in input.iter().zip(padding).enumerate() {
        let (extent, padded) = (window.extent(&inputs.1, i), size + before + behind);
        if extent > padded {
            return Err(Error::config(
                format!(
                    "{operation}: the kernel spans {extent} places along axis {}, where the padded x has {padded}",
                    i + 2
                ),
                "pad x more, or take a smaller kernel or dilation",
            ));
        }
    }
    let channels = [inputs_per_group * window.groups, outputs];
    let convolution = window.convolution(&inputs, channels, input);
    apply(inputs, convolution, false, |inputs| plain(inputs, options))
}

/// A transposed convolution over `N = D - 2` dimensions: the way back of a convolution from where its result is to where it begins.
fn transpose<const D: usize, const N: usize>(
    operation: &str,
    inputs: Inputs<D>,
    options: ConvTransposeOptions<N>,
    plain: fn(Inputs<D>, ConvTransposeOptions<N>) -> Tensor<D>,
) -> Result<Tensor<D>> {
    let ends = |i: usize| {
        let (padding, out) = (options.padding[i], options.padding_out[i]);
        [padding, padding.saturating_sub(out)]
    };
    let window = Window {
        stride: options.stride,
        dilation: options.dilation,
        padding: std::array::from_fn(ends),
        groups: options.groups,
    };
    let [outputs_per_group, _] = check(operation, &inputs, &window, true)?;
    let size = spatial::<D, N>(inputs.0.dims());
    let mut output = [0; N];
    for i in 0..N {
        let reach = (size[i].max(1) - 1) * window.stride[i] + window.extent(&inputs.1, i);
        let cut = 2 * options.padding[i];
        let reach = reach + options.padding_out[i];
        if size[i] == 0 || reach <= cut {
            return Err(Error::config(
                format!(
                    "{operation}: {} places along axis {} reach over {reach}, of which the padding takes {cut}",
                    size[i],
                    i + 2
                ),
                "pad less, or give it a larger x",
            ));
        }
        output[i] = reach - cut;
    }
    let channels = [outputs_per_group * window.groups, inputs.0.dims()[1]];
    let convolution = window.convolution(&inputs, channels, output);
    apply(inputs, convolution, true, |inputs| plain(inputs, options))
}

/// How a kernel goes over x.
struct Window<const N: usize> {
    stride: [usize; N],
    dilation: [usize; N],
    /// Before and behind.
    padding: [[usize; 2]; N],
    groups: usize,
}

impl<const N: usize> Window<N> {
    /// How many places the kernel spans along a dimension.
    fn extent<const D: usize>(&self, weight: &Tensor<D>, dimension: usize) -> usize {
        self.dilation[dimension] * (weight.dims()[dimension + 2] - 1) + 1
    }

    /// The convolution from channels to channels, over so many places.
    fn convolution<const D: usize>(
        &self,
        inputs: &Inputs<D>,
        [from, to]: [usize; 2],
        input: [usize; N],
    ) -> Convolution {
        Convolution {
            batch: inputs.0.dims()[0],
            groups: self.groups,
            inputs: from,
            outputs: to,
            input: three(input, 1),
            kernel: three(spatial::<D, N>(inputs.1.dims()), 1),
            stride: three(self.stride, 1),
            padding: three(self.padding, [0; 2]),
            dilation: three(self.dilation, 1),
        }
    }
}

/// Three dimensions, those that are missing in front.
fn three<T: Copy, const N: usize>(of: [T; N], missing: T) -> [T; 3] {
    std::array::from_fn(|i| (i + N).checked_sub(3).map_or(missing, |i| of[i]))
}

/// The dimensions behind batch and channels.
fn spatial<const D: usize, const N: usize>(dims: [usize; D]) -> [usize; N] {
    std::array::from_fn(|i| dims[i + 2])
}

/// Fails unless weight, bias and groups fit x. Gives the weight's channels: the second axis, and the first.
fn check<const D: usize, const N: usize>(
    operation: &str,
    (x, weight, bias): &Inputs<D>,
    window: &Window<N>,
    transposed: bool,
) -> Result<[usize; 2]> {
    let (channels, groups, dims) = (x.dims()[1], window.groups, weight.dims());
    let [first, second] = [dims[0], dims[1]];
    let steps = window.stride.iter().chain(&window.dilation);
    if groups == 0 || steps.chain(&dims).any(|&n| n == 0) {
        let (stride, dilation) = (window.stride, window.dilation);
        return Err(Error::config(
            format!(
                "{operation}: a weight {dims:?} with stride {stride:?}, dilation {dilation:?} and {groups} groups"
            ),
            "give it a weight without an empty axis, and 1 at least for the others",
        ));
    }
    let (expected, axes) = match transposed {
        false => (second * groups, "[out, in / groups, taps...]"),
        true => (first, "[in, out / groups, taps...]"),
    };
    if channels != expected || !first.is_multiple_of(groups) {
        return Err(Error::config(
            format!(
                "{operation}: a weight {dims:?} in {groups} groups, and x of {channels} channels"
            ),
            format!("the weight is {axes}, and groups divide the channels on both sides"),
        ));
    }
    expect_type(operation, "the weight", weight, x.dtype())?;
    let Some(bias) = bias else {
        return Ok([second, first]);
    };
    let outputs = match transposed {
        false => first,
        true => second * groups,
    };
    expect(operation, "the bias", bias.dims(), [outputs], "[out]")?;
    expect_type(operation, "the bias", bias, x.dtype())?;
    Ok([second, first])
}

/// The convolution of the inputs, or the way back of its input, by a faster way or else by `plain`.
fn apply<const D: usize>(
    (x, weight, bias): Inputs<D>,
    convolution: Convolution,
    transposed: bool,
    plain: impl FnOnce(Inputs<D>) -> Tensor<D>,
) -> Result<Tensor<D>> {
    let kept = Kept {
        convolution,
        transposed,
        x: wide(x.clone()),
        weight: wide(weight.clone()),
    };
    let plain_bias = bias.clone().map(Tensor::without_autodiff);
    let Some(y) = kept.value(plain_bias.as_ref()) else {
        return Ok(plain((x, weight, bias)));
    };
    let wanted = [
        x.is_tracked(),
        weight.is_tracked(),
        bias.as_ref().is_some_and(Tensor::is_tracked),
    ];
    let shapes = [x.dims(), weight.dims()];
    let inputs = [
        x.into_dispatch(),
        weight.into_dispatch(),
        // A missing bias is a constant, and has no gradient.
        bias.map_or_else(|| y.clone().into_dispatch(), Tensor::into_dispatch),
    ];
    Ok(with_gradient(inputs, narrow::<D>(y), move |g| {
        kept.gradients(&wide(g), wanted, shapes)
            .expect("a gradient is where its value is, and of its type")
    }))
}

/// A plain tensor `[batch, channels, depth, height, width]`.
fn wide<const D: usize>(x: Tensor<D>) -> Tensor<5> {
    let dims = x.dims();
    let mut shape = [dims[0], dims[1], 1, 1, 1];
    shape[7 - D..].copy_from_slice(&dims[2..]);
    x.without_autodiff().reshape(shape)
}

/// The last `D - 2` of three dimensions, the others being of size 1.
fn narrow<const D: usize>(x: Tensor<5>) -> Tensor<D> {
    let dims = x.dims();
    x.reshape(std::array::from_fn::<_, D, _>(|i| {
        if i < 2 { dims[i] } else { dims[i + 5 - D] }
    }))
}

/// What the way back needs.
struct Kept {
    convolution: Convolution,
    /// Whether x is where the convolution's result is.
    transposed: bool,
    x: Tensor<5>,
    weight: Tensor<5>,
}

impl Kept {
    fn value(&self, bias: Option<&Tensor<1>>) -> Option<Tensor<5>> {
        let Self {
            convolution,
            transposed,
            x,
            weight,
        } = self;
        let backend = backends::of(&x.device());
        if !transposed {
            return backend.convolution(convolution, x, weight, bias);
        }
        // Where x ends before a convolution of these sizes does, it is no convolution's result.
        let [_, _, places @ ..] = x.dims();
        let whole = convolution.output() == places;
        let value = || backend.convolution_data_gradient(convolution, x, weight, bias);
        whole.then(value).flatten()
    }

    /// The gradients of x, weight and bias that are wanted, from that of the value.
    fn gradients<const D: usize>(
        &self,
        g: &Tensor<5>,
        [of_x, of_weight, of_bias]: [bool; 3],
        shapes: [[usize; D]; 2],
    ) -> Option<[Option<DispatchTensor>; 3]> {
        let Self {
            convolution,
            transposed,
            x,
            weight,
        } = self;
        let backend = backends::of(&x.device());
        let [mut dx, mut dw, mut db] = [None, None, None];
        if of_x {
            let gradient = match transposed {
                false => backend.convolution_data_gradient(convolution, g, weight, None)?,
                true => backend.convolution(convolution, g, weight, None)?,
            };
            dx = Some(gradient.reshape(shapes[0]).into_dispatch());
        }
        if of_weight {
            let [from, to] = if *transposed { [g, x] } else { [x, g] };
            let gradient = backend.convolution_weight_gradient(convolution, from, to)?;
            dw = Some(gradient.reshape(shapes[1]).into_dispatch());
        }
        if of_bias {
            db = Some(backend.convolution_bias_gradient(g)?.into_dispatch());
        }
        Some([dx, dw, db])
    }
}
