//! The least that a model says, and what the planner makes of it: any module on replicas, with or without ZeRO.

use std::fmt;

use indicatif::HumanBytes;

use super::job::Job;
use super::machine::Machine;
use super::memory::{self, StageMemory};
use super::model::{Activations, LayerWork, Planned, Share, Work};
use super::time;
use crate::error::Result;
use crate::mesh::Layout;
use crate::observe::flops::Flops;
use crate::parameter::{Module, Parameter, ParameterSpec, Visitor};
use crate::placement::Placement;
use crate::precision::Precision;
use crate::recompute::Recompute;

/// Parameters of a transformer's layer: as many kernels start for so many of another model's.
const LAYER_PARAMETERS: f64 = 12.0;

/// A model of which is known what it holds, what a sample costs, and nothing of its inside. It is planned on replicas.
///
/// ```
/// use burn::nn::LinearConfig;
/// use burn::tensor::Device;
/// use burn_frontier::Layout;
/// use burn_frontier::parameter::BurnModule;
/// use burn_frontier::plan::{Estimate, Job, Machine, Outline};
///
/// # fn main() -> burn_frontier::Result<()> {
/// let mut model = BurnModule::new(LinearConfig::new(784, 10).init(&Device::flex()), 1)?;
/// // A sample is multiplied with one matrix; its 784 inputs and 10 outputs are kept, in fp32.
/// let outline = Outline::new(&mut model, 2.0 * 784.0 * 10.0, 4.0 * 794.0)?;
/// let layout = Layout { dp: 4, ..Layout::single() };
/// let job = Job { global_batch: 256, micro_batch: 64, ..outline.job(layout) };
/// println!("{}", Estimate::new(&job, &Machine::load("laptop")?)?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Outline {
    /// The trained parameters.
    pub specs: Vec<ParameterSpec>,
    /// Bytes of what is not trained: frozen parameters, running statistics.
    pub frozen: f64,
    /// Bytes that the optimizer keeps of a parameter beside its value in fp32: 8 for AdamW and LAMB, 4 for one moment, 0 for plain
    /// SGD.
    pub moments: f64,
    /// Floating-point operations of a sample's forward pass; a multiply-add is two.
    pub flops: f64,
    /// Bytes that a sample's forward pass keeps for its backward pass, and that both need besides at once.
    pub activations: f64,
}

impl Outline {
    /// The outline of a module, trained by AdamW, whose forward pass of a sample executes `flops` operations and keeps
    /// `activations` bytes.
    ///
    /// # Errors
    /// A device that cannot be read.
    pub fn new<M: Module>(module: &mut M, flops: f64, activations: f64) -> Result<Self> {
        struct List(Vec<ParameterSpec>);
        impl Visitor for List {
            fn visit<const D: usize>(&mut self, parameter: &mut Parameter<D>) {
                self.0.push((*parameter.spec).clone());
            }
        }
        let mut list = List(Vec::new());
        module.visit(&mut list);
        let state = module.state()?;
        Ok(Self {
            specs: list.0,
            frozen: state.iter().map(|one| one.data.bytes() as f64).sum(),
            moments: 8.0,
            flops,
            activations,
        })
    }

    /// The model in `layout`, in fp32: a batch of one sample a replica, ZeRO 1, nothing recomputed.
    pub fn job(self, layout: Layout) -> Job<Self> {
        Job {
            recompute: Recompute::None,
            precision: Precision::Fp32,
            ..Job::new(self, layout)
        }
    }
}

impl Planned for Outline {
    fn describe(&self) -> String {
        format!("a model of {} parameter tensors", self.specs.len())
    }

    fn layer_specs(&self, gradient: &Placement) -> Vec<ParameterSpec> {
        let mut specs = self.specs.clone();
        for spec in specs
            .iter_mut()
            .filter(|spec| spec.gradient == Placement::Replicated)
        {
            spec.gradient = gradient.clone();
        }
        specs
    }

    fn work(&self, share: &Share) -> Work {
        let (samples, bytes) = (share.tokens as f64, self.activations);
        Work {
            layer: LayerWork {
                flops: samples * self.flops,
                // What is kept was written, and is read again when its gradient is written.
                forward_bytes: samples * bytes,
                backward_bytes: 2.0 * samples * bytes,
                kernels: self.specs.len() as f64 / LAYER_PARAMETERS,
                ..LayerWork::default()
            },
            ..Work::default()
        }
    }

    fn activations(&self, share: &Share) -> Activations {
        Activations {
            layer: share.tokens as f64 * self.activations,
            ..Activations::default()
        }
    }

    fn flops(&self, _recompute: Recompute, _tp: usize) -> Flops {
        let all = 3.0 * self.flops;
        Flops {
            model: all,
            hardware: all,
        }
    }

    fn largest_activation(&self) -> u128 {
        self.activations as u128
    }

    fn moment_bytes(&self) -> f64 {
        self.moments
    }

    fn frozen_bytes(&self) -> f64 {
        self.frozen
    }
}

/// What one rank needs, whether it fits, and how fast a step is at best. Prints as a short page.
#[derive(Debug, Clone, PartialEq)]
pub struct Estimate {
    /// Parameters of the model.
    pub parameters: usize,
    /// Memory of the stage that needs most.
    pub memory: StageMemory,
    /// Bytes that a rank's tensors may take.
    pub usable_bytes: f64,
    /// Seconds of a step. Of an [`Outline`] at best, with a device that is always at its highest rate.
    pub seconds: f64,
    /// Samples per second of the whole job.
    pub samples_per_second: f64,
}

impl Estimate {
    /// Estimates `job` on `machine`; [`Machine::with_memory`] says how much memory is here.
    ///
    /// # Errors
    /// A job that cannot run.
    pub fn new<M: Planned>(job: &Job<M>, machine: &Machine) -> Result<Self> {
        let stages = memory::stages(job, machine)?;
        let most = stages
            .into_iter()
            .max_by(|a, b| a.bytes().total_cmp(&b.bytes()));
        let seconds = time::step(job, machine)?.seconds();
        Ok(Self {
            parameters: job.model.parameters(),
            memory: most.unwrap_or_default(),
            usable_bytes: machine.usable_bytes(),
            seconds,
            samples_per_second: job.global_batch as f64 / seconds,
        })
    }

    /// Whether it fits.
    pub fn fits(&self) -> bool {
        self.memory.bytes() <= self.usable_bytes
    }
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = |bytes: f64| HumanBytes(bytes.max(0.0) as u64).to_string();
        writeln!(f, "parameters {}", self.parameters)?;
        let verdict = if self.fits() { "fits" } else { "DOES NOT FIT" };
        let (need, room) = (size(self.memory.bytes()), size(self.usable_bytes));
        writeln!(f, "memory     {verdict}: {need} of {room} a rank")?;
        let kinds = self.memory.kinds().into_iter();
        for (name, bytes) in kinds.filter(|(_, bytes)| *bytes > 0.0) {
            writeln!(f, "  {name:<16} {:>12}", size(bytes))?;
        }
        let (ms, speed) = (1e3 * self.seconds, self.samples_per_second);
        write!(f, "step       {ms:.2} ms, {speed:.0} samples/s")
    }
}
