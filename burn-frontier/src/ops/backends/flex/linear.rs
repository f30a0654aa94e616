//! Linear layers and the feed-forward block: what follows a product is done while its rows are in the cache, and gradients of
//! parameters are added where their sums lie.

#[cfg(test)]
mod tests;

use std::marker::PhantomData;

use burn::backend::Flex as Backend;
use burn::tensor::{DType, Tensor, bf16};
use burn_flex::FlexTensor;
use frontier_kernels_cpu::linear::{column_sums, gelu_gradient, linear as product, linear_gelu};
use frontier_kernels_cpu::parallel::zeros;
use frontier_kernels_cpu::product::Size;

use super::half::{Number, close_as, elements_as, open_as};
use super::{activation, close, overwrite};
use crate::ops::backends::{
    FeedForwardBackward, FeedForwardGradients, LinearBackward, LinearGradients, ParameterGradients,
};
use crate::ops::problem::gradient_sum::{GradientSum, LinearSums};
use crate::ops::problem::layers::{Activation, FeedForward};

/// `x W + b` of x `[batch, seq, in]`. The sums are those of `W^T` if they are `transposed`.
pub(super) fn linear(
    x: &Tensor<3>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    sums: (&LinearSums, bool),
) -> Option<(Tensor<3>, LinearBackward)> {
    match x.dtype() {
        DType::F32 => linear_of::<f32>(x, weight, bias, sums),
        DType::BF16 => linear_of::<bf16>(x, weight, bias, sums),
        _ => None,
    }
}

/// The feed-forward block of x `[batch, seq, hidden]`. Saved are x and the activation's argument: its value is had again with the
/// derivative.
pub(super) fn feed_forward(
    x: &Tensor<3>,
    layers: &FeedForward,
    sums: &[LinearSums; 2],
) -> Option<(Tensor<3>, FeedForwardBackward)> {
    match x.dtype() {
        DType::F32 => feed_forward_of::<f32>(x, layers, sums),
        DType::BF16 => feed_forward_of::<bf16>(x, layers, sums),
        _ => None,
    }
}

fn linear_of<E: Number>(
    x: &Tensor<3>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    sums: (&LinearSums, bool),
) -> Option<(Tensor<3>, LinearBackward)> {
    let [batch, seq, _] = x.dims();
    let x = open_as::<E, 3>(x)?;
    let layer = Layer::<E>::of(batch * seq, weight, bias, sums)?;
    let mut y = zeros(layer.rows * layer.output);
    layer.forward(elements_as(&x), &mut y);
    let y = close_as(y, [batch, seq, layer.output]);
    let backward = move |g: Tensor<3>| {
        let g = open_as::<E, 3>(&g)?;
        let (x, g) = (elements_as(&x), elements_as(&g));
        let dx = layer.input_gradient(g);
        Some(LinearGradients {
            x: close_as(dx, [batch, seq, layer.input]),
            parameters: layer.parameter_gradients(x, g),
        })
    };
    Some((y, Box::new(backward)))
}

fn feed_forward_of<E: Number>(
    x: &Tensor<3>,
    layers: &FeedForward,
    sums: &[LinearSums; 2],
) -> Option<(Tensor<3>, FeedForwardBackward)> {
    let [batch, seq, _] = x.dims();
    let rows = batch * seq;
    let x = open_as::<E, 3>(x)?;
    let up = Layer::<E>::of(rows, &layers.up, layers.up_bias.as_ref(), (&sums[0], false))?;
    let bias = layers.down_bias.as_ref();
    let down = Layer::<E>::of(rows, &layers.down, bias, (&sums[1], false))?;
    let activation = layers.activation;
    let [argument, value] = up.forward_through(activation, elements_as(&x));
    let mut y = zeros(rows * down.output);
    down.forward(&value, &mut y);
    drop(value);
    let y = close_as(y, [batch, seq, down.output]);
    let backward = move |g: Tensor<3>| {
        let g = open_as::<E, 3>(&g)?;
        let (x, g) = (elements_as(&x), elements_as(&g));
        let [inner, value] = down.input_gradient_through(activation, g, argument);
        let of_down = down.parameter_gradients(&value, g);
        drop(value);
        Some(FeedForwardGradients {
            x: close_as(up.input_gradient(&inner), [batch, seq, up.input]),
            up: up.parameter_gradients(x, &inner),
            down: of_down,
        })
    };
    Some((y, Box::new(backward)))
}

/// A weight `[in, out]` and a bias, for so many rows of input.
struct Layer<E> {
    weight: FlexTensor,
    /// Elements from one input to the next, and from one output to the next.
    strides: [usize; 2],
    bias: Option<FlexTensor>,
    /// Where the parameters' gradients may be added.
    sums: LinearSums,
    /// Whether the weight's sum is that of its transpose.
    transposed: bool,
    rows: usize,
    input: usize,
    output: usize,
    elements: PhantomData<E>,
}

impl<E: Number> Layer<E> {
    /// `None` where weight and bias are not of the type.
    fn of(
        rows: usize,
        weight: &Tensor<2>,
        bias: Option<&Tensor<1>>,
        (sums, transposed): (&LinearSums, bool),
    ) -> Option<Self> {
        let [input, output] = weight.dims();
        let bias = match bias {
            Some(bias) => Some(open_as::<E, 1>(bias)?),
            None => None,
        };
        let (weight, strides) = view::<E>(weight)?;
        Some(Self {
            weight,
            strides,
            bias,
            sums: sums.clone(),
            transposed,
            rows,
            input,
            output,
            elements: PhantomData,
        })
    }

