//! AdamW (arXiv 1711.05101) over many tensors in one launch, with parameters and moments in f32, and the gradient's norm.
//!
//! Parameters, moments, gradients and, in half precision, the weights that the model computes with are flat buffers; a
//! [`Table`] says which part is which tensor. A step is: [`launch::squares`], an all-reduce of the sum over the ranks that
//! share the model, [`launch::control`], [`launch::update`]. Clipping, and the skipping of a step whose gradient
//! overflowed, are decided on the device: the host waits for nothing.

use crate::argument::optional_buffer;
use crate::error::Result;
use crate::hip::emit::{Source, buffer, elem_type, emit};
use crate::matrix::instruction::{Element, Target};

pub mod launch;
#[allow(missing_docs)]
mod norm;
pub mod reference;
pub mod table;
#[allow(missing_docs)]
mod tile;
#[allow(missing_docs)]
mod update;

pub use table::{Table, Tensor};

/// Units of a workgroup.
const UNITS: u32 = 256;
/// Numbers of a step that lie on the device: gradient scale, whether to skip, the bias corrections, the gradient's norm.
pub const CONTROL: usize = 5;

/// The kernels for tensors of one kind on one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Plan {
    /// What the kernels are generated for.
    pub(crate) target: Target,
    /// Type of the gradients.
    pub(crate) gradient: Element,
    /// Type of the weights that are written beside the f32 parameters, if any.
    pub(crate) weights: Option<Element>,
    /// Elements of an access.
    pub(crate) vector: usize,
}

/// A kernel of the family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pass {
    /// Sums of squares of the gradient, one a workgroup.
    Squares,
    /// Their sum.
    Total,
    /// What follows for the step.
    Control,
    /// The step.
    Update,
}

impl Plan {
    /// The kernels for the tensors of `table` in flat buffers of `length` elements, with gradients of one type and `weights`, if
    /// any, of another.
    pub const fn choose(
        target: Target,
        gradient: Element,
        weights: Option<Element>,
        table: &Table,
        length: usize,
    ) -> Self {
        let vector = if length % table.vector == 0 {
            table.vector
        } else {
            1
        };
        Self {
            target,
            gradient,
            weights,
            vector,
        }
    }

    /// What the kernels are generated for.
    pub const fn target(&self) -> Target {
        self.target
    }

    /// Type of the gradients.
    pub const fn gradient(&self) -> Element {
        self.gradient
    }

    /// Type of the weights that are written beside the f32 parameters, if any.
    pub const fn weights(&self) -> Option<Element> {
        self.weights
    }

    /// Values of shared memory for a sum over a workgroup.
    fn shared(&self) -> usize {
        UNITS as usize / self.target.lanes()
    }

    /// Workgroups of [`Pass::Squares`].
    pub fn groups(&self, tiles: u32) -> u32 {
        tiles.min(1024)
    }

    /// A kernel's text.
    ///
    /// # Errors
    /// [`Target::Portable`].
    pub fn source(&self, pass: Pass) -> Result<Source> {
        let Self {
            target,
            gradient,
            weights,
            vector,
        } = *self;
        let to = weights.map_or(String::new(), |weights| format!("_{weights:?}"));
        let name = format!("adamw_{pass:?}_{gradient:?}{to}_{target:?}").to_lowercase();
        let (types, units) = (self.types(), [UNITS, 1, 1]);
        let numbers = || update::NumbersCompilationArg {
            learning_rate: (),
            keep: (),
            beta1: (),
            beta2: (),
            rest1: (),
            rest2: (),
            epsilon: (),
        };
        match pass {
            Pass::Squares => emit(name, target, units, |s| {
                norm::adamw_squares::AdamwSquares::new(
                    s.settings,
                    s.device,
                    s.target,
                    buffer(),
                    buffer(),
                    buffer(),
                    (),
                    (),
                    (),
                    *self,
                    types[0],
                    vector,
                )
            }),
            Pass::Total => emit(name, target, units, |s| {
                norm::adamw_total::AdamwTotal::new(
                    s.settings,
                    s.device,
                    s.target,
                    buffer(),
                    buffer(),
                    (),
                    *self,
                )
            }),
            Pass::Control => emit(name, target, [1, 1, 1], |s| {
                norm::adamw_control::AdamwControl::new(
                    s.settings,
                    s.device,
                    s.target,
                    buffer(),
                    buffer(),
                    (),
                    (),
                    (),
                    (),
                    target,
                )
            }),
            Pass::Update => emit(name, target, units, |s| {
                update::adamw_update::AdamwUpdate::new(
                    s.settings,
                    s.device,
                    s.target,
                    buffer(),
                    buffer(),
                    buffer(),
                    buffer(),
                    buffer(),
                    buffer(),
                    optional_buffer(weights.is_some()),
                    (),
                    (),
                    numbers(),
                    *self,
                    types,
                    vector,
                )
            }),
        }
    }

    /// CubeCL's names of the gradients' and the weights' types.
    fn types(&self) -> [cubecl_core::ir::ElemType; 2] {
        [self.gradient, self.weights.unwrap_or(Element::F32)].map(elem_type)
    }
}

/// What of the family stands in the catalog.
///
/// # Errors
/// A kernel that CubeCL cannot render.
pub fn sources(targets: &[Target]) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for &target in targets.iter().filter(|t| **t != Target::Gfx1100) {
        let plan = Plan {
            target,
            gradient: Element::Bf16,
            weights: Some(Element::Bf16),
            vector: 4,
        };
        for pass in [Pass::Squares, Pass::Total, Pass::Control, Pass::Update] {
            sources.push(plan.source(pass)?);
        }
    }
    Ok(sources)
}
