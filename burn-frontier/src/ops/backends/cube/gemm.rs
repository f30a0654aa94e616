//! Linear layers and the feed-forward block by frontier-kernels: what follows a product is done before it is written.

mod product;

use burn::tensor::{DType, Tensor};
use frontier_kernels::gemm::launch::Extras;
use frontier_kernels::gemm::tile::Role;
use frontier_kernels::gemm::{Activation, Epilogue, Layout};
use product::Product;

use super::{Buffer, refused, taken};
use crate::ops::activation;
use crate::ops::backends::{
    FeedForwardBackward, FeedForwardGradients, LinearBackward, LinearGradients, ParameterGradients,
};
use crate::ops::feed_forward::FeedForward;
use crate::ops::gradient_sum::{GradientSum, LinearSums};

/// `x W + b` of x `[batch, seq, in]`. The sums are those of `W^T` if they are `transposed`.
pub(crate) fn linear(
    x: &Tensor<3>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    (sums, transposed): (&LinearSums, bool),
) -> Option<(Tensor<3>, LinearBackward)> {
    let [batch, seq, _] = x.dims();
    let x = Buffer::of(x)?;
    let layer = Layer::of(&x, batch * seq, weight, bias, (sums, transposed))?;
    let y = x.beside([batch, seq, layer.output], x.dtype());
    layer.forward(&x, Activation::None, &y, None)?;
    taken("linear");
    let backward = move |g: Tensor<3>| {
        let g = Buffer::of(&g)?;
        let dx = x.beside([batch, seq, layer.input], x.dtype());
        layer.input_gradient(&g, Activation::None, &dx, None)?;
        Some(LinearGradients {
            parameters: layer.parameter_gradients(&x, &g)?,
            x: dx.tensor(),
        })
    };
    Some((y.tensor(), Box::new(backward)))
}

/// The feed-forward block of x `[batch, seq, hidden]`. Saved are x, the activation's argument and its value.
pub(crate) fn feed_forward(
    x: &Tensor<3>,
    layers: &FeedForward,
    sums: &[LinearSums; 2],
) -> Option<(Tensor<3>, FeedForwardBackward)> {
    let [batch, seq, _] = x.dims();
    let rows = batch * seq;
    let x = Buffer::of(x)?;
    let up = Layer::of(
        &x,
        rows,
        &layers.up,
        layers.up_bias.as_ref(),
        (&sums[0], false),
    )?;
    let down = Layer::of(
        &x,
        rows,
        &layers.down,
        layers.down_bias.as_ref(),
        (&sums[1], false),
    )?;
    let (forward, back) = match layers.activation {
        activation::Activation::Gelu => (Activation::Gelu, Activation::GeluBackward),
        activation::Activation::Swiglu => (Activation::SwiGlu, Activation::SwiGluBackward),
    };
    let argument = x.beside([rows, up.output], x.dtype());
    let value = x.beside([rows, down.input], x.dtype());
    let y = x.beside([batch, seq, down.output], x.dtype());
    up.forward(&x, forward, &value, Some(&argument))?;
    down.forward(&value, Activation::None, &y, None)?;
    taken("feed_forward");
    let backward = move |g: Tensor<3>| {
        let g = Buffer::of(&g)?;
        let inner = x.beside([rows, up.output], x.dtype());
        down.input_gradient(&g, back, &inner, Some(&argument))?;
        let dx = x.beside([batch, seq, up.input], x.dtype());
        up.input_gradient(&inner, Activation::None, &dx, None)?;
        Some(FeedForwardGradients {
            // The larger product first: were they too large, nothing would have been added to a sum.
            up: up.parameter_gradients(&x, &inner)?,
            down: down.parameter_gradients(&value, &g)?,
            x: dx.tensor(),
        })
    };
    Some((y.tensor(), Box::new(backward)))
}

/// A weight `[in, out]` and a bias, for so many rows of input.
struct Layer {
    weight: Buffer,
    /// Whether the weight lies in memory as `[out, in]`.
    transposed: bool,
    bias: Option<Buffer>,
    /// Where the parameters' gradients may be added.
    sums: Option<LinearSums>,
    rows: usize,
    input: usize,
    output: usize,
}

