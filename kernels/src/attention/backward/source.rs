//! The kernels' texts.

use cubecl_core::CubeKernel;
use cubecl_core::ir::ElemType;

use super::super::arguments::{BIAS, GEOMETRY, STRIDES};
use super::super::bias::Form;
use super::super::plan::SIZES;
use super::super::problem::{Problem, Variant};
use super::bias::{SharedCompilationArg, mask, pair};
use super::ends::GradientStridesCompilationArg;
use super::kernels::{key_value, query, statistics};
use super::plan::{BLOCK, Plan, Role};
use crate::error::Result;
use crate::hip::emit::{Setting, Source, buffer, elem_type, emit};
use crate::matrix::instruction::{Element, Target, Unit};

const GRADIENT: GradientStridesCompilationArg = GradientStridesCompilationArg {
    o: STRIDES,
    q: STRIDES,
    k: STRIDES,
    v: STRIDES,
};

const SHARED: SharedCompilationArg = SharedCompilationArg {
    batch: (),
    entries: (),
    heads: (),
    members: (),
    strides: BIAS,
};

impl Plan {
    /// Sizes of the vectors that its kernels name V, W, NA, NB, ND and P.
    pub(super) fn sizes(&self) -> [usize; 6] {
        let i = &self.instruction;
        let (a, b, d) = (i.a.elements, i.b.elements, i.d.elements);
        [self.width, self.staged_width(), a, b, d, (b / 2).max(1)]
    }

    /// Its name in the catalog.
    pub fn name(&self) -> String {
        let Variant {
            head_dim,
            causal,
            bias,
            packed,
            dropout,
        } = self.variant;
        let role = match self.role {
            Role::KeyValue => "key_value",
            Role::Query => "query",
            Role::Pair => "pair",
        };
        let mut name = format!("attention_backward_{role}_d{head_dim}");
        for (on, switch) in [
            (causal, "_causal"),
            (bias[0], "_bias1"),
            (bias[1], "_bias2"),
            (packed, "_packed"),
            (dropout, "_dropout"),
            (self.width < BLOCK, "_narrow"),
            (self.instruction.unit == Unit::Fma, "_fma"),
        ] {
            if on {
                name.push_str(switch);
            }
        }
        format!("{name}_{:?}_{:?}", self.element, self.target).to_lowercase()
    }

    fn emit<K: CubeKernel>(
        &self,
        name: String,
        build: impl FnOnce(Setting, ElemType) -> K,
    ) -> Result<Source> {
        let element = elem_type(self.element);
        emit(name, self.target, [self.units() as u32, 1, 1], |s| {
            build(s, element)
        })
    }

    /// The kernel's text.
    ///
    /// # Errors
    /// [`Target::Portable`], or a kernel that CubeCL cannot render.
    #[rustfmt::skip] // A line for the setting, one for the buffers, one for the rest.
    pub fn source(&self) -> Result<Source> {
        let b = buffer;
        match self.role {
            Role::KeyValue => self.emit(self.name(), |s, element| key_value::KeyValue::new(
                s.settings, s.device, s.target,
                b(), b(), b(), b(), b(), b(), b(), b(), b(), b(), b(), b(), b(),
                GEOMETRY, GRADIENT, *self, element, self.sizes(),
            )),
            Role::Query => self.emit(self.name(), |s, element| query::Query::new(
                s.settings, s.device, s.target,
                b(), b(), b(), b(), b(), b(), b(), b(), b(), b(), b(),
                GEOMETRY, GRADIENT, *self, element, self.sizes(),
            )),
            Role::Pair => self.emit(self.name(), |s, element| pair::Pair::new(
                s.settings, s.device, s.target,
                b(), b(), b(), b(), b(), b(), b(), b(), b(), b(), b(),
                GEOMETRY, GRADIENT, SHARED, *self, element, self.sizes(),
            )),
        }
    }

    /// The kernel of the rows' statistics.
    ///
    /// # Errors
    /// [`Target::Portable`], or a kernel that CubeCL cannot render.
    #[rustfmt::skip]
    pub fn statistics_source(&self) -> Result<Source> {
        let b = buffer;
        let name = self.name().replacen("query", "statistics", 1);
        self.emit(name, |s, element| statistics::Statistics::new(
            s.settings, s.device, s.target,
            b(), b(), b(), b(), b(), b(),
            GEOMETRY, GRADIENT, *self, element, self.width,
        ))
    }

    /// The kernel that sums the gradient of a bias that varies along keys.
    ///
    /// # Errors
    /// [`Target::Portable`], or a kernel that CubeCL cannot render.
    pub fn mask_source(&self) -> Result<Source> {
        let name = format!("attention_backward_mask_{:?}", self.target).to_lowercase();
        self.emit(name, |s, _| {
            let packed = self.variant.packed;
            mask::Mask::new(
                s.settings,
                s.device,
                s.target,
                buffer(),
                buffer(),
                buffer(),
                (),
                SHARED,
                packed,
            )
        })
    }
}

/// What of this family stands in the catalog.
///
/// # Errors
/// A kernel that CubeCL cannot render.
pub fn sources(targets: &[Target]) -> Result<Vec<Source>> {
    let roles = [Role::KeyValue, Role::Query];
    let mut sources = Vec::new();
    for &target in targets {
        let wmma = target == Target::Gfx1100;
        // RDNA3 multiplies no f32, and has registers for short rows only: others spill.
        let elements = [Element::Bf16, Element::F16, Element::F32];
        for element in elements.into_iter().take(if wmma { 2 } else { 3 }) {
            for (head_dim, causal) in SIZES.into_iter().take(if wmma { 1 } else { SIZES.len() }) {
                let problem = Problem::new(1, 1, 1024, 1024, head_dim).causal(causal);
                for role in roles {
                    sources.push(Plan::choose(target, element, &problem, role, BLOCK)?.source()?);
                }
            }
        }
        // The Evoformer's attention: a mask and pair biases.
        let mut evoformer = Problem::new(1, 4, 256, 256, 32);
        evoformer.bias = [Form::Keys, Form::Pairs].map(|form| Some(form.strides(256)));
        let plan = |role| Plan::choose(target, Element::Bf16, &evoformer, role, BLOCK);
        for role in [Role::KeyValue, Role::Query, Role::Pair] {
            sources.push(plan(role)?.source()?);
        }
        sources.push(plan(Role::Query)?.statistics_source()?);
        sources.push(plan(Role::KeyValue)?.mask_source()?);
    }
    Ok(sources)
}
