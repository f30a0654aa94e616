//! Layer norm (arXiv 1607.06450) and RMS norm (arXiv 1910.07467) over the last dimension, of `s = dropout(x) + residual`.
//!
//! The forward kernel reads x (and the residual) once and writes y (and s) once: a row is kept in registers between its
//! statistics and its normalisation. Saved for backward are s and, per row, mean and 1 / deviation in f32. The backward
//! kernel reads the gradient of y and s once, and leaves each workgroup's part of the gradients of weight and bias, which
//! a second kernel adds up in a fixed order.

use crate::dropout::Dropout;
use crate::error::Result;
use crate::matrix::instruction::{Element, Target};
use crate::rows::Rows;

// CubeCL's macros write public items beside each kernel, without documentation.
#[allow(missing_docs)]
mod backward;
#[allow(missing_docs)]
mod forward;
pub mod launch;
#[allow(missing_docs)]
mod opaque;
#[allow(missing_docs)]
mod reduce;
pub mod reference;
mod source;

pub use source::sources;

/// Registers of 32 bits in which a unit of the forward kernel may keep its part of a row, half of those that it has in a
/// workgroup of 1024; and the same for the backward kernel, with the sums over rows, in a workgroup of 512.
const fn registers(target: Target) -> (usize, usize) {
    match target {
        // A multiprocessor has half the registers of a compute unit.
        Target::Cuda => (32, 80),
        _ => (64, 176),
    }
}

/// Which norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `(s - mean) / sqrt(variance + epsilon) * weight + bias`.
    Layer,
    /// `s / sqrt(mean(s^2) + epsilon) * weight`.
    Rms,
}

/// What is to be computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Problem {
    /// Which norm.
    pub kind: Kind,
    /// Elements of a row.
    pub hidden: usize,
    /// Whether a residual is added to x.
    pub residual: bool,
    /// Whether x is dropped out first.
    pub dropout: bool,
}

/// The kernels of one problem on one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Plan {
    /// What the kernels are generated for.
    pub(crate) target: Target,
    /// Type of every tensor but the statistics and the gradients of weight and bias, which are f32.
    pub(crate) element: Element,
    /// What is computed.
    pub(crate) problem: Problem,
    /// How the forward kernel deals out rows.
    pub(crate) forward: Rows,
    /// How the backward kernel does.
    pub(crate) backward: Rows,
    /// Workgroups of the backward kernel, at most.
    pub(crate) most_groups: u32,
}

/// A kernel of the family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pass {
    /// Input to output.
    Forward,
    /// Gradient of the output to that of the input.
    Backward,
    /// Gradients of weight and bias.
    Reduce,
}

impl Plan {
    /// The kernels for `problem`.
    pub fn choose(target: Target, element: Element, problem: Problem) -> Self {
        // Compute units, each of which holds workgroups of 512 units altogether: enough loads under way.
        let compute_units = match target {
            Target::Gfx90a => 110,
            Target::Gfx942 => 304,
            Target::Gfx1100 => 96,
            Target::Cuda => 132,
            Target::Portable => 16,
        };
        let backward = Rows::choose(target, element, problem.hidden, 2, 512);
        Self {
            target,
            element,
            problem,
            forward: Rows::choose(target, element, problem.hidden, 8, 1024),
            backward,
            most_groups: compute_units * (512 / backward.units),
        }
    }

    /// This plan with at most so many workgroups, one at least, for the backward kernel.
    pub fn with_most_groups(self, most_groups: u32) -> Self {
        Self {
            most_groups: most_groups.max(1),
            ..self
        }
    }

    /// What is computed.
    pub const fn problem(&self) -> Problem {
        self.problem
    }

    /// Type of every tensor but the statistics and the gradients of weight and bias, which are f32.
    pub const fn element(&self) -> Element {
        self.element
    }

    /// How the forward kernel deals out rows, and how the backward kernel does.
    pub const fn rows(&self) -> [Rows; 2] {
        [self.forward, self.backward]
    }

    /// Workgroups of the backward kernel, at most.
    pub const fn most_groups(&self) -> u32 {
        self.most_groups
    }

    /// Registers of a vector of `width` elements.
    fn registers(&self, width: usize) -> usize {
        (width * self.element.bits()).div_ceil(32)
    }

    /// Whether the forward kernel keeps rows in registers; it reads longer ones again.
    fn forward_in_registers(&self) -> bool {
        self.forward.chunks() as usize * self.registers(self.forward.vector)
            <= registers(self.target).0
    }

    /// Whether the backward kernel keeps rows, and the sums over rows, in registers.
    fn backward_in_registers(&self) -> bool {
        let vector = self.backward.vector;
        let chunk = 2 * self.registers(vector) + self.parts() as usize * vector;
        self.backward.chunks() as usize * chunk <= registers(self.target).1
    }

    /// Workgroups of the backward kernel for so many rows.
    pub fn groups(&self, rows: u32) -> u32 {
        rows.div_ceil(self.backward.per_workgroup())
            .min(self.most_groups)
    }

    /// Statistics of a row.
    pub fn stats(&self) -> usize {
        match self.problem.kind {
            Kind::Layer => 2,
            Kind::Rms => 1,
        }
    }

    /// Elements that tell the samples' numbers, if there is dropout.
    fn samples(&self, rows: usize, dropout: &Dropout) -> Result<Option<usize>> {
        let wanted = self.problem.dropout;
        wanted.then(|| dropout.samples("norm", rows)).transpose()
    }

    /// Whether the norm's input is not x itself.
    fn fused(&self) -> bool {
        self.problem.residual || self.problem.dropout
    }

    /// Vectors of the backward kernel in registers: two a chunk.
    fn backward_held(&self) -> usize {
        match self.backward_in_registers() {
            true => 2 * self.backward.chunks() as usize,
            false => 1,
        }
    }

    /// Gradients that are summed over rows: of weight and bias.
    fn parts(&self) -> u32 {
        match self.problem.kind {
            Kind::Layer => 2,
            Kind::Rms => 1,
        }
    }

    /// Vectors of shared memory in which the rows of a workgroup are added up.
    fn joined(&self) -> usize {
        match self.backward.per_workgroup() {
            1 => 1,
            _ => (self.parts() * self.backward.vectors()) as usize,
        }
    }
}
