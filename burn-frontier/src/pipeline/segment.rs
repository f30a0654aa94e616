//! A differentiable piece of a model with a graph of its own, so that a stage can go back through it layer by layer:
//! gradients are ready early, and a piece can be computed again instead of kept.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::Gradients;

use super::activation::Activation;
use crate::error::{Error, Result, panic_message};
use crate::parameter::{Module, ParameterGradient, Selection};

/// What comes out of one piece's backward pass.
pub struct SegmentGradients {
    /// Gradients of the inputs.
    pub inputs: Vec<Activation>,
    /// Gradients of the parameters.
    pub parameters: Vec<ParameterGradient>,
}

/// The way back through a piece, from the gradients of its outputs.
pub type BackwardFn = Box<dyn FnOnce(Vec<Activation>) -> Result<SegmentGradients>>;

/// Runs `f(module, inputs)` and gives its values, without autodiff, with the way back to the inputs and the parameters `trained`.
///
/// `recompute` keeps the inputs only and runs `f` again in the backward pass (arXiv 1604.06174). Both ways run the same
/// operations on the same numbers, so their results agree bit for bit.
///
/// # Errors
/// Those of `f`. The way back gives what fails in it, by Burn or by an operation, as an error too.
pub fn segment<M>(
    module: &M,
    inputs: Vec<Activation>,
    recompute: bool,
    trained: &Selection,
    f: impl Fn(&M, Vec<Activation>) -> Result<Vec<Activation>> + 'static,
) -> Result<(Vec<Activation>, BackwardFn)>
where
    M: Module + 'static,
{
    if !recompute {
        return tracked(module, inputs, trained, &f);
    }
    let values = f(module, inputs.clone())?;
    let (module, trained) = (module.clone(), trained.clone());
    let backward = move |gradients| {
        let (_, backward) = tracked(&module, inputs, &trained, &f)?;
        backward(gradients)
    };
    Ok((values, Box::new(backward)))
}

fn tracked<M>(
    module: &M,
    inputs: Vec<Activation>,
    trained: &Selection,
    f: &impl Fn(&M, Vec<Activation>) -> Result<Vec<Activation>>,
) -> Result<(Vec<Activation>, BackwardFn)>
where
    M: Module + 'static,
{
    let leaves = module.leaves(trained);
    let inputs: Vec<Activation> = inputs.into_iter().map(Activation::leaf).collect();
    let outputs = f(&leaves, inputs.clone())?;
    let values = outputs.iter().cloned().map(Activation::plain).collect();
    let trained = trained.clone();
    let backward = move |gradients| {
        let Some(mut gradients) = go_back(outputs, gradients)? else {
            return nothing_to_train(leaves, inputs, &trained);
        };
        let inputs = inputs.into_iter();
        Ok(SegmentGradients {
            inputs: inputs.map(|x| x.take_gradient(&mut gradients)).collect(),
            parameters: leaves.take_gradients(&mut gradients, &trained),
        })
    };
    Ok((values, Box::new(backward)))
}

/// What a piece gives whose outputs depend on nothing that wants a gradient.
fn nothing_to_train(
    mut module: impl Module,
    inputs: Vec<Activation>,
    trained: &Selection,
) -> Result<SegmentGradients> {
    if inputs.is_empty() && module.names().iter().all(|name| !trained.contains(name)) {
        return Ok(SegmentGradients {
            inputs: Vec::new(),
            parameters: Vec::new(),
        });
    }
    Err(Error::Internal(
        "the outputs of a piece depend neither on its inputs nor on its parameters".into(),
    ))
}

