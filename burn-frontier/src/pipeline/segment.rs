//! A differentiable piece of a model with a graph of its own, so that a stage can go back through it layer by layer:
//! gradients are ready early, and a piece can be computed again instead of kept.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::{Gradients, Tensor};

use crate::error::{Error, Result, panic_message};
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
/// Those of `f`. The way back gives what fails in it, by Burn or by an operation, as an error too.
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
        let mut gradients = go_back(output, gradient)?;
        // An input that took no part has a gradient of zeros: what lies before it waits for one.
        let of_input = |x: Tensor<3>| {
            let gradient = x.grad_remove(&mut gradients);
            gradient.unwrap_or_else(|| x.without_autodiff().zeros_like())
        };
        Ok(SegmentGradients {
            input: input.map(of_input),
            parameters: leaves.take_gradients(&mut gradients),
        })
    };
    Ok((value, Box::new(backward)))
}

/// Burn's backward pass, which panics where something does not fit.
fn go_back<const O: usize>(output: Tensor<O>, gradient: Tensor<O>) -> Result<Gradients> {
    // Nothing that a panic may leave half done is looked at again.
    catch_unwind(AssertUnwindSafe(|| seed(output, gradient).backward())).map_err(|panic| {
        let reason = panic_message(panic.as_ref());
        Error::Internal(format!("a backward pass failed: {reason}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::{groups::Groups, local};
    use crate::mesh::Layout;
    use crate::ops::gradient::with_gradient;
    use crate::parameter::{Init, Parameter, ParameterContext, ParameterSpec};
    use crate::placement::Placement;
    use burn::tensor::Device;

    fn weight() -> Parameter<1> {
        let groups = Groups::new(Layout::single(), local::single()).unwrap();
        let spec = ParameterSpec {
            name: "weight".into(),
            shape: vec![1],
            placement: Placement::Replicated,
            gradient: Placement::Replicated,
            init: Init::Constant(2.0),
            decay: false,
        };
        Parameter::init(spec, &ParameterContext::new(1, &groups, Device::flex()))
    }

    fn ones() -> Tensor<3> {
        Tensor::ones([1, 2, 1], &Device::flex())
    }

    #[test]
    fn an_input_that_takes_no_part_has_a_gradient_of_zeros() {
        let ignores = |weight: &Parameter<1>, x: Option<Tensor<3>>| {
            let zeros = x.unwrap_or_else(ones).without_autodiff().zeros_like();
            Ok(zeros + weight.value.clone().unsqueeze())
        };
        for recompute in [false, true] {
            let (_, back) = segment(&weight(), Some(ones()), recompute, ignores).unwrap();
            let gradients = back(ones()).unwrap();
            let input = gradients.input.unwrap().into_data();
            assert_eq!(input.try_to_vec::<f32>().unwrap(), [0.0; 2]);
            let weight = gradients.parameters[0].1.clone().unwrap().into_data();
            assert_eq!(weight.try_to_vec::<f32>().unwrap(), [2.0]);
        }
    }

    #[test]
    fn what_does_not_fit_on_the_way_back_is_an_error() {
        let scaled = |weight: &Parameter<1>, x: Option<Tensor<3>>| {
            Ok(x.unwrap_or_else(ones) * weight.value.clone().unsqueeze())
        };
        let (_, back) = segment(&weight(), Some(ones()), false, scaled).unwrap();
        let longer = Tensor::<3>::ones([1, 5, 1], &Device::flex());
        let error = back(longer).err().unwrap().to_string();
        assert!(
            error.contains("[1, 5, 1]") && error.contains("[1, 2, 1]"),
            "{error}"
        );

        let narrowed = |weight: &Parameter<1>, x: Option<Tensor<3>>| {
            let x = x.unwrap_or_else(ones) * weight.value.clone().unsqueeze();
            let y = x.clone().without_autodiff();
            Ok(with_gradient([x.into_dispatch()], y, |g| {
                [Some(g.narrow(1, 0, 1).into_dispatch())]
            }))
        };
        let (_, back) = segment(&weight(), Some(ones()), false, narrowed).unwrap();
        let error = back(ones()).err().unwrap().to_string();
        assert!(error.contains("the shape of a gradient"), "{error}");

        let (_, back) = segment(&weight(), None, false, |_: &Parameter<1>, _| Ok(ones())).unwrap();
        assert!(back(ones()).is_err(), "an output that depends on nothing");
    }
}