impl Layer {
    /// `None` where weight and bias are not of x's type.
    fn of(
        x: &Buffer,
        rows: usize,
        weight: &Tensor<2>,
        bias: Option<&Tensor<1>>,
        (sums, lies_transposed): (&LinearSums, bool),
    ) -> Option<Self> {
        let [input, output] = weight.dims();
        let flipped = Buffer::of_contiguous(&weight.clone().transpose());
        let transposed = flipped.is_some();
        let weight = match flipped {
            Some(weight) => weight,
            None => Buffer::of(weight)?,
        };
        let bias = match bias {
            Some(bias) => Some(Buffer::of(bias)?),
            None => None,
        };
        let of_one_type = [Some(&weight), bias.as_ref()]
            .into_iter()
            .flatten()
            .all(|parameter| parameter.dtype() == x.dtype());
        if !of_one_type {
            return refused("a linear layer's input and parameters are of different types");
        }
        Some(Self {
            weight,
            transposed,
            bias,
            // The gradients lie as the weight does in memory, the sums as the parameter does.
            sums: Some(sums.clone()).filter(|_| lies_transposed == transposed),
            rows,
            input,
            output,
        })
    }

    /// `y = activation(x W + b)`; with `argument`, the activation's is written too.
    fn forward(
        &self,
        x: &Buffer,
        activation: Activation,
        y: &Buffer,
        argument: Option<&Buffer>,
    ) -> Option<()> {
        let layout = if self.transposed {
            Layout::Nt
        } else {
            Layout::Nn
        };
        let columns = if activation.paired() { 2 } else { 1 };
        let product = Product {
            layout,
            size: [self.rows, self.output / columns, self.input],
            epilogue: Epilogue {
                bias: self.bias.is_some(),
                activation,
                save: argument.is_some(),
                ..Epilogue::default()
            },
            sums_of: None,
        };
        let extras = Extras {
            bias: self.bias.as_ref().map(Buffer::argument),
            saved: argument.map(Buffer::argument),
            ..Extras::default()
        };
        product.launch([x, &self.weight, y], extras, None)
    }

    /// `dx = dy W^T`, through an activation's derivative at its saved argument.
    fn input_gradient(
        &self,
        dy: &Buffer,
        activation: Activation,
        dx: &Buffer,
        argument: Option<&Buffer>,
    ) -> Option<()> {
        let layout = if self.transposed {
            Layout::Nn
        } else {
            Layout::Nt
        };
        let product = Product {
            layout,
            size: [self.rows, self.input, self.output],
            epilogue: Epilogue {
                activation,
                ..Epilogue::default()
            },
            sums_of: None,
        };
        let extras = Extras {
            other: argument.map(Buffer::argument),
            ..Extras::default()
        };
        product.launch([dy, &self.weight, dx], extras, None)
    }

    /// The gradients of weight and bias; none where they were added to sums.
    fn parameter_gradients(&self, x: &Buffer, dy: &Buffer) -> Option<ParameterGradients> {
        if let Some(sums) = self.sums() {
            return self.add_to(sums, x, dy);
        }
        let dtype = self.weight.dtype();
        let weight = self.weight.beside(self.shape_in_memory(), dtype);
        let bias = self.bias.as_ref();
        let bias = bias.map(|_| self.weight.beside([self.output], DType::F32));
        self.weight_product([x, dy], &weight, bias.as_ref(), false)?;
        let weight = weight.tensor::<2>();
        Some((
            Some(if self.transposed {
                weight.transpose()
            } else {
                weight
            }),
            bias.map(|bias| bias.tensor::<1>().cast(dtype)),
        ))
    }

    /// The sums, if there is one for each parameter.
    fn sums(&self) -> Option<Sums<'_>> {
        let LinearSums { weight, bias } = self.sums.as_ref()?;
        let bias = bias.as_ref().filter(|_| self.bias.is_some());
        let complete = bias.is_some() == self.bias.is_some();
        Some((weight.as_ref()?, bias)).filter(|_| complete)
    }

    /// Adds the gradients to the sums where these lie, or begins the sums with them.
    fn add_to(
        &self,
        (weight, bias): Sums<'_>,
        x: &Buffer,
        dy: &Buffer,
    ) -> Option<ParameterGradients> {
        let sums = [weight.take(), bias.and_then(GradientSum::take)];
        let begun = sums.iter().flatten().next().map(Tensor::device);
        let own = |sum: Option<Tensor<1>>, count: usize| match (sum, &begun) {
            (Some(sum), _) => Buffer::take(sum).map(Buffer::own),
            (None, Some(device)) => Buffer::take(Tensor::<1>::zeros([count], (device, DType::F32))),
            (None, None) => Some(self.weight.beside([count], DType::F32)),
        };
        let [weight_sum, bias_sum] = sums;
        let weight_sum = own(weight_sum, self.input * self.output)?;
        let bias_sum = match bias {
            Some(_) => Some(own(bias_sum, self.output)?),
            None => None,
        };
        let accumulate = begun.is_some();
        let done = self.weight_product([x, dy], &weight_sum, bias_sum.as_ref(), accumulate);
        if accumulate || done.is_some() {
            weight.put(weight_sum.tensor());
            if let Some((bias, sum)) = bias.zip(bias_sum) {
                bias.put(sum.tensor());
            }
        }
        done?;
        taken("gradient_sum");
        Some((None, None))
    }

    /// `dW = x^T dy`, lying in memory as the weight does, and beside it the sum of dy over the rows for the bias; both are
    /// summed in f32.
    fn weight_product(
        &self,
        [x, dy]: [&Buffer; 2],
        weight: &Buffer,
        bias: Option<&Buffer>,
        accumulate: bool,
    ) -> Option<()> {
        let (operands, role) = match self.transposed {
            true => ([dy, x], Role::Rows),
            false => ([x, dy], Role::Columns),
        };
        let [rows, columns] = self.shape_in_memory();
        let product = Product {
            layout: Layout::Tn,
            size: [rows, columns, self.rows],
            epilogue: Epilogue {
                accumulate,
                ..Epilogue::default()
            },
            sums_of: bias.is_some().then_some(role),
        };
        let [a, b] = operands;
        product.launch([a, b, weight], Extras::default(), bias)
    }

    /// Rows and columns of the weight, as it lies.
    fn shape_in_memory(&self) -> [usize; 2] {
        match self.transposed {
            true => [self.output, self.input],
            false => [self.input, self.output],
        }
    }
}

