//! Cross entropy over a vocabulary that is split across ranks (arXiv 1909.08053, section 3).
//!
//! One kernel gives three scalars a token in one pass over the logits: the largest one here, the sum of
//! `exp(logit - largest)`, and the target's. The caller combines them over ranks: `M = max largest`,
//! `S = sum of (sum exp(largest - M))`, `t = sum of target`; the loss is `M + ln(S) - t`. A second kernel then writes the
//! gradient over the logits, from M and S.
//!
//! Logits below -1.7e38, such as minus infinity, have probability 0. A shard without columns has the largest logit -1.7e38
//! and the sum 0.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use crate::error::Result;
use crate::hip::emit::{Source, buffer, elem_type, emit};
use crate::matrix::instruction::{Element, Target};
use crate::rows::Rows;

#[allow(missing_docs)]
mod gradient;
pub mod launch;
pub mod reference;
#[allow(missing_docs)]
mod statistics;

/// What a rank has of the vocabulary, and which tokens do not count.
#[derive(CubeLaunch, CubeType)]
pub(crate) struct Shard {
    /// Columns that take part; those beyond are padding.
    pub valid: u32,
    /// The token that the first column stands for.
    pub start: u32,
    /// Target of a token that does not count.
    pub ignore: u32,
}

/// Whether the token of this target does not count: it is the one to ignore, or negative.
#[cube]
fn ignored(target: u32, ignore: u32) -> bool {
    target == ignore || target >= 0x8000_0000u32
}

/// The column of a target; beyond every column if another rank has it, or nobody.
#[cube]
fn local_target(target: u32, shard: &Shard) -> u32 {
    select(
        ignored(target, shard.ignore),
        u32::MAX,
        target - shard.start,
    )
}

/// The kernels for one width on one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Plan {
    /// What the kernels are generated for.
    pub(crate) target: Target,
    /// Type of the logits.
    pub(crate) element: Element,
    /// How the rows of logits are dealt out.
    pub(crate) rows: Rows,
}

/// A kernel of the family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pass {
    /// Three scalars a token.
    Statistics,
    /// The gradient over the logits.
    Gradient,
}

impl Plan {
    /// The kernels for logits `[tokens, columns]`.
    pub fn choose(target: Target, element: Element, columns: usize) -> Self {
        Self {
            target,
            element,
            rows: Rows::choose(target, element, columns, 16, 1024),
        }
    }

    /// Type of the logits.
    pub const fn element(&self) -> Element {
        self.element
    }

    /// How the rows of logits are dealt out.
    pub const fn rows(&self) -> Rows {
        self.rows
    }

    /// A kernel's text.
    ///
    /// # Errors
    /// [`Target::Portable`].
    pub fn source(&self, pass: Pass) -> Result<Source> {
        let (columns, element, target) = (self.rows.columns, self.element, self.target);
        let name =
            format!("cross_entropy_{pass:?}_{columns}_{element:?}_{target:?}").to_lowercase();
        let shard = || ShardCompilationArg {
            valid: (),
            start: (),
            ignore: (),
        };
        let (elem, width) = (elem_type(element), self.rows.vector);
        let units = [self.rows.units, 1, 1];
        match pass {
            Pass::Statistics => emit(name, target, units, |s| {
                statistics::cross_entropy_statistics::CrossEntropyStatistics::new(
                    s.settings,
                    s.device,
                    s.target,
                    buffer(),
                    buffer(),
                    buffer(),
                    (),
                    shard(),
                    *self,
                    elem,
                    width,
                )
            }),
            Pass::Gradient => emit(name, target, units, |s| {
                gradient::cross_entropy_gradient::CrossEntropyGradient::new(
                    s.settings,
                    s.device,
                    s.target,
                    buffer(),
                    buffer(),
                    buffer(),
                    buffer(),
                    buffer(),
                    (),
                    shard(),
                    *self,
                    elem,
                    width,
                )
            }),
        }
    }
}

/// What of the family stands in the catalog.
///
/// # Errors
/// A kernel that CubeCL cannot render.
pub fn sources(targets: &[Target]) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for &target in targets.iter().filter(|t| **t != Target::Gfx1100) {
        let plan = Plan::choose(target, Element::Bf16, 32_000);
        sources.extend([plan.source(Pass::Statistics)?, plan.source(Pass::Gradient)?]);
    }
    Ok(sources)
}
