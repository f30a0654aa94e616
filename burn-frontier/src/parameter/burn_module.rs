//! Any Burn module as one of ours: its trained parameters under their module paths, everything else as its state.

use std::collections::HashMap;
use std::sync::Arc;

use burn::module::{ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Bool, DType, Int, Tensor, TensorData};

use super::{Init, Module, Parameter, ParameterSpec, Selection, State, Visitor};
use crate::comm::Buffer;
use crate::comm::tensor::{from_buffer, to_buffer};
use crate::error::{Error, Result};
use crate::ops::gradient_sum::GradientSum;
use crate::placement::Placement;
use crate::random::initialize_as;

/// A Burn module whose parameters are visited as [`Parameter`]s. Every rank holds it whole.
///
/// A parameter that requires a gradient is trained; its name is its module path, such as `layers.0.weight`, and it counts as a
/// matrix, whose weights decay, from rank 2 on. One that two paths share is one parameter, under the first path.
/// All else that the module holds is its state, saved and restored with it: frozen parameters, running statistics, integers,
/// booleans.
///
/// The module is held outside autodiff. Its training flags stay as they are: [`Self::evaluation`] gives a copy without.
#[derive(Debug, Clone)]
pub struct BurnModule<M> {
    module: M,
    /// By name. Parameters and state.
    names: Arc<HashMap<String, String>>,
    trained: HashMap<String, Trained>,
}

#[derive(Debug, Clone)]
struct Trained {
    spec: Arc<ParameterSpec>,
    sum: Option<GradientSum>,
}

impl<M: burn::module::Module> BurnModule<M> {
    /// Takes a module. What has no value yet gets one as [`initialize`](crate::random::initialize) says: a function of (seed, path, index).
    ///
    /// # Errors
    /// Two parameters of one name, or an initialiser that fails.
    pub fn new(module: M, seed: u64) -> Result<Self> {
        Self::with_names(module, seed, str::to_string)
    }

    /// Takes a module whose parameters are called `name(path)`: a pipeline stage whose list begins at block 4 calls its
    /// `blocks.0` `blocks.4`, so that a checkpoint fits any number of stages, and first values are the same.
    ///
    /// # Errors
    /// Two parameters of one name, or an initialiser that fails.
    pub fn with_names(module: M, seed: u64, name: impl Fn(&str) -> String) -> Result<Self> {
        let module = initialize_as(module, seed, &name)?;
        let mut list = List {
            path: Path::default(),
            name: &name,
            names: HashMap::new(),
            by_id: HashMap::new(),
            trained: HashMap::new(),
            twice: None,
        };
        // In training, so that what requires a gradient says so.
        module.clone().train().visit(&mut list);
        if let Some(name) = list.twice {
            return Err(Error::config(
                format!("two parameters are called {name}"),
                "give every one a name of its own",
            ));
        }
        Ok(Self {
            module: module.valid().train().map(&mut Plain),
            names: Arc::new(list.names),
            trained: list.trained,
        })
    }

    /// The module, outside autodiff. Its running statistics may lack the last update: [`Self::evaluation`] has it.
    pub fn module(&self) -> &M {
        &self.module
    }

    /// The name of what stands at a module path.
    pub fn name_of(&self, path: &str) -> Option<&String> {
        self.names.get(path)
    }

    /// A copy for evaluation: outside autodiff, nothing dropped, running statistics up to date.
    pub fn evaluation(&self) -> M {
        self.module.valid()
    }
}

/// The path of the value that a walk through a module is at.
#[derive(Default)]
struct Path(Vec<String>);

impl Path {
    fn enter(&mut self, name: &str) {
        self.0.push(name.to_string());
    }

    fn exit(&mut self) {
        self.0.pop();
    }

    fn get(&self) -> String {
        self.0.join(".")
    }
}

/// Follows the path, in a visitor or a mapper with a field `path`.
macro_rules! follow_path {
    () => {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.path.enter(name);
        }

        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.exit();
        }
    };
}

