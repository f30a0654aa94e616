//! Dropout of the elements of rows `[samples, tokens, hidden]`: a function of their places in the global batch, without a
//! mask in memory.
//!
//! The gradient of x is the dropout of that of the output, at the same places.

use crate::argument::{elements, optional_buffer};
use crate::error::{Error, Result};
use crate::hip::emit::{Source, buffer, elem_type, emit};
use crate::matrix::instruction::{Element, Target};
use crate::random;
use crate::rows::vector;

// CubeCL's macros write public items beside each kernel, without documentation.
#[allow(missing_docs)]
pub(crate) mod elements;
pub mod launch;

/// Units of a workgroup.
const UNITS: u32 = 256;

/// Where the rows of a launch stand in the global batch, and what dropout does to them. Element `d` of token `t` of sample
/// `s` takes the random word of site `s`, row `t`, `d` (see [`crate::random`]), so that no layout changes it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Dropout {
    /// Of the run, the step and the name of the place in the model.
    pub key: [u32; 2],
    /// Probability that an element is dropped, in [0, 1).
    pub probability: f64,
    /// Rows of a sample.
    pub tokens: u32,
    /// The first row's token, where a rank has a part of the sequence.
    pub first: u32,
}

impl Dropout {
    /// A smaller random word drops its element.
    pub fn threshold(&self) -> u32 {
        random::threshold(self.probability)
    }

    /// Factor of what is kept.
    pub fn scale(&self) -> f32 {
        (1.0 / (1.0 - self.probability)) as f32
    }

    /// Numbers that tell the samples of so many rows: two for each.
    pub(crate) fn samples(&self, operation: &'static str, rows: usize) -> Result<usize> {
        match self.tokens as usize {
            tokens if tokens > 0 && rows % tokens == 0 => elements(operation, &[2, rows / tokens]),
            tokens => Err(Error::argument(
                operation,
                format!("{rows} rows are no whole number of samples of {tokens} tokens"),
                "set `tokens` to the rows of a sample",
            )),
        }
    }
}

/// The kernel for rows of one length on one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Plan {
    /// What the kernel is generated for.
    pub(crate) target: Target,
    /// Type of every tensor.
    pub(crate) element: Element,
    /// Elements of a row.
    pub(crate) hidden: usize,
    /// Whether a residual is added to what is left.
    pub(crate) residual: bool,
    /// Elements of an access.
    pub(crate) vector: usize,
}

impl Plan {
    /// The kernel for rows of `hidden` elements.
    pub fn choose(target: Target, element: Element, hidden: usize, residual: bool) -> Self {
        Self {
            target,
            element,
            hidden,
            residual,
            vector: vector(target, element.bytes(), &[hidden]),
        }
    }

    /// Type of every tensor.
    pub const fn element(&self) -> Element {
        self.element
    }

    /// Elements of a row.
    pub const fn hidden(&self) -> usize {
        self.hidden
    }

    /// Whether a residual is added to what is left.
    pub const fn residual(&self) -> bool {
        self.residual
    }

    /// Vectors of a row.
    const fn vectors(&self) -> u32 {
        (self.hidden / self.vector) as u32
    }

    /// Workgroups for so many rows.
    pub const fn groups(&self, rows: u32) -> u32 {
        (rows as u64 * self.vectors() as u64).div_ceil(UNITS as u64) as u32
    }

    /// The kernel as HIP C++.
    ///
    /// # Errors
    /// A target other than HIP.
    pub fn source(&self) -> Result<Source> {
        let (element, target, hidden) = (self.element, self.target, self.hidden);
        let residual = if self.residual { "_residual" } else { "" };
        let name = format!("dropout{residual}_{hidden}_{element:?}_{target:?}").to_lowercase();
        emit(name, target, [UNITS, 1, 1], |s| {
            elements::dropout_elements::DropoutElements::new(
                s.settings,
                s.device,
                s.target,
                buffer(),
                optional_buffer(self.residual),
                buffer(),
                buffer(),
                (),
                elements::site(),
                *self,
                elem_type(element),
                self.vector,
            )
        })
    }
}

/// What of the family stands in the catalog.
///
/// # Errors
/// A kernel that CubeCL cannot render.
pub fn sources(targets: &[Target]) -> Result<Vec<Source>> {
    targets
        .iter()
        .filter(|target| **target != Target::Gfx1100)
        .map(|&target| Plan::choose(target, Element::Bf16, 4096, true).source())
        .collect()
}
