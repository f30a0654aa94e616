//! Parameters of every kind, whose gradients are known and add up exactly in any order.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::optim::Optimizer;
use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_frontier::checkpoint::{self, Checkpoint};
use burn_frontier::comm::groups::Groups;
use burn_frontier::comm::local::{self, LocalOptions};
use burn_frontier::optim::OptimizerConfig;
use burn_frontier::parameter::{
    Init, Parameter, ParameterContext, ParameterGradient, ParameterSpec, Visitor,
};
use burn_frontier::placement::Placement;
use burn_frontier::zero::reducer::GradientReducer;
use burn_frontier::{Layout, Result};

use crate::harness::assemble;

/// Samples of the global batch.
const SAMPLES: u64 = 4;
/// The learning rate of every step.
pub const RATE: f64 = 0.01;
/// What gradients are multiplied with: exact.
const SCALE: f64 = 0.5;

/// A fused projection, a padded table, a bias whose gradient is a sum over tp, and a kernel of rank 3.
#[derive(Debug, Clone)]
pub struct Net {
    pub fused: Parameter<2>,
    pub table: Parameter<2>,
    pub bias: Parameter<1>,
    pub kernel: Parameter<3>,
}

burn_frontier::module!(Net {
    fused,
    table,
    bias,
    kernel
});

/// The parameters, with the table's part padded.
pub fn specs() -> [ParameterSpec; 4] {
    let split = |dim, parts: &[usize], multiple| Placement::Sharded {
        dim,
        parts: parts.to_vec(),
        multiple,
    };
    let spec = |name: &str, shape: &[usize], placement, gradient| ParameterSpec {
        name: name.into(),
        shape: shape.to_vec(),
        placement,
        gradient,
        init: Init::Normal(0.5),
        decay: shape.len() > 1,
    };
    let fused = split(1, &[4, 2, 2], 1);
    let table = split(0, &[5], 2);
    [
        spec("fused", &[3, 8], fused.clone(), fused),
        spec("table", &[5, 3], table.clone(), table),
        spec("bias", &[7], Placement::Replicated, Placement::Partial),
        spec(
            "kernel",
            &[2, 3, 4],
            Placement::Replicated,
            Placement::Replicated,
        ),
    ]
}

/// Of one sample; a multiple of 1/64.
fn gradient(name: &str, index: usize, step: u64, sample: u64) -> f32 {
    let seed = name
        .bytes()
        .fold(step * 31 + sample, |h, b| h * 131 + u64::from(b));
    let mixed = (seed + index as u64 * 7919).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
    (mixed % 33) as f32 / 64.0 - 0.25
}

/// Of the global batch, whole.
pub fn total(spec: &ParameterSpec, step: u64) -> Vec<f32> {
    let count = spec.shape.iter().product();
    let of = |i: usize, sample| gradient(&spec.name, i, step, sample);
    (0..count)
        .map(|i| (0..SAMPLES).map(|sample| of(i, sample)).sum())
        .collect()
}

impl Net {
    pub fn new(context: &ParameterContext) -> Self {
        let [fused, table, bias, kernel] = specs();
        Self {
            fused: Parameter::init(fused, context),
            table: Parameter::init(table, context),
            bias: Parameter::init(bias, context),
            kernel: Parameter::init(kernel, context),
        }
    }

    /// One sample's gradients, as this rank's backward pass gives them.
    fn gradients(&mut self, step: u64, sample: u64, groups: &Groups) -> Vec<ParameterGradient> {
        struct Make<'a>(u64, u64, &'a Groups, Vec<ParameterGradient>);
        impl Visitor for Make<'_> {
            fn visit<const D: usize>(&mut self, p: &mut Parameter<D>) {
                let (tp, spec) = (&self.2.tp, &p.spec);
                let mut local = vec![0.0f32; p.count()];
                let shares = match spec.gradient {
                    Placement::Partial => tp.size() as f32,
                    _ => 1.0,
                };
                let fill = |from: usize, to: usize, len: usize| {
                    for i in 0..len {
                        let whole = gradient(&spec.name, from + i, self.0, self.1);
                        local[to + i] = whole / shares;
                    }
                };
                let placement = &spec.placement;
                placement.for_each_run(&spec.shape, tp.rank(), tp.size(), fill);
                let dtype = match p.value.dtype() {
                    DType::F64 => DType::F64,
                    _ => DType::F32,
                };
                let count = local.len();
                let data = TensorData::new(local, [count]);
                let gradient = Tensor::from_data(data, (&p.value.device(), dtype));
                self.3.push((spec.clone(), Some(gradient)));
            }
        }
        use burn_frontier::parameter::Module;
        let mut make = Make(step, sample, groups, Vec::new());
        self.visit(&mut make);
        make.3
    }
}

/// A training of the net.
#[derive(Clone)]
pub struct Trial<'a> {
    pub layout: Layout,
    pub zero: u8,
    pub dtype: DType,
    pub config: &'a (dyn Fn(OptimizerConfig) -> OptimizerConfig + Sync),
    pub steps: u64,
    pub resume: Option<PathBuf>,
    pub save: Option<PathBuf>,
}

