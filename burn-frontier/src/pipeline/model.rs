//! Any Burn module as a stage.

use burn::tensor::Tensor;

use super::activation::Activation;
use super::segment::{BackwardFn, SegmentGradients, segment};
use super::stage::{Batch, Forward, Output, Stage, StepContext, Tape};
use crate::comm::groups::Groups;
use crate::error::{Error, Result};
use crate::layers;
use crate::parameter::{BurnModule, Module, State};
use crate::random::{Draws, check_replicas};
use crate::recompute::Recompute;

/// What a forward pass over one micro-batch is done for.
#[derive(Debug, Clone)]
pub struct Pass {
    /// What dropout and noise draw from; its step is `None` outside training.
    pub draws: Draws,
}

/// A user's network, or one pipeline stage of it: a Burn module, and how it goes forward.
///
/// A model that is not split says what its losses are:
///
/// ```
/// use burn::nn::{Linear, LinearConfig};
/// use burn::module::Module;
/// use burn::tensor::{Device, Tensor};
/// use burn_frontier::pipeline::activation::Activation;
/// use burn_frontier::pipeline::model::{Model, Pass};
/// use burn_frontier::pipeline::stage::{Batch, Output};
///
/// #[derive(Clone)]
/// struct Samples { x: Tensor<2>, y: Tensor<2>, at: Vec<u64> }
///
/// impl Batch for Samples {
///     fn count(&self) -> u64 { self.at.len() as u64 }
///     fn samples(&self) -> &[u64] { &self.at }
/// }
///
/// #[derive(Module, Debug)]
/// struct Line { linear: Linear }
///
/// impl Model for Line {
///     type Batch = Samples;
///     fn forward(&self, _: Vec<Activation>, batch: &Samples, _: &Pass) -> burn_frontier::Result<Output> {
///         let error = self.linear.forward(batch.x.clone()) - batch.y.clone();
///         Ok(Output::Losses((error.clone() * error).reshape([-1])))
///     }
/// }
/// # let _ = Line { linear: LinearConfig::new(1, 1).init(&Device::flex()) };
/// ```
pub trait Model: burn::module::Module + 'static {
    /// A micro-batch. Every stage is given it.
    type Batch: Batch + Clone + 'static;

    /// Goes forward. `input` is what the stage before gave, nothing for the first; the last stage gives losses, whose sum over
    /// the global batch is divided by the batches' [`count`](Batch::count). In training, parameters and input are on an autodiff
    /// device; a tensor of the batch joins them by itself, or by [`Pass::input`].
    ///
    /// # Errors
    /// A micro-batch that the model cannot take.
    fn forward(&self, input: Vec<Activation>, batch: &Self::Batch, pass: &Pass) -> Result<Output>;

    /// Fails unless the model can take a micro-batch. Every stage is asked before anything is computed.
    ///
    /// # Errors
    /// What the model cannot take.
    fn check(&self, _batch: &Self::Batch) -> Result<()> {
        Ok(())
    }
}

impl Pass {
    /// A tensor of the batch as layers need it that look at their input's device to know whether they train, as
    /// `burn::nn::BatchNorm` does: on an autodiff device in training.
    pub fn input<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match self.draws.step {
            Some(_) if x.is_autodiff() => x,
            Some(_) => x.autodiff(),
            None => x.without_autodiff(),
        }
    }
}

impl<M: Model> Stage for BurnModule<M> {
    type Batch = M::Batch;

    fn check(&self, batch: &M::Batch, context: &StepContext) -> Result<()> {
        if context.recompute == Recompute::Selective {
            return Err(Error::config(
                "selective recompute of a Burn module, which does not say what its attention is",
                "recompute all of it, or nothing",
            ));
        }
        self.module().check(batch)
    }

    fn check_training(&self, groups: &Groups) -> Result<()> {
        // All replicas find the same, so that none waits for another.
        layers::check(self.module(), groups)?;
        check_replicas(self.module(), &groups.dp)
    }