/// Finds what a module holds.
struct List<'a> {
    path: Path,
    name: &'a dyn Fn(&str) -> String,
    /// Names by path.
    names: HashMap<String, String>,
    by_id: HashMap<ParamId, String>,
    trained: HashMap<String, Trained>,
    /// A name that two values have.
    twice: Option<String>,
}

impl List<'_> {
    /// Notes a value. Gives its name, unless it is one that was seen under another path.
    fn note(&mut self, id: ParamId) -> Option<String> {
        let path = self.path.get();
        if let Some(known) = self.by_id.get(&id) {
            self.names.insert(path, known.clone());
            return None;
        }
        let name = (self.name)(&path);
        if self.by_id.values().any(|known| *known == name) {
            self.twice = Some(name.clone());
        }
        self.by_id.insert(id, name.clone());
        self.names.insert(path, name.clone());
        Some(name)
    }
}

impl ModuleVisitor for List<'_> {
    follow_path!();

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(name) = self.note(param.id) else {
            return;
        };
        let value = param.val();
        if value.is_require_grad() {
            let spec = ParameterSpec {
                name: name.clone(),
                shape: value.dims().to_vec(),
                placement: Placement::Replicated,
                gradient: Placement::Replicated,
                init: Init::Given,
                decay: D > 1,
            };
            let spec = Arc::new(spec);
            self.trained.insert(name, Trained { spec, sum: None });
        }
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        self.note(param.id);
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
        self.note(param.id);
    }
}

/// Takes every float out of autodiff.
struct Plain;

impl ModuleMapper for Plain {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(Tensor::without_autodiff)
    }
}

/// Shows the trained parameters to a visitor of ours.
struct Show<'a, V> {
    path: Path,
    names: &'a HashMap<String, String>,
    trained: &'a mut HashMap<String, Trained>,
    visitor: &'a mut V,
}

impl<V: Visitor> ModuleMapper for Show<'_, V> {
    follow_path!();

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.names.get(&self.path.get());
        let Some(trained) = name.and_then(|name| self.trained.get_mut(name)) else {
            return param;
        };
        let visitor = &mut *self.visitor;
        param.map(|value| {
            let mut parameter = Parameter {
                spec: trained.spec.clone(),
                value,
                sum: trained.sum.take(),
            };
            visitor.visit(&mut parameter);
            trained.sum = parameter.sum;
            parameter.value
        })
    }
}

/// Makes the state constants of an autodiff graph.
struct Constants<'a> {
    path: Path,
    names: &'a HashMap<String, String>,
    trained: &'a HashMap<String, Trained>,
}

impl ModuleMapper for Constants<'_> {
    follow_path!();

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.names.get(&self.path.get());
        match name {
            Some(name) if self.trained.contains_key(name) => param,
            _ => param.map(|value| value.without_autodiff().autodiff()),
        }
    }
}

impl<M: burn::module::Module> Module for BurnModule<M> {
    fn visit<V: Visitor>(&mut self, visitor: &mut V) {
        let mut show = Show {
            path: Path::default(),
            names: &self.names,
            trained: &mut self.trained,
            visitor,
        };
        self.module = self.module.clone().map(&mut show);
    }

    fn leaves(&self, trained: &Selection) -> Self {
        let mut copy = self.clone();
        super::make_leaves(&mut copy, trained);
        let mut constants = Constants {
            path: Path::default(),
            names: &copy.names,
            trained: &copy.trained,
        };
        copy.module = copy.module.map(&mut constants);
        copy
    }

    fn state(&self) -> Result<Vec<State>> {
        let mut collect = Collect {
            path: Path::default(),
            names: &self.names,
            trained: &self.trained,
            states: Vec::new(),
            failure: None,
        };
        self.evaluation().visit(&mut collect);
        collect.failure.map_or(Ok(collect.states), Err)
    }

