//! Linear layers and the feed-forward block by frontier-kernels: what follows a product is done before it is written.

mod parameters;
mod product;

use burn::tensor::Tensor;
use frontier_kernels::gemm::launch::Extras;
use frontier_kernels::gemm::tile::Role;
use frontier_kernels::gemm::{Activation, Epilogue, Layout};
use parameters::launch_all;
use product::{Product, Ready};

use super::refusal::refused;
use super::{Buffer, taken};
use crate::ops::backends::{
    FeedForwardBackward, FeedForwardGradients, LinearBackward, LinearGradients,
};
use crate::ops::problem::gradient_sum::LinearSums;
use crate::ops::problem::layers::{Activation as Nonlinearity, FeedForward};

/// `x W + b` of x `[batch, seq, in]`. The sums are those of `W^T` if they are `transposed`.
pub(super) fn linear(
    x: &Tensor<3>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    (sums, transposed): (&LinearSums, bool),
) -> Option<(Tensor<3>, LinearBackward)> {
    let [batch, seq, _] = x.dims();
    let x = Buffer::of(x)?;
    let layer = Layer::of("linear", &x, batch * seq, weight, bias, (sums, transposed))?;
    let y = x.beside([batch, seq, layer.output], x.dtype());
    layer.forward(&x, Activation::None, &y, None)?.launch();
    taken("linear");
    let backward = move |g: Tensor<3>| {
        let g = Buffer::of(&g)?;
        let dx = x.beside([batch, seq, layer.input], x.dtype());
        let of_input = layer.input_gradient(&g, Activation::None, &dx, None)?;
        let [parameters] = launch_all([of_input], [(&layer, &x, &g)])?;
        Some(LinearGradients {
            parameters,
            x: dx.tensor(),
        })
    };
    Some((y.tensor(), Box::new(backward)))
}

/// The feed-forward block of x `[batch, seq, hidden]`. Saved are x, the activation's argument and its value.
pub(super) fn feed_forward(
    x: &Tensor<3>,
    layers: &FeedForward,
    sums: &[LinearSums; 2],
) -> Option<(Tensor<3>, FeedForwardBackward)> {
    let [batch, seq, _] = x.dims();
    let rows = batch * seq;
    let x = Buffer::of(x)?;
    let up = Layer::of(
        "feed_forward",
        &x,
        rows,
        &layers.up,
        layers.up_bias.as_ref(),
        (&sums[0], false),
    )?;
    let down = Layer::of(
        "feed_forward",
        &x,
        rows,
        &layers.down,
        layers.down_bias.as_ref(),
        (&sums[1], false),
    )?;
    let (forward, back) = match layers.activation {
        Nonlinearity::Gelu => (Activation::Gelu, Activation::GeluBackward),
        Nonlinearity::Swiglu => (Activation::SwiGlu, Activation::SwiGluBackward),
    };
    let argument = x.beside([rows, up.output], x.dtype());
    let value = x.beside([rows, down.input], x.dtype());
    let y = x.beside([batch, seq, down.output], x.dtype());
    let first = up.forward(&x, forward, &value, Some(&argument))?;
    let second = down.forward(&value, Activation::None, &y, None)?;
    first.launch();
    second.launch();
    taken("feed_forward");
    let backward = move |g: Tensor<3>| {
        let g = Buffer::of(&g)?;
        let inner = x.beside([rows, up.output], x.dtype());
        let dx = x.beside([batch, seq, up.input], x.dtype());
        let of_inputs = [
            down.input_gradient(&g, back, &inner, Some(&argument))?,
            up.input_gradient(&inner, Activation::None, &dx, None)?,
        ];
        let layers = [(&up, &x, &inner), (&down, &value, &g)];
        let [of_up, of_down] = launch_all(of_inputs, layers)?;
        Some(FeedForwardGradients {
            x: dx.tensor(),
            up: of_up,
            down: of_down,
        })
    };
    Some((y.tensor(), Box::new(backward)))
}

