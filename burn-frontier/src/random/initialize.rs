//! First values of a Burn module that do not depend on the process, the thread or the device.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, Parameter};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

use super::generator::{alone, seed_of};
use crate::comm::{Buffer, Group};
use crate::error::{Error, Result, panic_message};

/// Gives a module's parameters their first values as a function of (seed, path in the module, index), by the initialiser that each was
/// configured with: Burn's distributions, from a generator that is seeded for each parameter.
///
/// Threads may do it at the same time. Numbers are drawn on the CPU where Burn's flex backend is compiled in, and then moved, so
/// that devices agree; only a parameter that a clone shares is drawn on its own device. A parameter that has a value keeps it,
/// since it cannot be drawn again: [`check_replicas`] finds out whether it is the same everywhere. Afterwards the process's
/// generator is in a state that is a function of the seed.
///
/// # Errors
/// An initialiser that fails, as one of Burn's does that is not for such a shape.
pub fn initialize<M: Module>(module: M, seed: u64) -> Result<M> {
    initialize_as(module, seed, str::to_string)
}

/// [`initialize`] of a module whose parameters are called `name(path)` in the model that it is a part of, such as a pipeline
/// stage: their values are those of the whole model's.
///
/// # Errors
/// As of [`initialize`].
pub fn initialize_as<M: Module>(module: M, seed: u64, name: impl Fn(&str) -> String) -> Result<M> {
    let _alone = alone();
    let devices = module.devices();
    let mut initialize = Initialize {
        seed,
        name: &name,
        path: Vec::new(),
    };
    // Burn's initialisers panic; nothing that they may leave half done is looked at again.
    let result = catch_unwind(AssertUnwindSafe(|| module.map(&mut initialize)));
    for device in devices.into_iter().chain(drawing_device()) {
        device.seed(seed_of(seed, ""));
    }
    result.map_err(|panic| {
        let (name, reason) = (initialize.name(), panic_message(panic.as_ref()));
        Error::config(
            format!("the initialiser of {name} failed: {reason}"),
            "give the layer one that suits its shape",
        )
    })
}

/// Fails unless the replicas of `group` have the same values in their modules. Every one of them calls it before training; it
/// reads all values to the host, and all-gathers 8 bytes a parameter.
///
/// # Errors
/// Names a parameter that differs, or says that the modules do.
pub fn check_replicas<M: Module>(module: &M, group: &Group) -> Result<()> {
    let mut values = Values::default();
    module.visit(&mut values);
    values.failure.map_or(Ok(()), Err)?;
    let count = values.hashes.len();
    let all = group.all_gather(Buffer::I64(values.hashes))?.into_i64()?;
    if all.len() != count * group.size() {
        return Err(Error::config(
            format!(
                "the replica {} has a model of {count} parameters, and others have other ones",
                group.rank()
            ),
            "make the same model on every replica",
        ));
    }
    let first = all.get(..count).unwrap_or_default();
    let differs = |i: &usize| all.iter().skip(*i).step_by(count).any(|h| *h != first[*i]);
    let Some(i) = (0..count).find(differs) else {
        return Ok(());
    };
    Err(Error::config(
        format!(
            "the replicas begin with different values of {}, and perhaps of more",
            values.paths[i]
        ),
        "pass the model through random::initialize before it is used, or give it the same values on every replica",
    ))
}

/// Where numbers are drawn for every device, if there is such a place.
fn drawing_device() -> Option<Device> {
    #[cfg(feature = "flex")]
    return Some(Device::flex());
    #[cfg(not(feature = "flex"))]
    None
}

struct Initialize<'a> {
    seed: u64,
    name: &'a dyn Fn(&str) -> String,
    path: Vec<String>,
}

impl Initialize<'_> {
    /// The name of the parameter that the walk is at.
    fn name(&self) -> String {
        (self.name)(&self.path.join("."))
    }

    /// The parameter with a value.
    fn draw<T: Parameter>(&self, parameter: Param<T>) -> Param<T>
    where
        Param<T>: Module,
    {
        if parameter.is_initialized() {
            return parameter;
        }
        let home = parameter.lazy_device();
        let seed = seed_of(self.seed, &self.name());
        home.seed(seed);
        let Some(place) = drawing_device().filter(|place| *place != home) else {
            parameter.val();
            return parameter;
        };
        place.seed(seed);
        // What a clone shares is drawn here, at home.
        let parameter = parameter.fork(&place);
        parameter.val();
        parameter.fork(&home)
    }
}

impl ModuleMapper for Initialize<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<D>>) -> Param<Tensor<D>> {
        self.draw(parameter)
    }

    fn map_int<const D: usize>(
        &mut self,
        parameter: Param<Tensor<D, Int>>,
    ) -> Param<Tensor<D, Int>> {
        self.draw(parameter)
    }

    fn map_bool<const D: usize>(
        &mut self,
        parameter: Param<Tensor<D, Bool>>,
    ) -> Param<Tensor<D, Bool>> {
        self.draw(parameter)
    }
}

/// A hash of each parameter's path, shape and value, in visiting order.
#[derive(Default)]
struct Values {
    path: Vec<String>,
    paths: Vec<String>,
    hashes: Vec<i64>,
    failure: Option<Error>,
}

impl Values {
    fn add<E: std::fmt::Debug>(&mut self, data: Result<TensorData, E>) {
        let data = match data {
            Ok(data) => data,
            Err(e) => {
                self.failure = Some(Error::Internal(format!("cannot read a tensor: {e:?}")));
                return;
            }
        };
        let path = self.path.join(".");
        let what = format!("{path} {:?} {:?}", data.shape(), data.dtype());
        let halves = [what.as_bytes(), data.as_bytes()].map(crc32c::crc32c);
        self.hashes
            .push(i64::from(halves[0]) << 32 | i64::from(halves[1]));
        self.paths.push(path);
    }
}

impl ModuleVisitor for Values {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
        self.add(parameter.val().try_into_data());
    }

    fn visit_int<const D: usize>(&mut self, parameter: &Param<Tensor<D, Int>>) {
        self.add(parameter.val().try_into_data());
    }

    fn visit_bool<const D: usize>(&mut self, parameter: &Param<Tensor<D, Bool>>) {
        self.add(parameter.val().try_into_data());
    }
}
