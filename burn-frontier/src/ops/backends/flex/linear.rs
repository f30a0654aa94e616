//! Linear layers and the feed-forward block: what follows a product is done while its rows are in the cache, and gradients of
//! parameters are added where their sums lie.

#[cfg(test)]
mod tests;

use burn::backend::Flex as Backend;
use burn::tensor::{DType, Tensor};
use burn_flex::FlexTensor;
use frontier_kernels_cpu::linear::{
    column_sums, gelu_gradient, linear as product, linear_gelu, weight_gradient,
};
use frontier_kernels_cpu::product::{Matrix, Size};

use super::{activation, close, elements, open, overwrite};
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
    let [batch, seq, _] = x.dims();
    let x = open(x)?;
    let layer = Layer::of(batch * seq, weight, bias, sums)?;
    let mut y = vec![0.0; layer.rows * layer.output];
    layer.forward(elements(&x), &mut y);
    let y = close(y, [batch, seq, layer.output]);
    let backward = move |g: Tensor<3>| {
        let g = open(&g)?;
        let (x, g) = (elements(&x), elements(&g));
        let dx = layer.input_gradient(g);
        Some(LinearGradients {
            x: close(dx, [batch, seq, layer.input]),
            parameters: layer.parameter_gradients(x, g),
        })
    };
    Some((y, Box::new(backward)))
}

/// The feed-forward block of x `[batch, seq, hidden]`. Saved are x and the activation's argument: its value is had again with the
/// derivative.
pub(super) fn feed_forward(
    x: &Tensor<3>,
    layers: &FeedForward,
    sums: &[LinearSums; 2],
) -> Option<(Tensor<3>, FeedForwardBackward)> {
    let [batch, seq, _] = x.dims();
    let rows = batch * seq;
    let x = open(x)?;
    let up = Layer::of(rows, &layers.up, layers.up_bias.as_ref(), (&sums[0], false))?;
    let bias = layers.down_bias.as_ref();
    let down = Layer::of(rows, &layers.down, bias, (&sums[1], false))?;
    let activation = layers.activation;
    let [argument, value] = up.forward_through(activation, elements(&x));
    let mut y = vec![0.0; rows * down.output];
    down.forward(&value, &mut y);
    drop(value);
    let y = close(y, [batch, seq, down.output]);
    let backward = move |g: Tensor<3>| {
        let g = open(&g)?;
        let (x, g) = (elements(&x), elements(&g));
        let [inner, value] = down.input_gradient_through(activation, g, argument);
        let of_down = down.parameter_gradients(&value, g);
        drop(value);
        Some(FeedForwardGradients {
            x: close(up.input_gradient(&inner), [batch, seq, up.input]),
            up: up.parameter_gradients(x, &inner),
            down: of_down,
        })
    };
    Some((y, Box::new(backward)))
}

/// A weight `[in, out]` and a bias, for so many rows of input.
struct Layer {
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
}

impl Layer {
    /// `None` where weight and bias are not of f32.
    fn of(
        rows: usize,
        weight: &Tensor<2>,
        bias: Option<&Tensor<1>>,
        (sums, transposed): (&LinearSums, bool),
    ) -> Option<Self> {
        let [input, output] = weight.dims();
        let bias = match bias {
            Some(bias) => Some(open(bias)?),
            None => None,
        };
        let (weight, strides) = view(weight)?;
        Some(Self {
            weight,
            strides,
            bias,
            sums: sums.clone(),
            transposed,
            rows,
            input,
            output,
        })
    }