/// Sums of a layer's gradients: of its weight and, if it has one, of its bias.
type Sums<'a> = (&'a GradientSum, Option<&'a GradientSum>);

#[cfg(all(test, feature = "wgpu", feature = "flex"))]
mod tests {
    use super::*;

    use crate::ops::backends::cube::testing::{Place, assert_close, gpu, numbers, types};
    use crate::ops::gradient::seed;
    use crate::ops::{feed_forward as ops_feed_forward, linear as ops_linear};

    /// Value, and gradients of x, weight and bias. A transposed weight lies in memory as that of a tied head.
    fn of_layer(
        [rows, input, output]: [usize; 3],
        transposed: bool,
        place: &Place,
    ) -> [Vec<f64>; 4] {
        let (x, bias) = (place.leaf([2, rows, input], 1), place.leaf([output], 3));
        let (weight, used) = if transposed {
            let weight = place.leaf([output, input], 2);
            (weight.clone(), weight.transpose())
        } else {
            let weight = place.leaf([input, output], 2);
            (weight.clone(), weight)
        };
        let y = ops_linear::linear(x.clone(), used, Some(bias.clone())).unwrap();
        let gradients = seed(y.clone(), place.constant([2, rows, output], 4)).backward();
        [
            numbers(y),
            numbers(x.grad(&gradients).unwrap()),
            numbers(weight.grad(&gradients).unwrap()),
            numbers(bias.grad(&gradients).unwrap()),
        ]
    }

    #[test]
    fn a_linear_layer_on_a_gpu_is_the_kernels_and_equals_the_composition() {
        let Some(gpu) = gpu() else { return };
        for dtype in types(&gpu) {
            let (place, reference) = (Place::new(&gpu, dtype), Place::reference(dtype));
            for sizes in [[5, 12, 7], [70, 33, 130]] {
                let [rows, input, output] = sizes;
                let x = place.constant([2, rows, input], 1);
                let weight = place.constant([input, output], 2);
                let sums = (&LinearSums::default(), false);
                let taken = linear(&x, &weight, None, sums).is_some();
                assert!(taken, "the kernels refused");
                for transposed in [false, true] {
                    let own = of_layer(sizes, transposed, &place);
                    let expected = of_layer(sizes, transposed, &reference);
                    for (i, (own, expected)) in own.iter().zip(&expected).enumerate() {
                        let what = format!("result {i} of {sizes:?}, transposed {transposed}");
                        assert_close(&what, dtype, own, expected);
                    }
                }
            }
        }
    }