/// Every layout that changes who holds what, with ZeRO 0 and 1.
pub fn layouts() -> impl Iterator<Item = (Layout, u8)> {
    let sizes = [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2)];
    sizes.into_iter().flat_map(|(tp, dp)| {
        let layout = Layout {
            tp,
            dp,
            ..Layout::single()
        };
        [(layout, 0), (layout, 1)]
    })
}

/// What the ranks' pieces make together.
pub type Tensors = BTreeMap<String, Vec<f64>>;

impl<'a> Trial<'a> {
    pub fn new(config: &'a (dyn Fn(OptimizerConfig) -> OptimizerConfig + Sync)) -> Self {
        Self {
            layout: Layout::single(),
            zero: 0,
            dtype: DType::F32,
            config,
            steps: 5,
            resume: None,
            save: None,
        }
    }

    pub fn of(&self, (layout, zero): (Layout, u8)) -> Self {
        Self {
            layout,
            zero,
            ..self.clone()
        }
    }

    pub fn saving(&self, folder: &Path, steps: u64) -> Self {
        Self {
            save: Some(folder.to_path_buf()),
            steps,
            ..self.clone()
        }
    }

    pub fn resuming(&self, folder: &Path) -> Self {
        Self {
            resume: Some(folder.to_path_buf()),
            ..self.clone()
        }
    }

    /// Trains, and gives all parameters, and what belongs to them, by name.
    pub fn train(&self) -> Result<Tensors> {
        let ranks = local::run(self.layout.world(), &LocalOptions::default(), |world| {
            let groups = Groups::new(self.layout, world)?;
            let context = ParameterContext {
                dtype: self.dtype,
                ..ParameterContext::new(7, &groups, Device::flex())
            };
            let mut nets = [Net::new(&context)];
            let mut config = (self.config)(OptimizerConfig::new(self.zero, false));
            config.bucket_elements = 20;
            let (mut reducer, mut optimizer) = config.init(&mut nets, None, &groups)?;
            if let Some(folder) = &self.resume {
                let checkpoint = Checkpoint::newest(folder)?.expect("a checkpoint");
                optimizer.restore(&mut nets, checkpoint.step(), &checkpoint)?;
            }
            for step in optimizer.steps + 1..=self.steps {
                let reduced = backward(&mut nets[0], &mut reducer, step, &groups)?;
                optimizer.step(&mut nets, reduced, RATE, SCALE)?;
            }
            if let Some(folder) = &self.save {
                let (state, world) = (serde_json::json!({}), groups.world.as_ref());
                let pieces = optimizer.pieces(&mut nets);
                checkpoint::save(folder, optimizer.steps, &state, pieces, world, 1)?;
            }
            optimizer.pieces(&mut nets).collect::<Result<Vec<_>>>()
        })?;
        let mut tensors = BTreeMap::new();
        let pieces = ranks.into_iter().flatten();
        pieces.for_each(|piece| assemble(&mut tensors, piece));
        Ok(tensors)
    }
}

/// The reduced gradients of a step.
pub fn backward(
    net: &mut Net,
    reducer: &mut GradientReducer,
    step: u64,
    groups: &Groups,
) -> Result<Vec<Tensor<1>>> {
    reducer.begin()?;
    let each = SAMPLES / groups.layout.dp as u64;
    let first = groups.at.dp as u64 * each;
    for sample in first..first + each {
        let last = sample + 1 == first + each;
        reducer.add(net.gradients(step, sample, groups), last)?;
    }
    reducer.finish()
}

/// What the rule makes of a whole parameter in some steps.
pub fn by_hand<O: Optimizer>(rule: &O, name: &str, steps: u64) -> Vec<f64> {
    let spec = specs().into_iter().find(|spec| spec.name == name).unwrap();
    match spec.shape.len() {
        1 => of_rank::<1, O>(rule, spec, steps),
        2 => of_rank::<2, O>(rule, spec, steps),
        _ => of_rank::<3, O>(rule, spec, steps),
    }
}

fn of_rank<const D: usize, O: Optimizer>(rule: &O, spec: ParameterSpec, steps: u64) -> Vec<f64> {
    let groups = Groups::new(Layout::single(), local::single()).unwrap();
    let context = ParameterContext::new(7, &groups, Device::flex());
    let spec = ParameterSpec {
        placement: Placement::Replicated,
        ..spec
    };
    let mut value = Parameter::<D>::init(spec.clone(), &context).value;
    let mut state = None;
    for step in 1..=steps {
        let data = TensorData::new(total(&spec, step), spec.shape.clone());
        let gradient = Tensor::from_data(data, &Device::flex()).mul_scalar(SCALE);
        (value, state) = rule.step(RATE, value, gradient, state);
    }
    let data = value.into_data_dtype(DType::F64);
    data.try_to_vec().unwrap()
}

/// Names of the parameters that a run has state of.
pub fn with_state(tensors: &Tensors) -> BTreeSet<&str> {
    let names = tensors.keys();
    names
        .filter_map(|name| Some(name.split_once("::")?.0))
        .collect()
}
