//! A differentiable piece of a model with a graph of its own, so that a stage can go back through it layer by layer:
//! gradients are ready early, and a piece can be computed again instead of kept.

use burn::tensor::Tensor;

use crate::error::Result;
use crate::ops::gradient::seed;
use crate::parameter::{Module, ParameterGradient};

/// What comes out of one piece's backward pass.
pub struct SegmentGradients {
    /// Gradient of the input; none if the piece had none.
    pub input: Option<Tensor<3>>,
    /// Gradients of the parameters.
    pub parameters: Vec<ParameterGradient>,
}

/// The way back through a piece, from the gradient of its output of rank `O`.
pub type BackwardFn<const O: usize> = Box<dyn FnOnce(Tensor<O>) -> Result<SegmentGradients>>;

/// Runs `f(module, input)` and gives its value, without autodiff, with the way back.
///
/// `recompute` keeps the input only and runs `f` again in the backward pass (arXiv 1604.06174). Both ways run the same
/// operations on the same numbers, so their results agree bit for bit.
///
/// # Errors
/// Those of `f`.
pub fn segment<M, const O: usize>(
    module: &M,
    input: Option<Tensor<3>>,
    recompute: bool,
    f: impl Fn(&M, Option<Tensor<3>>) -> Result<Tensor<O>> + 'static,
) -> Result<(Tensor<O>, BackwardFn<O>)>
where
    M: Module + 'static,
{
    if !recompute {
        return tracked(module, input, &f);
    }
    let value = f(module, input.clone())?;
    let module = module.clone();
    let backward = move |gradient| {
        let (_, backward) = tracked(&module, input, &f)?;
        backward(gradient)
    };
    Ok((value, Box::new(backward)))
}

fn tracked<M, const O: usize>(
    module: &M,
    input: Option<Tensor<3>>,
    f: &impl Fn(&M, Option<Tensor<3>>) -> Result<Tensor<O>>,
) -> Result<(Tensor<O>, BackwardFn<O>)>
where
    M: Module + 'static,
{
    let leaves = module.leaves();
    let input = input.map(|x| x.autodiff().require_grad());
    let output = f(&leaves, input.clone())?;
    let value = output.clone().without_autodiff();
    let backward = move |gradient| {
        let mut gradients = seed(output, gradient).backward();
        Ok(SegmentGradients {
            input: input.and_then(|x| x.grad_remove(&mut gradients)),
            parameters: leaves.take_gradients(&mut gradients),
        })
    };
    Ok((value, Box::new(backward)))
}