/// Burn's backward pass, which panics where something does not fit. None if no output depends on anything.
fn go_back(outputs: Vec<Activation>, gradients: Vec<Activation>) -> Result<Option<Gradients>> {
    if outputs.len() != gradients.len() {
        return Err(Error::Internal(format!(
            "{} gradients for {} outputs",
            gradients.len(),
            outputs.len()
        )));
    }
    let seeds = outputs.into_iter().zip(gradients);
    let seeds: Vec<_> = seeds.map(|(x, g)| x.seed(g)).collect::<Result<_>>()?;
    let tracked = seeds.into_iter().filter(|seed| seed.is_tracked());
    let Some(start) = tracked.reduce(|a, b| a + b) else {
        return Ok(None);
    };
    // Nothing that a panic may leave half done is looked at again.
    let gradients = catch_unwind(AssertUnwindSafe(|| start.backward())).map_err(|panic| {
        let reason = panic_message(panic.as_ref());
        Error::Internal(format!("a backward pass failed: {reason}"))
    })?;
    Ok(Some(gradients))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::{groups::Groups, local};
    use crate::mesh::Layout;
    use crate::ops::gradient::with_gradient;
    use crate::parameter::{Init, Parameter, ParameterContext, ParameterSpec};
    use crate::placement::Placement;
    use burn::tensor::{Device, Tensor};

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

    /// The input, or ones.
    fn input(mut x: Vec<Activation>) -> Tensor<3> {
        x.pop().map_or_else(ones, |x| x.tensor().unwrap())
    }

    fn values(x: Activation) -> Vec<f32> {
        x.tensor::<3>().unwrap().into_data().try_to_vec().unwrap()
    }

    #[test]
    fn an_input_that_takes_no_part_has_a_gradient_of_zeros() {
        let ignores = |weight: &Parameter<1>, x: Vec<Activation>| {
            let zeros = input(x).without_autodiff().zeros_like();
            Ok(vec![(zeros + weight.value.clone().unsqueeze()).into()])
        };
        for recompute in [false, true] {
            let all = Selection::all();
            let (_, back) =
                segment(&weight(), vec![ones().into()], recompute, &all, ignores).unwrap();
            let mut gradients = back(vec![ones().into()]).unwrap();
            assert_eq!(values(gradients.inputs.remove(0)), [0.0; 2]);
            let weight = gradients.parameters[0].1.clone().unwrap().into_data();
            assert_eq!(weight.try_to_vec::<f32>().unwrap(), [2.0]);
        }
    }

    #[test]
    fn several_tensors_of_several_ranks_go_forward_and_back() {
        let (two, all) = (Tensor::<2>::ones([1, 2], &Device::flex()), Selection::all());
        for recompute in [false, true] {
            let inputs = vec![ones().into(), two.clone().into()];
            let (outputs, back) = segment(&weight(), inputs, recompute, &all, |weight, mut x| {
                let b: Tensor<2> = x.pop().unwrap().tensor()?;
                let a = input(x);
                let w = weight.value.clone();
                let scaled = a.clone() * w.clone().unsqueeze();
                Ok(vec![scaled.into(), (b * w.unsqueeze()).sum().into()])
            })
            .unwrap();
            let [a, b] = <[Activation; 2]>::try_from(outputs).unwrap();
            assert_eq!(values(a), [2.0; 2]);
            let b: Tensor<1> = b.tensor().unwrap();
            assert_eq!(b.clone().into_scalar::<f32>(), 4.0);
            let gradients = back(vec![ones().into(), b.into()]).unwrap();
            let weight = gradients.parameters[0].1.clone().unwrap();
            // One of each element of the first, and four times those of the second.
            assert_eq!(weight.into_scalar::<f32>(), 10.0);
            let [a, b] = <[Activation; 2]>::try_from(gradients.inputs).unwrap();
            assert_eq!(values(a), [2.0; 2]);
            let b: Tensor<2> = b.tensor().unwrap();
            assert_eq!(b.into_data().try_to_vec::<f32>().unwrap(), [8.0; 2]);
        }
    }

    #[test]
    fn parameters_that_are_not_trained_get_nothing() {
        let none = Selection::within("another");
        let scaled = |weight: &Parameter<1>, x: Vec<Activation>| {
            Ok(vec![(input(x) * weight.value.clone().unsqueeze()).into()])
        };
        let (_, back) = segment(&weight(), vec![ones().into()], false, &none, scaled).unwrap();
        let mut gradients = back(vec![ones().into()]).unwrap();
        assert_eq!(values(gradients.inputs.remove(0)), [2.0; 2]);
        assert!(gradients.parameters.is_empty());
        // Neither inputs nor parameters want a gradient: there is nothing to go back to.
        let (_, back) = segment(&weight(), vec![], false, &none, scaled).unwrap();
        assert!(back(vec![ones().into()]).unwrap().parameters.is_empty());
    }

    #[test]
    fn what_does_not_fit_on_the_way_back_is_an_error() {
        let all = Selection::all();
        let scaled = |weight: &Parameter<1>, x: Vec<Activation>| {
            Ok(vec![(input(x) * weight.value.clone().unsqueeze()).into()])
        };
        let (_, back) = segment(&weight(), vec![ones().into()], false, &all, scaled).unwrap();
        let longer = Tensor::<3>::ones([1, 5, 1], &Device::flex());
        let error = back(vec![longer.into()]).err().unwrap().to_string();
        assert!(
            error.contains("[1, 5, 1]") && error.contains("[1, 2, 1]"),
            "{error}"
        );

        let narrowed = |weight: &Parameter<1>, x: Vec<Activation>| {
            let x = input(x) * weight.value.clone().unsqueeze();
            let y = x.clone().without_autodiff();
            let y = with_gradient([x.into_dispatch()], y, |g| {
                [Some(g.narrow(1, 0, 1).into_dispatch())]
            });
            Ok(vec![y.into()])
        };
        let (_, back) = segment(&weight(), vec![ones().into()], false, &all, narrowed).unwrap();
        let error = back(vec![ones().into()]).err().unwrap().to_string();
        assert!(error.contains("the shape of a gradient"), "{error}");

        let constant = |_: &Parameter<1>, _| Ok(vec![ones().into()]);
        let (_, back) = segment(&weight(), vec![], false, &all, constant).unwrap();
        let error = back(vec![ones().into()]);
        assert!(error.is_err(), "an output that depends on nothing");
    }
}