    /// The sums of the gradients of weight and bias over two micro-batches, and those that are in the graph.
    fn summed(sums: &LinearSums, transposed: bool, place: &Place) -> [Vec<f64>; 2] {
        let shape = if transposed { [33, 70] } else { [70, 33] };
        let (weight, bias) = (place.leaf(shape, 2), place.leaf([33], 3));
        let mut expected = [vec![0.0; 70 * 33], vec![0.0; 33]];
        for batch in 0..2 {
            let x = place.constant([2, 5, 70], 10 + batch).autodiff();
            let (w, b) = (weight.clone(), bias.clone());
            let y = match transposed {
                true => ops_linear::projection(x, w, sums.weight.as_ref()).unwrap() + b.unsqueeze(),
                false => ops_linear::linear_with_sums(x, w, Some(b), sums).unwrap(),
            };
            let gradients = seed(y, place.constant([2, 5, 33], 20 + batch)).backward();
            let found = [
                weight.grad(&gradients).map(numbers),
                bias.grad(&gradients).map(numbers),
            ];
            for (sum, gradient) in expected.iter_mut().zip(found) {
                let gradient = gradient.into_iter().flatten();
                sum.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g);
            }
        }
        expected
    }

    #[test]
    fn the_gradients_of_micro_batches_are_added_in_f32_where_the_sum_lies() {
        let Some(gpu) = gpu() else { return };
        for dtype in types(&gpu) {
            for transposed in [false, true] {
                let [weight, bias] = [0, 1].map(|_| GradientSum::default());
                let sums = LinearSums {
                    weight: Some(weight.clone()),
                    bias: Some(bias.clone()),
                };
                let left = summed(&sums, transposed, &Place::new(&gpu, dtype));
                let nothing = |of: &[f64]| of.iter().all(|&x| x == 0.0);
                assert!(nothing(&left[0]), "also in the graph");
                assert_eq!(nothing(&left[1]), !transposed, "bias {transposed}");
                let reference = Place::reference(dtype);
                let expected = summed(&LinearSums::default(), transposed, &reference);
                // Behind a projection, a bias is none of the operation's.
                let found = [Some(weight), Some(bias).filter(|_| !transposed)];
                for (sum, expected) in found.into_iter().flatten().zip(&expected) {
                    let own = sum.take().expect("a sum");
                    let buffer = Buffer::take(own).unwrap();
                    assert!(buffer.0.can_mut(), "it was copied, not added to");
                    // Closer than the parameters' type could be.
                    let own = numbers(buffer.tensor::<1>());
                    assert_close("a sum", DType::F32, &own, expected);
                    assert!(sum.take().is_none());
                }
            }
        }
    }

    fn block(
        [_, hidden, ffn]: [usize; 3],
        activation: activation::Activation,
        bias: bool,
        place: &Place,
    ) -> FeedForward {
        let columns = match activation {
            activation::Activation::Gelu => ffn,
            activation::Activation::Swiglu => 2 * ffn,
        };
        FeedForward {
            up: place.leaf([hidden, columns], 2),
            up_bias: bias.then(|| place.leaf([columns], 3)),
            activation,
            down: place.leaf([ffn, hidden], 4),
            down_bias: bias.then(|| place.leaf([hidden], 5)),
        }
    }

    /// Value, and gradients of x and all parameters.
    fn of_block(
        sizes: [usize; 3],
        activation: activation::Activation,
        bias: bool,
        place: &Place,
    ) -> Vec<Vec<f64>> {
        let [rows, hidden, _] = sizes;
        let layers = block(sizes, activation, bias, place);
        let x = place.leaf([2, rows, hidden], 1);
        let y = ops_feed_forward::feed_forward(x.clone(), layers.clone()).unwrap();
        let gradients = seed(y.clone(), place.constant([2, rows, hidden], 6)).backward();
        let mut all = vec![numbers(y), numbers(x.grad(&gradients).unwrap())];
        all.extend([layers.up, layers.down].map(|w| numbers(w.grad(&gradients).unwrap())));
        let biases = [layers.up_bias, layers.down_bias].into_iter().flatten();
        all.extend(biases.map(|b| numbers(b.grad(&gradients).unwrap())));
        all
    }

    #[test]
    fn a_feed_forward_block_on_a_gpu_is_the_kernels_and_equals_its_layers() {
        use activation::Activation::{Gelu, Swiglu};
        let Some(gpu) = gpu() else { return };
        for dtype in types(&gpu) {
            let (place, reference) = (Place::new(&gpu, dtype), Place::reference(dtype));
            for (sizes, activation, bias) in [
                ([5, 12, 20], Gelu, true),
                ([67, 36, 75], Gelu, false),
                ([5, 12, 20], Swiglu, false),
                ([67, 36, 75], Swiglu, true),
            ] {
                let x = place.constant([2, sizes[0], sizes[1]], 1);
                let layers = block(sizes, activation, bias, &place);
                let taken = feed_forward(&x, &layers, &Default::default()).is_some();
                assert!(taken, "the kernels refused");
                let own = of_block(sizes, activation, bias, &place);
                let expected = of_block(sizes, activation, bias, &reference);
                for (i, (own, expected)) in own.iter().zip(&expected).enumerate() {
                    let what = format!("result {i} of {sizes:?}, {activation:?}");
                    assert_close(&what, dtype, own, expected);
                }
            }
        }
    }
}