    fn may_draw(&self) -> bool {
        true
    }

    fn asleep(&self, before: &[State]) -> Result<Vec<String>> {
        let after = self.state()?;
        let mut norms = layers::batch_norms(self.module());
        norms.retain(|path| {
            let name = self.name_of(&format!("{path}.running_mean"));
            let mean = |states: &[State]| states.iter().find(|s| Some(&s.name) == name).cloned();
            mean(before).is_some() && mean(before) == mean(&after)
        });
        Ok(norms)
    }

    fn synchronises(&self) -> bool {
        layers::synchronises(self.module())
    }

    fn forward(
        &self,
        input: Vec<Activation>,
        batch: &M::Batch,
        context: &StepContext,
    ) -> Result<Forward> {
        let pass = Pass {
            draws: Draws::new(context.seed, context.step, batch.samples().to_vec()),
        };
        if context.step.is_none() {
            let output = self.evaluation().forward(input, batch, &pass)?;
            let output = match output {
                Output::Losses(losses) => Output::Losses(losses.without_autodiff()),
                Output::Activations(x) => {
                    Output::Activations(x.into_iter().map(Activation::plain).collect())
                }
            };
            let tape = Tape::default();
            return Ok(Forward { output, tape });
        }
        let losses = LossFlag::default();
        let (values, back) = self.training(input, batch, &pass, context, &losses)?;
        let tape = Tape(vec![back]);
        let output = match (losses.get(), values) {
            (false, values) => Output::Activations(values),
            (true, values) => {
                let losses = values.into_iter().next();
                let losses = losses.ok_or_else(|| Error::Internal("losses are missing".into()))?;
                Output::Losses(losses.tensor()?)
            }
        };
        Ok(Forward { output, tape })
    }
}

/// Whether a forward pass ended in losses.
type LossFlag = std::rc::Rc<std::cell::Cell<bool>>;

impl<M: Model> BurnModule<M> {
    /// Goes forward in training.
    fn training(
        &self,
        input: Vec<Activation>,
        batch: &M::Batch,
        pass: &Pass,
        context: &StepContext,
        ends_in_losses: &LossFlag,
    ) -> Result<(Vec<Activation>, BackwardFn)> {
        let (batch, pass, flag) = (batch.clone(), pass.clone(), ends_in_losses.clone());
        let run = move |module: &Self, input| {
            // A clone draws the same numbers each time.
            let output = module.module().forward(input, &batch, &pass.clone())?;
            flag.set(matches!(output, Output::Losses(_)));
            Ok(match output {
                Output::Losses(losses) => vec![losses.into()],
                Output::Activations(x) => x,
            })
        };
        if context.recompute != Recompute::Full {
            return segment(self, input, false, &context.trained, run);
        }
        // Without a graph a Burn module would not train: the pass is made with one, which is dropped. Its second time must leave
        // running statistics as the first one did.
        let (values, _) = segment(self, input.clone(), false, &context.trained, run.clone())?;
        let (module, trained) = (self.clone(), context.trained.clone());
        let back = move |gradients| -> Result<SegmentGradients> {
            let mut module = module;
            let states = module.state()?;
            let (_, back) = segment(&module, input, false, &trained, run)?;
            let gradients = back(gradients)?;
            restore(&mut module, states)?;
            Ok(gradients)
        };
        Ok((values, Box::new(back)))
    }
}

/// Puts back what [`Module::state`] gave.
fn restore(module: &mut impl Module, states: Vec<State>) -> Result<()> {
    let mut states = states;
    module.set_state(&mut |name, _| {
        let found = states.iter().position(|state| state.name == name);
        let state = found.map(|i| states.swap_remove(i));
        state
            .map(|state| state.data)
            .ok_or_else(|| Error::Internal(format!("the state {name} was not kept")))
    })
}
