//! One operation at one shape: what it must compute and move, and how it is run.

use std::hint::black_box;
use std::rc::Rc;

use anyhow::Result;
use burn::tensor::{DType, Device, Distribution, Tensor};
use burn_frontier::ops::gradient::seed;

/// Where tensors are, and their type.
#[derive(Clone)]
pub struct Place {
    /// Without autodiff.
    pub device: Device,
    pub dtype: DType,
}

impl Place {
    /// A tensor of normal random numbers.
    pub fn tensor<const D: usize>(&self, shape: [usize; D]) -> Tensor<D> {
        self.tensor_of(shape, self.dtype)
    }

    /// As [`Self::tensor`], of another type.
    pub fn tensor_of<const D: usize>(&self, shape: [usize; D], dtype: DType) -> Tensor<D> {
        let normal = Distribution::Normal(0.0, 1.0);
        Tensor::<D>::random(shape, normal, (&self.device, DType::F32)).cast(dtype)
    }

    /// Bytes of so many elements.
    pub fn bytes(&self, elements: usize) -> f64 {
        (elements * self.dtype.size()) as f64
    }
}

/// What an operation is counted as.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    /// Operations, as `--help` defines them.
    pub flops: f64,
    /// Bytes that must move at least: every input read once, every output written once.
    pub bytes: f64,
}

/// Which pass of an operation is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    Forward,
    Backward,
}

/// What lies between two readings of the clock.
pub type Timed = Box<dyn FnOnce() -> Result<()>>;

pub struct Case {
    pub work: Work,
    /// Makes ready what one run needs, untimed.
    pub prepare: Box<dyn FnMut() -> Result<Timed>>,
}

/// How an operation takes its inputs: as constants, or as leaves of a graph.
#[derive(Clone, Copy)]
pub struct Take(Pass);

impl Take {
    pub fn of<const D: usize>(self, x: &Tensor<D>) -> Tensor<D> {
        match self.0 {
            Pass::Forward => x.clone(),
            Pass::Backward => x.clone().autodiff().require_grad(),
        }
    }
}

impl Case {
    /// A pass of a differentiable function. Its backward pass is timed without the forward pass before it.
    pub fn of<const D: usize>(
        pass: Pass,
        place: &Place,
        work: Work,
        function: impl Fn(Take) -> burn_frontier::Result<Tensor<D>> + 'static,
    ) -> Self {
        let function = Rc::new(function);
        let prepare: Box<dyn FnMut() -> Result<Timed>> = match pass {
            Pass::Forward => Box::new(move || {
                let function = function.clone();
                Ok(Box::new(move || {
                    black_box(function(Take(Pass::Forward))?);
                    Ok(())
                }))
            }),
            Pass::Backward => {
                let mut gradient = None;
                let place = place.clone();
                Box::new(move || {
                    let y = function(Take(Pass::Backward))?;
                    let like = || place.tensor_of(y.dims(), y.dtype());
                    let gradient = gradient.get_or_insert_with(like).clone();
                    Ok(Box::new(move || {
                        black_box(seed(y, gradient).backward());
                        Ok(())
                    }))
                })
            }
        };
        Self { work, prepare }
    }
}