    fn weight(&self, across: usize, deep: usize) -> Matrix<'_> {
        let start = self.weight.layout().start_offset();
        let values = &self.weight.storage::<f32>()[start..];
        Matrix::new(values, self.strides[across], self.strides[deep])
    }

    fn bias(&self) -> Option<&[f32]> {
        self.bias.as_ref().map(elements)
    }

    /// From `[rows, in]` to `[rows, out]`.
    fn size(&self) -> Size {
        Size {
            rows: self.rows,
            columns: self.output,
            depth: self.input,
        }
    }

    fn forward(&self, x: &[f32], y: &mut [f32]) {
        let (x, weight) = (Matrix::new(x, self.input, 1), self.weight(1, 0));
        product(self.size(), [&x, &weight], self.bias(), y);
    }

    /// The activation's argument, and its value.
    fn forward_through(&self, activation: Activation, x: &[f32]) -> [Vec<f32>; 2] {
        let mut argument = vec![0.0; self.rows * self.output];
        if activation == Activation::Swiglu {
            self.forward(x, &mut argument);
            let value = activation::gated(&argument, self.output);
            return [argument, value];
        }
        let mut value = vec![0.0; argument.len()];
        let (x, weight) = (Matrix::new(x, self.input, 1), self.weight(1, 0));
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
    fn input_gradient(&self, g: &[f32]) -> Vec<f32> {
        let mut dx = vec![0.0; self.rows * self.input];
        let (g, weight) = (Matrix::new(g, self.output, 1), self.weight(0, 1));
        product(self.size_back(), [&g, &weight], None, &mut dx);
        dx
    }

    /// The gradient of the argument of the activation whose value is this layer's input, and that value.
    fn input_gradient_through(
        &self,
        activation: Activation,
        g: &[f32],
        mut argument: Vec<f32>,
    ) -> [Vec<f32>; 2] {
        if activation == Activation::Swiglu {
            let width = 2 * self.input;
            let gradient = activation::gated_gradient(&argument, &self.input_gradient(g), width);
            return [gradient, activation::gated(&argument, width)];
        }
        let mut gradient = vec![0.0; argument.len()];
        let (g, weight) = (Matrix::new(g, self.output, 1), self.weight(0, 1));
        let size = self.size_back();
        gelu_gradient(size, [&g, &weight], &mut argument, &mut gradient);
        [gradient, argument]
    }

    /// The gradients of weight and bias from the input and the gradient of the output; what is added to a sum is none of them.
    fn parameter_gradients(&self, x: &[f32], g: &[f32]) -> ParameterGradients {
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
        let (left, right) = (Matrix::new(left, 1, rows), Matrix::new(right, 1, columns));
        let weight = gradient(self.sums.weight.as_ref(), [rows, columns], |out, add| {
            weight_gradient(size, [&left, &right], out, add);
        });
        let weight = weight.map(|weight| match self.transposed {
            true => weight.transpose(),
            false => weight,
        });
        let bias = self.bias.as_ref().and_then(|_| {
            gradient(self.sums.bias.as_ref(), [self.output], |out, _| {
                column_sums(g, out);
            })
        });
        (weight, bias)
    }
}

/// The gradient that `write` writes over zeros, or adds; `None` if it is in the sum.
fn gradient<const D: usize>(
    sum: Option<&GradientSum>,
    shape: [usize; D],
    write: impl Fn(&mut [f32], bool),
) -> Option<Tensor<D>> {
    let count = shape.iter().product();
    let new = || {
        let mut new = vec![0.0; count];
        write(&mut new, false);
        new
    };
    let Some(sum) = sum else {
        return Some(close(new(), shape));
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
            Some(close(new(), shape))
        }
    }
}

/// The tensor and its strides, made contiguous where they are not of a view's kind; `None` where it is not of f32.
fn view(x: &Tensor<2>) -> Option<(FlexTensor, [usize; 2])> {
    if x.dtype() != DType::F32 {
        return None;
    }
    let tensor = x.clone().try_into_primitive::<Backend>().ok()?;
    let strides: Option<Vec<usize>> = tensor
        .layout()
        .strides()
        .iter()
        .map(|&stride| usize::try_from(stride).ok())
        .collect();
    match strides.as_deref() {
        Some(&[a, b]) => Some((tensor, [a, b])),
        _ => Some((tensor.to_contiguous(), [x.dims()[1], 1])),
    }
}