    fn set_state(&mut self, read: &mut dyn FnMut(&str, &[usize]) -> Result<Buffer>) -> Result<()> {
        let mut set = Set {
            path: Path::default(),
            names: &self.names,
            trained: &self.trained,
            read,
            result: Ok(()),
        };
        // What an update has left for later must not be taken for newer.
        _ = self.module.valid();
        self.module = self.module.clone().map(&mut set);
        set.result
    }
}

/// Reads the state.
struct Collect<'a> {
    path: Path,
    names: &'a HashMap<String, String>,
    trained: &'a HashMap<String, Trained>,
    states: Vec<State>,
    failure: Option<Error>,
}

impl Collect<'_> {
    fn add(&mut self, shape: Vec<usize>, read: impl FnOnce() -> Result<Buffer>) {
        let Some(name) = self.names.get(&self.path.get()) else {
            return;
        };
        let known = self.states.iter().any(|state| state.name == *name);
        if self.trained.contains_key(name) || known {
            return;
        }
        match read() {
            Ok(data) => self.states.push(State {
                name: name.clone(),
                shape,
                data,
            }),
            Err(error) => self.failure = Some(error),
        }
    }
}

fn unreadable(error: impl std::fmt::Debug) -> Error {
    Error::Internal(format!("cannot read a tensor: {error:?}"))
}

impl ModuleVisitor for Collect<'_> {
    follow_path!();

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.val().without_autodiff();
        self.add(value.dims().to_vec(), || to_buffer(value));
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        let value = param.val();
        self.add(value.dims().to_vec(), || {
            let data = value.try_into_data_as::<i64>().map_err(unreadable)?;
            data.try_into_vec().map(Buffer::I64).map_err(unreadable)
        });
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
        let value = param.val().int();
        self.add(value.dims().to_vec(), || {
            let data = value.try_into_data_as::<u8>().map_err(unreadable)?;
            data.try_into_vec().map(Buffer::U8).map_err(unreadable)
        });
    }
}

/// Replaces the state.
struct Set<'a> {
    path: Path,
    names: &'a HashMap<String, String>,
    trained: &'a HashMap<String, Trained>,
    read: &'a mut dyn FnMut(&str, &[usize]) -> Result<Buffer>,
    result: Result<()>,
}

impl Set<'_> {
    /// What is to replace a value; none if it is no state, or something has failed.
    fn take(&mut self, shape: &[usize]) -> Option<Buffer> {
        let name = self.names.get(&self.path.get())?;
        if self.trained.contains_key(name) || self.result.is_err() {
            return None;
        }
        let data = (self.read)(name, shape);
        self.keep(data)
    }

    fn keep<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.result = Err(error)).ok()
    }
}

impl ModuleMapper for Set<'_> {
    follow_path!();

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let old = param.val();
        let Some(data) = self.take(&old.dims()) else {
            return param;
        };
        let new = from_buffer::<D>(data, old.shape(), &old.device());
        match self.keep(new) {
            Some(new) => param.map(|_| new.cast(old.dtype())),
            None => param,
        }
    }

    fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        let old = param.val();
        let data = self.take(&old.dims()).map(Buffer::into_i64);
        let Some(data) = data.and_then(|data| self.keep(data)) else {
            return param;
        };
        let data = TensorData::new(data, old.shape());
        param.map(|_| Tensor::from_data(data, (&old.device(), old.dtype())))
    }

    fn map_bool<const D: usize>(
        &mut self,
        param: Param<Tensor<D, Bool>>,
    ) -> Param<Tensor<D, Bool>> {
        let old = param.val();
        let data = self.take(&old.dims()).map(Buffer::into_u8);
        let Some(data) = data.and_then(|data| self.keep(data)) else {
            return param;
        };
        let data: Vec<i64> = data.into_iter().map(i64::from).collect();
        let data = TensorData::new(data, old.shape());
        let ints = Tensor::<D, Int>::from_data(data, (&old.device(), DType::I64));
        param.map(|_| ints.bool())
    }
}
