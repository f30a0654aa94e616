//! The kernels' texts.

use super::{Kind, Pass, Plan, Problem, backward, forward, reduce};
use crate::argument::optional_buffer;
use crate::dropout::elements;
use crate::error::Result;
use crate::hip::emit::{Source, buffer, elem_type, emit};
use crate::matrix::instruction::{Element, Target};

impl Plan {
    /// A kernel's text.
    ///
    /// # Errors
    /// [`Target::Portable`].
    pub fn source(&self, pass: Pass) -> Result<Source> {
        match pass {
            Pass::Forward => self.forward_source(),
            Pass::Backward => self.backward_source(),
            Pass::Reduce => self.reduce_source(),
        }
    }

    fn name(&self, pass: Pass) -> String {
        let Problem {
            kind,
            hidden,
            residual,
            dropout,
        } = self.problem;
        let residual = if residual { "_residual" } else { "" };
        let dropout = if dropout { "_dropout" } else { "" };
        let (element, target) = (self.element, self.target);
        format!("norm_{kind:?}{residual}{dropout}_{pass:?}_{hidden}_{element:?}_{target:?}")
            .to_lowercase()
    }

    fn forward_source(&self) -> Result<Source> {
        let Problem {
            kind,
            residual,
            dropout,
            ..
        } = self.problem;
        let layout = self.forward;
        emit(
            self.name(Pass::Forward),
            self.target,
            [layout.units, 1, 1],
            |s| {
                forward::norm_forward::NormForward::new(
                    s.settings,
                    s.device,
                    s.target,
                    buffer(),
                    optional_buffer(residual),
                    optional_buffer(dropout),
                    buffer(),
                    optional_buffer(kind == Kind::Layer),
                    buffer(),
                    optional_buffer(self.fused()),
                    buffer(),
                    (),
                    (),
                    elements::site(),
                    *self,
                    elem_type(self.element),
                    layout.vector,
                )
            },
        )
    }

    fn backward_source(&self) -> Result<Source> {
        let Problem {
            residual, dropout, ..
        } = self.problem;
        let layout = self.backward;
        emit(
            self.name(Pass::Backward),
            self.target,
            [layout.units, 1, 1],
            |s| {
                backward::norm_backward::NormBackward::new(
                    s.settings,
                    s.device,
                    s.target,
                    buffer(),
                    buffer(),
                    buffer(),
                    buffer(),
                    optional_buffer(dropout),
                    optional_buffer(residual),
                    buffer(),
                    optional_buffer(residual && dropout),
                    buffer(),
                    (),
                    (),
                    elements::site(),
                    *self,
                    elem_type(self.element),
                    layout.vector,
                )
            },
        )
    }

    fn reduce_source(&self) -> Result<Source> {
        emit(
            self.name(Pass::Reduce),
            self.target,
            [reduce::UNITS, 1, 1],
            |s| {
                reduce::norm_reduce::NormReduce::new(
                    s.settings,
                    s.device,
                    s.target,
                    buffer(),
                    buffer(),
                    (),
                    (),
                )
            },
        )
    }
}

/// What of the family stands in the catalog.
///
/// # Errors
/// A kernel that CubeCL cannot render.
pub fn sources(targets: &[Target]) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for &target in targets.iter().filter(|t| **t != Target::Gfx1100) {
        for (kind, hidden, fused) in [
            (Kind::Layer, 4096, false),
            (Kind::Layer, 4096, true),
            (Kind::Rms, 4096, true),
            (Kind::Layer, 25_600, false),
            (Kind::Layer, 128, false),
        ] {
            let problem = Problem {
                kind,
                hidden,
                residual: fused,
                dropout: fused,
            };
            let plan = Plan::choose(target, Element::Bf16, problem);
            sources.extend([plan.source(Pass::Forward)?, plan.source(Pass::Backward)?]);
        }
        let problem = Problem {
            kind: Kind::Layer,
            hidden: 4096,
            residual: false,
            dropout: false,
        };
        sources.push(Plan::choose(target, Element::Bf16, problem).source(Pass::Reduce)?);
    }
    Ok(sources)
}
