//! Linear layers and the feed-forward block by frontier-kernels: what follows a product is done before it is written.

use burn::tensor::{DType, Tensor};
use frontier_kernels::gemm::launch::{Arguments, Extras, launch};
use frontier_kernels::gemm::tile::Role;
use frontier_kernels::gemm::{Activation, Epilogue, Layout, Plan, Shape, tuned};
use frontier_kernels::matrix::instruction::Element;

use super::tuning::tuner;
use super::{Buffer, accepted, refused, taken};
use crate::ops::activation;
use crate::ops::backends::{
    FeedForwardBackward, FeedForwardGradients, LinearBackward, LinearGradients, ParameterGradients,
};
use crate::ops::feed_forward::FeedForward;

/// `x W + b` of x `[batch, seq, in]`.
pub(crate) fn linear(
    x: &Tensor<3>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
) -> Option<(Tensor<3>, LinearBackward)> {
    let [batch, seq, _] = x.dims();
    let x = Buffer::of(x)?;
    let layer = Layer::of(&x, batch * seq, weight, bias)?;
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
) -> Option<(Tensor<3>, FeedForwardBackward)> {
    let [batch, seq, _] = x.dims();
    let rows = batch * seq;
    let x = Buffer::of(x)?;
    let up = Layer::of(&x, rows, &layers.up, layers.up_bias.as_ref())?;
    let down = Layer::of(&x, rows, &layers.down, layers.down_bias.as_ref())?;
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
    rows: usize,
    input: usize,
    output: usize,
}

impl Layer {
    /// `None` where weight and bias are not of x's type.
    fn of(x: &Buffer, rows: usize, weight: &Tensor<2>, bias: Option<&Tensor<1>>) -> Option<Self> {
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

    /// `dW = x^T dy`, and beside it the sum of dy over the rows for the bias; both are summed in f32.
    fn parameter_gradients(&self, x: &Buffer, dy: &Buffer) -> Option<ParameterGradients> {
        let dtype = self.weight.dtype();
        // The gradient lies in memory as the weight does.
        let ([a, b], shape, role) = if self.transposed {
            ([dy, x], [self.output, self.input], Role::Rows)
        } else {
            ([x, dy], [self.input, self.output], Role::Columns)
        };
        let weight = self.weight.beside(shape, dtype);
        let bias = self.bias.as_ref();
        let bias = bias.map(|_| self.weight.beside([self.output], DType::F32));
        let product = Product {
            layout: Layout::Tn,
            size: [shape[0], shape[1], self.rows],
            epilogue: Epilogue::default(),
            sums_of: bias.is_some().then_some(role),
        };
        product.launch([a, b, &weight], Extras::default(), bias.as_ref())?;
        let weight = weight.tensor::<2>();
        Some((
            if self.transposed {
                weight.transpose()
            } else {
                weight
            },
            bias.map(|bias| bias.tensor::<1>().cast(dtype)),
        ))
    }
}

/// A product of two contiguous matrices of one type, and what follows it.
struct Product {
    layout: Layout,
    /// Rows and columns of the result, and what is summed over.
    size: [usize; 3],
    epilogue: Epilogue,
    sums_of: Option<Role>,
}

impl Product {
    /// `out = epilogue(a b)`, with `sums` for [`Self::sums_of`].
    fn launch(
        self,
        [a, b, out]: [&Buffer; 3],
        extras: Extras,
        sums: Option<&Buffer>,
    ) -> Option<()> {
        let [m, n, k] = self.size;
        let element: Element = a.element()?;
        let paired = self.epilogue.activation.paired();
        let shape = Shape::contiguous(self.layout, 1, m, n, k, paired);
        let plan = Plan::choose(
            a.target(),
            (element, element),
            self.layout,
            &shape,
            self.epilogue,
        );
        let plan = accepted(match self.sums_of {
            Some(role) => plan.and_then(|plan| plan.with_sums_of(role)),
            None => plan,
        })?;
        let parts = plan.parts(&shape);
        let plan = if parts > 1 { plan.split() } else { plan };
        let arguments = Arguments {
            a: a.argument(),
            b: b.argument(),
            out: out.argument(),
            extras,
            sums: sums.map(Buffer::argument),
        };
        let client = a.client();
        accepted(match tuner() {
            Some(tuner) => tuned::launch(tuner, client, &plan, &shape, parts, arguments),
            None => launch(client, &plan, &shape, parts, arguments),
        })
    }
}

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
        let y = ops_linear::linear(x.clone(), used, Some(bias.clone()));
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
                let taken = linear(&x, &place.constant([input, output], 2), None).is_some();
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
        let y = ops_feed_forward::feed_forward(x.clone(), layers.clone());
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
                let taken = feed_forward(&x, &layers).is_some();
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