/// A weight `[in, out]` and a bias, for so many rows of input.
struct Layer {
    operation: &'static str,
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
        operation: &'static str,
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
            return refused(operation, "input and parameters are of different types");
        }
        Some(Self {
            operation,
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
    ) -> Option<Ready> {
        let layout = if self.transposed {
            Layout::Nt
        } else {
            Layout::Nn
        };
        let columns = if activation.paired() { 2 } else { 1 };
        let product = Product {
            operation: self.operation,
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
        product.prepare([x, &self.weight, y], extras, None)
    }

    /// `dx = dy W^T`, through an activation's derivative at its saved argument.
    fn input_gradient(
        &self,
        dy: &Buffer,
        activation: Activation,
        dx: &Buffer,
        argument: Option<&Buffer>,
    ) -> Option<Ready> {
        let layout = if self.transposed {
            Layout::Nn
        } else {
            Layout::Nt
        };
        let product = Product {
            operation: self.backward(),
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
        product.prepare([dy, &self.weight, dx], extras, None)
    }

    /// `dW = x^T dy`, lying in memory as the weight does, and beside it the sum of dy over the rows for the bias; both are
    /// summed in f32.
    fn weight_product(
        &self,
        [x, dy]: [&Buffer; 2],
        weight: &Buffer,
        bias: Option<&Buffer>,
        accumulate: bool,
    ) -> Option<Ready> {
        let (operands, role) = match self.transposed {
            true => ([dy, x], Role::Rows),
            false => ([x, dy], Role::Columns),
        };
        let [rows, columns] = self.shape_in_memory();
        let product = Product {
            operation: self.backward(),
            layout: Layout::Tn,
            size: [rows, columns, self.rows],
            epilogue: Epilogue {
                accumulate,
                ..Epilogue::default()
            },
            sums_of: bias.is_some().then_some(role),
        };
        let [a, b] = operands;
        product.prepare([a, b, weight], Extras::default(), bias)
    }

    /// The operation's way back.
    fn backward(&self) -> &'static str {
        match self.operation {
            "linear" => "linear_backward",
            _ => "feed_forward_backward",
        }
    }

    /// Rows and columns of the weight, as it lies.
    fn shape_in_memory(&self) -> [usize; 2] {
        match self.transposed {
            true => [self.output, self.input],
            false => [self.input, self.output],
        }
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    use burn::tensor::{DType, Device};

    use crate::ops::feed_forward as ops_feed_forward;
    use crate::ops::gradient::seed;
    use crate::ops::gradient_sum::GradientSum;
    use crate::ops::testing::layers::{block, of_block, of_layer, summed};
    use crate::ops::testing::{Place, assert_close, gpu, numbers, types};

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
                    assert!(buffer.is_alone(), "it was copied, not added to");
                    // Closer than the parameters' type could be.
                    let own = numbers(buffer.tensor::<1>());
                    assert_close("a sum", DType::F32, &own, expected);
                    assert!(sum.take().is_none());
                }
            }
        }
    }

    #[test]
    fn a_feed_forward_block_on_a_gpu_is_the_kernels_and_equals_its_layers() {
        use Nonlinearity::{Gelu, Swiglu};
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

    #[test]
    fn what_is_refused_behind_a_layer_is_in_none_of_its_sums() {
        let Some(gpu) = gpu() else { return };
        let place = Place::new(&gpu, DType::F32);
        let (rows, hidden, ffn) = (5, 12, 20);
        let count = hidden * ffn;
        let step = |sums: &[LinearSums; 2], seed_of: u32| {
            let layers = block([rows, hidden, ffn], Nonlinearity::Gelu, false, &place);
            let x = place.constant([2, rows, hidden], seed_of).autodiff();
            let y = ops_feed_forward::feed_forward_with_sums(x, layers.clone(), sums).unwrap();
            let g = place.constant([2, rows, hidden], 100 + seed_of);
            let gradients = seed(y, g).backward();
            [layers.up, layers.down].map(|weight| weight.grad(&gradients).map(numbers))
        };
        let of_weight = || LinearSums {
            weight: Some(GradientSum::default()),
            bias: None,
        };
        let elsewhere = Tensor::zeros([count], (&Device::flex(), DType::F32));
        let short = Tensor::zeros([1], (&gpu, DType::F32));
        for (begun, refused) in [(true, &elsewhere), (true, &short), (false, &short)] {
            let sums = [of_weight(), of_weight()];
            let [up, down] = sums.each_ref().map(|sums| sums.weight.clone().unwrap());
            let mut before = None;
            if begun {
                step(&sums, 1);
                let sum = up.take().expect("a sum");
                before = Some(numbers(sum.clone()));
                up.put(sum);
            }
            down.put(refused.clone());
            let found = step(&sums, 2);
            assert_eq!(up.take().map(numbers), before, "begun {begun}");
            assert_eq!(down.take().map(numbers), Some(numbers(refused.clone())));
            let expected = step(&Default::default(), 2);
            for (found, expected) in found.into_iter().zip(expected) {
                let [found, expected] = [found, expected].map(|x| x.expect("in the graph"));
                assert_close("in the graph", DType::F32, &found, &expected);
            }
        }
    }
}
