//! Parameters that know their name, their place on the ranks and how they begin.

pub mod burn_module;
mod load;
pub mod selection;

use std::sync::Arc;

use burn::tensor::{DType, Device, Gradients, Tensor, TensorData};

use crate::comm::groups::Groups;
use crate::comm::tensor::from_buffer;
use crate::comm::{Buffer, Group};
use crate::error::Result;
use crate::ops::gradient_sum::GradientSum;
use crate::placement::{Block, Placement};
use crate::random::Stream;

pub use burn_module::BurnModule;
pub use load::load_parameters;
pub(crate) use load::load_selected;
pub use selection::Selection;

/// A parameter's first value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// Normal with mean zero and this standard deviation.
    Normal(f64),
    /// One value everywhere.
    Constant(f64),
    /// What the module that has it says: a Burn module makes its own values.
    Given,
}

/// What is true of a parameter on every rank.
#[derive(Debug, Clone, PartialEq)]
pub struct ParameterSpec {
    /// Global name, for instance `layers.3.mlp.up.weight`: the same in every layout.
    pub name: String,
    /// Logical shape: the same in every layout, without padding.
    pub shape: Vec<usize>,
    /// How the value lies on the tensor-parallel ranks.
    pub placement: Placement,
    /// How the gradient comes out of the backward pass: as the value, or `Partial` where each tensor-parallel rank sees
    /// other tokens (sequence parallelism).
    pub gradient: Placement,
    /// First value.
    pub init: Init,
    /// Whether weight decay applies (matrices and embeddings).
    pub decay: bool,
}

/// Where and how parameters are made.
#[derive(Debug, Clone)]
pub struct ParameterContext {
    /// Seed of the run.
    pub seed: u64,
    /// The tensor-parallel group.
    pub tp: Group,
    /// Device, without autodiff.
    pub device: Device,
    /// Element type of parameters and activations.
    pub dtype: DType,
    /// Whether activations between blocks are split along the sequence.
    pub sequence_parallel: bool,
}

impl ParameterContext {
    /// In fp32, without sequence parallelism. `device` is without autodiff.
    pub fn new(seed: u64, groups: &Groups, device: Device) -> Self {
        Self {
            seed,
            tp: groups.tp.clone(),
            device,
            dtype: DType::F32,
            sequence_parallel: false,
        }
    }

    /// The gradient's placement of a parameter that is replicated and used between tensor-parallel regions.
    pub fn replicated_gradient(&self) -> Placement {
        if self.sequence_parallel && self.tp.size() > 1 {
            Placement::Partial
        } else {
            Placement::Replicated
        }
    }
}

/// One rank's part of a parameter.
#[derive(Debug, Clone)]
pub struct Parameter<const D: usize> {
    /// What is true of it everywhere.
    pub spec: Arc<ParameterSpec>,
    /// The local tensor, padding included. Carries autodiff only inside a forward pass.
    pub value: Tensor<D>,
    /// Where its gradients are added up, from [`OptimizerConfig::init`](crate::optim::OptimizerConfig::init) on.
    pub sum: Option<GradientSum>,
}

impl<const D: usize> Parameter<D> {
    /// The parameter's first value: a function of (seed, name, global index) in any layout; padding, and what is
    /// [`Init::Given`], is zero.
    pub fn init(spec: ParameterSpec, context: &ParameterContext) -> Self {
        let (rank, ranks) = (context.tp.rank(), context.tp.size());
        let local = spec.placement.local_shape(&spec.shape, ranks);
        let mut values = vec![0.0f64; local.iter().product()];
        let mut stream = Stream::new(context.seed, 0, &spec.name);
        let place = |global: usize, local: usize, len: usize| {
            let run = &mut values[local..local + len];
            match spec.init {
                Init::Constant(value) => run.fill(value),
                Init::Given => {}
                Init::Normal(deviation) => {
                    stream.normal(global as u64, run);
                    run.iter_mut().for_each(|x| *x *= deviation);
                }
            }
        };
        spec.placement.for_each_run(&spec.shape, rank, ranks, place);
        let data = TensorData::new(values, local);
        Self {
            value: Tensor::from_data(data, (&context.device, context.dtype)),
            spec: Arc::new(spec),
            sum: None,
        }
    }

    /// Number of local elements, padding included.
    pub fn count(&self) -> usize {
        self.value.shape().num_elements()
    }

    /// The boxes of the logical tensor that this rank holds.
    pub fn blocks(&self, tp: &Group) -> Vec<Block> {
        self.spec
            .placement
            .blocks(&self.spec.shape, tp.rank(), tp.size())
    }

    /// Replaces the value; the buffer has the local count and is converted to the parameter's type.
    ///
    /// # Errors
    /// Another count.
    pub fn load(&mut self, data: Buffer) -> Result<()> {
        let dtype = self.value.dtype();
        let value: Tensor<D> = from_buffer(data, self.value.shape(), &self.value.device())?;
        self.value = value.cast(dtype);
        Ok(())
    }
}