    /// The weight as a right operand, with the outputs as columns; or the inputs, if turned.
    fn weight(&self, turned: bool) -> E::Matrix<'_> {
        let start = self.weight.layout().start_offset();
        let values = &self.weight.storage::<E>()[start..];
        let [input, output] = self.strides;
        match turned {
            true => E::matrix(values, input, output, self.output),
            false => E::matrix(values, output, input, self.input),
        }
    }

    fn bias(&self) -> Option<&[E]> {
        self.bias.as_ref().map(elements_as)
    }

    /// From `[rows, in]` to `[rows, out]`.
    fn size(&self) -> Size {
        Size {
            rows: self.rows,
            columns: self.output,
            depth: self.input,
        }
    }

    fn forward(&self, x: &[E], y: &mut [E]) {
        let (x, weight) = (rows_of(x, self.input), self.weight(false));
        product(self.size(), [&x, &weight], self.bias(), y);
    }

    /// The activation's argument, and its value.
    fn forward_through(&self, activation: Activation, x: &[E]) -> [Vec<E>; 2] {
        let mut argument = zeros(self.rows * self.output);
        if activation == Activation::Swiglu {
            self.forward(x, &mut argument);
            let value = E::nearest(activation::gated(&E::wide(&argument), self.output));
            return [argument, value];
        }
        let mut value = zeros(argument.len());
        let (x, weight) = (rows_of(x, self.input), self.weight(false));
        let outputs = [&mut argument, &mut value].map(Vec::as_mut_slice);
        linear_gelu(self.size(), [&x, &weight], self.bias(), outputs);
        [argument, value]
    }

    /// From `[rows, out]` to `[rows, in]`, the other way round.
    fn size_back(&self) -> Size {
        Size {
            rows: self.rows,
            columns: self.input,
            depth: self.output,
        }
    }

    /// `g W^T`.
    fn input_gradient(&self, g: &[E]) -> Vec<E> {
        let mut dx = zeros(self.rows * self.input);
        let (g, weight) = (rows_of(g, self.output), self.weight(true));
        product(self.size_back(), [&g, &weight], None, &mut dx);
        dx
    }

    /// The gradient of the argument of the activation whose value is this layer's input, and that value.
    fn input_gradient_through(
        &self,
        activation: Activation,
        g: &[E],
        mut argument: Vec<E>,
    ) -> [Vec<E>; 2] {
        if activation == Activation::Swiglu {
            let width = 2 * self.input;
            let (argument, g) = (E::wide(&argument), self.input_gradient(g));
            let gradient = activation::gated_gradient(&argument, &E::wide(&g), width);
            let value = activation::gated(&argument, width);
            return [gradient, value].map(E::nearest);
        }
        let mut gradient = zeros(argument.len());
        let (g, weight) = (rows_of(g, self.output), self.weight(true));
        let size = self.size_back();
        gelu_gradient(size, [&g, &weight], &mut argument, &mut gradient);
        [gradient, argument]
    }

    /// The gradients of weight and bias from the input and the gradient of the output; what is added to a sum is none of them.
    fn parameter_gradients(&self, x: &[E], g: &[E]) -> ParameterGradients {
        let [input, output] = [(x, self.input), (g, self.output)];
        let sides = match self.transposed {
            true => [output, input],
            false => [input, output],
        };
        let [(left, rows), (right, columns)] = sides;
        let size = Size {
            rows,
            columns,
            depth: self.rows,
        };
        let left = E::matrix(left, 1, rows, self.rows);
        let right = E::matrix(right, 1, columns, self.rows);
        let weight = gradient::<E, 2>(self.sums.weight.as_ref(), [rows, columns], |out, add| {
            E::sums(size, [&left, &right], out, add);
        });
        let weight = weight.map(|weight| match self.transposed {
            true => weight.transpose(),
            false => weight,
        });
        let bias = self.bias.as_ref().and_then(|_| {
            gradient::<E, 1>(self.sums.bias.as_ref(), [self.output], |out, _| {
                column_sums(g, out);
            })
        });
        (weight, bias)
    }
}

/// Rows of so many elements as a left operand.
fn rows_of<E: Number>(x: &[E], width: usize) -> E::Matrix<'_> {
    E::matrix(x, width, 1, width)
}

/// The gradient that `write` writes over zeros, or adds; `None` if it is in the sum.
fn gradient<E: Number, const D: usize>(
    sum: Option<&GradientSum>,
    shape: [usize; D],
    write: impl Fn(&mut [f32], bool),
) -> Option<Tensor<D>> {
    let count = shape.iter().product();
    let new = || {
        let mut new = zeros(count);
        write(&mut new, false);
        new
    };
    let of_graph = || {
        let new = E::nearest(new());
        Some(close_as(new, shape))
    };
    let Some(sum) = sum else {
        return of_graph();
    };
    let Some(before) = sum.take() else {
        sum.put(close(new(), [count]));
        return None;
    };
    let added = match before.dims() == [count] {
        true => overwrite(before, |before| write(before, true)),
        false => Err(Box::new(before)),
    };
    match added {
        Ok(after) => {
            sum.put(after);
            None
        }
        // It lies elsewhere, and is left to what adds the graph's gradients.
        Err(before) => {
            sum.put(*before);
            of_graph()
        }
    }
}

/// The tensor and its strides, made contiguous where one is negative; `None` where it is not of the type.
fn view<E: Number>(x: &Tensor<2>) -> Option<(FlexTensor, [usize; 2])> {
    if x.dtype() != E::dtype() {
        return None;
    }
    let tensor = x.clone().try_into_primitive::<Backend>().ok()?;
    let strides = tensor.layout().strides();
    let strides: Result<Vec<usize>, _> = strides.iter().map(|&s| usize::try_from(s)).collect();
    match strides.as_deref() {
        Ok(&[input, output]) => Some((tensor, [input, output])),
        _ => Some((tensor.to_contiguous(), [x.dims()[1], 1])),
    }
}
