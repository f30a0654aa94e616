//! Matrix product with bias over the last dimension.

use burn::tensor::{DType, Tensor};

use super::backends::{self, ParameterGradients};
use super::gradient::with_gradient;
use super::gradient_sum::{GradientSum, LinearSums};
use super::shape::{expect, expect_type};
use crate::error::Result;

/// `x W + b`.
///
/// On a GPU one kernel for the value, and one each for the gradients of x and of W with b, all summed in f32.
///
/// # Shapes
/// x `[batch, seq, in]`, weight `[in, out]`, bias `[out]`; gives `[batch, seq, out]`.
///
/// # Errors
/// Others, or parameters of another type than x.
pub fn linear(x: Tensor<3>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Result<Tensor<3>> {
    layer(x, (weight, false), bias, &LinearSums::default())
}

/// [`linear`], whose backward pass may add the gradients of weight and bias to `sums` rather than to the graph's.
///
/// # Errors
/// Those of [`linear`].
pub fn linear_with_sums(
    x: Tensor<3>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    sums: &LinearSums,
) -> Result<Tensor<3>> {
    layer(x, (weight, false), bias, sums)
}

/// `x T^T` of a table T `[out, in]`, an embedding's for instance, whose backward pass may add the table's gradient to `sum`.
///
/// # Shapes
/// x `[batch, seq, in]`; gives `[batch, seq, out]`.
///
/// # Errors
/// Others, or a table of another type than x.
pub fn projection(x: Tensor<3>, table: Tensor<2>, sum: Option<&GradientSum>) -> Result<Tensor<3>> {
    let sums = LinearSums {
        weight: sum.cloned(),
        bias: None,
    };
    layer(x, (table, true), None, &sums)
}

/// A linear layer whose weight is given as `[out, in]` if it is `transposed`.
fn layer(
    x: Tensor<3>,
    (weight, transposed): (Tensor<2>, bool),
    bias: Option<Tensor<1>>,
    sums: &LinearSums,
) -> Result<Tensor<3>> {
    let oriented = move |weight: Tensor<2>| match transposed {
        true => weight.transpose(),
        false => weight,
    };
    let x0 = x.clone().without_autodiff();
    let w0 = oriented(weight.clone().without_autodiff());
    let b0 = bias.as_ref().map(|bias| bias.clone().without_autodiff());
    let (operation, what) = match transposed {
        true => ("projection", "the table, transposed,"),
        false => ("linear", "the weight"),
    };
    check(
        operation,
        what,
        (x.dims()[2], x.dtype()),
        &w0,
        bias.as_ref(),
    )?;
    let backend = backends::of(&x0.device());
    let Some((y, fused)) = backend.linear(&x0, &w0, b0.as_ref(), (sums, transposed)) else {
        backend.refusal()?;
        return Ok(composition(x, oriented(weight), bias));
    };
    let has_bias = bias.is_some();
    let inputs = [
        x.into_dispatch(),
        weight.into_dispatch(),
        bias.map_or_else(|| x0.clone().into_dispatch(), Tensor::into_dispatch),
    ];
    Ok(with_gradient(inputs, y, move |g| {
        let (x, (weight, bias)) = match fused(g.clone()) {
            Some(fused) => (fused.x, fused.parameters),
            None => gradients(x0, w0, has_bias, g),
        };
        [
            Some(x.into_dispatch()),
            weight.map(|weight| oriented(weight).into_dispatch()),
            bias.map(Tensor::into_dispatch),
        ]
    }))
}

/// Fails unless rows of so many numbers, of that type, can be multiplied by the weight `[in, out]` and have the bias added.
pub(super) fn check(
    operation: &str,
    what: &str,
    (width, dtype): (usize, DType),
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
) -> Result<()> {
    let [_, output] = weight.dims();
    let axes = "[in, out], in being the last axis of what it multiplies";
    expect(operation, what, weight.dims(), [width, output], axes)?;
    expect_type(operation, what, weight, dtype)?;
    let Some(bias) = bias else { return Ok(()) };
    let what = format!("the bias behind {what}");
    expect(operation, &what, bias.dims(), [output], "[out]")?;
    expect_type(operation, &what, bias, dtype)
}

/// The same by Burn's own operations, which differentiates them.
pub(super) fn composition(x: Tensor<3>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<3> {
    let [batch, seq, input] = x.dims();
    let [_, output] = weight.dims();
    // One matrix product over all tokens, so that the weight's gradient is one as well.
    let y = x.reshape([batch * seq, input]).matmul(weight);
    let y = match bias {
        Some(bias) => y + bias.unsqueeze(),
        None => y,
    };
    y.reshape([batch, seq, output])
}

/// The gradients by Burn's own operations.
pub(super) fn gradients(
    x: Tensor<3>,
    weight: Tensor<2>,
    has_bias: bool,
    g: Tensor<3>,
) -> (Tensor<3>, ParameterGradients) {
    let [batch, seq, input] = x.dims();
    let [_, output] = weight.dims();
    let (x, g) = (
        x.reshape([batch * seq, input]),
        g.reshape([batch * seq, output]),
    );
    let bias = has_bias.then(|| g.clone().sum_dim(0).reshape([output]));
    let d_x = g.clone().matmul(weight.transpose());
    (
        d_x.reshape([batch, seq, input]),
        (Some(x.transpose().matmul(g)), bias),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::Place;
    use burn::tensor::TensorData;

    #[test]
    fn the_gradients_by_hand_are_those_of_the_composition() {
        let place = Place::exact();
        let x = place.constant([2, 3, 5], 1);
        let (w, b) = (place.constant([5, 4], 2), place.constant([4], 3));
        let g = place.constant([2, 3, 4], 4);
        let (dx, (dw, db)) = gradients(x.clone(), w.clone(), true, g.clone());
        let (x, w, b) = (
            x.autodiff().require_grad(),
            w.autodiff().require_grad(),
            b.autodiff().require_grad(),
        );
        let y = linear(x.clone(), w.clone(), Some(b.clone())).unwrap();
        let all = (y * g).sum().backward();
        let close = |own: TensorData, expected: TensorData| {
            for (own, expected) in own.iter::<f64>().zip(expected.iter::<f64>()) {
                assert!((own - expected).abs() < 1e-12, "{own} {expected}");
            }
        };
        close(dx.into_data(), x.grad(&all).unwrap().into_data());
        close(dw.unwrap().into_data(), w.grad(&all).unwrap().into_data());
        close(db.unwrap().into_data(), b.grad(&all).unwrap().into_data());
    }
}