/// A parameter's gradient `[local count]`; none if it took no part, or was added to [`Parameter::sum`].
pub type ParameterGradient = (Arc<ParameterSpec>, Option<Tensor<1>>);

/// Sees every parameter of a module, in an order that is the same on every call.
pub trait Visitor {
    /// Sees one.
    fn visit<const D: usize>(&mut self, parameter: &mut Parameter<D>);
}

/// A part of a model with parameters. Cloning shares the tensors.
pub trait Module: Clone {
    /// Shows every parameter to the visitor.
    fn visit<V: Visitor>(&mut self, visitor: &mut V);

    /// A copy whose parameters are leaves of a new autodiff graph. Those that are not `trained` get no gradients, nor does
    /// anything add to their sums.
    fn leaves(&self, trained: &Selection) -> Self {
        let mut copy = self.clone();
        make_leaves(&mut copy, trained);
        copy
    }

    /// The parameters' names, in visiting order.
    fn names(&mut self) -> Vec<String> {
        struct Names(Vec<String>);
        impl Visitor for Names {
            fn visit<const D: usize>(&mut self, p: &mut Parameter<D>) {
                self.0.push(p.spec.name.clone());
            }
        }
        let mut names = Names(Vec::new());
        self.visit(&mut names);
        names.0
    }

    /// What belongs to the module beside its parameters, such as running statistics, up to date. It is the same on all ranks
    /// that hold the same parameters.
    ///
    /// # Errors
    /// A device that cannot be read.
    fn state(&self) -> Result<Vec<State>> {
        Ok(Vec::new())
    }

    /// Replaces the module's state by what `read(name, shape)` gives.
    ///
    /// # Errors
    /// Those of `read`, or elements of another type or number.
    fn set_state(&mut self, _read: &mut dyn FnMut(&str, &[usize]) -> Result<Buffer>) -> Result<()> {
        Ok(())
    }

    /// Takes the gradients of the `trained` leaves out of `gradients`, flattened, in visiting order. A parameter that took no
    /// part, or whose gradient was added to its sum, has none.
    fn take_gradients(
        mut self,
        gradients: &mut Gradients,
        trained: &Selection,
    ) -> Vec<ParameterGradient> {
        struct Take<'a> {
            gradients: &'a mut Gradients,
            trained: &'a Selection,
            taken: Vec<ParameterGradient>,
        }
        impl Visitor for Take<'_> {
            fn visit<const D: usize>(&mut self, p: &mut Parameter<D>) {
                if !self.trained.contains(&p.spec.name) {
                    return;
                }
                let gradient = p.value.grad_remove(self.gradients);
                let gradient = gradient.map(|g| g.reshape([p.count()]));
                self.taken.push((p.spec.clone(), gradient));
            }
        }
        let mut take = Take {
            gradients,
            trained,
            taken: Vec::new(),
        };
        self.visit(&mut take);
        take.taken
    }
}

/// A value that belongs to a module and is not trained.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// Global name.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Elements, row-major.
    pub data: Buffer,
}

/// Makes a module's parameters leaves of a new autodiff graph, as [`Module::leaves`] says.
fn make_leaves<M: Module>(module: &mut M, trained: &Selection) {
    struct Leaf<'a>(&'a Selection);
    impl Visitor for Leaf<'_> {
        fn visit<const D: usize>(&mut self, p: &mut Parameter<D>) {
            p.value = p.value.clone().without_autodiff().autodiff();
            if self.0.contains(&p.spec.name) {
                p.value = p.value.clone().require_grad();
            } else {
                p.sum = None;
            }
        }
    }
    module.visit(&mut Leaf(trained));
}

impl<const D: usize> Module for Parameter<D> {
    fn visit<V: Visitor>(&mut self, visitor: &mut V) {
        visitor.visit(self);
    }
}

impl<M: Module> Module for Option<M> {
    fn visit<V: Visitor>(&mut self, visitor: &mut V) {
        self.iter_mut().for_each(|inner| inner.visit(visitor));
    }
}

impl<M: Module> Module for Vec<M> {
    fn visit<V: Visitor>(&mut self, visitor: &mut V) {
        self.iter_mut().for_each(|inner| inner.visit(visitor));
    }
}

/// Implements [`Module`] for a struct by listing the fields that hold parameters or modules.
#[macro_export]
macro_rules! module {
    ($name:ty { $($field:ident),* $(,)? }) => {
        impl $crate::parameter::Module for $name {
            fn visit<V: $crate::parameter::Visitor>(&mut self, visitor: &mut V) {
                $($crate::parameter::Module::visit(&mut self.$field, visitor);)*
            }
        }
    };
}
