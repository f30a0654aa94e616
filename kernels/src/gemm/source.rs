//! The kernels' texts.

use cubecl_core::ir::ElemType;
use cubecl_core::prelude::*;

use super::plan::Plan;
use super::problem::{Activation, Epilogue, Layout, Shape};
use super::tile::Role;
use super::{grouped, product, reduce};
use crate::error::Result;
use crate::hip::emit::{Setting, Source, buffer, elem_type, emit};
use crate::matrix::instruction::{Element, Instruction, Target};

/// A buffer that only some plans have.
fn option<T: LaunchArg<CompilationArg = BufferCompilationArg>>(
    given: bool,
) -> ComptimeOptionCompilationArg<T> {
    match given {
        true => ComptimeOptionCompilationArg::Some(buffer()),
        false => ComptimeOptionCompilationArg::None,
    }
}

impl Plan {
    /// CubeCL's names of the types of operands and of what the product's kernel writes.
    pub(super) fn types(&self) -> [ElemType; 2] {
        [elem_type(self.element), elem_type(self.tile_output())]
    }

    /// Vector sizes of accesses, chunks and fragments.
    pub(super) const fn sizes(&self) -> [usize; 6] {
        let Instruction { a, b, d, .. } = self.instruction;
        [
            self.width.0,
            self.width.1,
            self.chunk(),
            a.elements,
            b.elements,
            d.elements,
        ]
    }

    /// The product's kernel.
    ///
    /// # Errors
    /// A plan without a kernel.
    pub fn source(&self, name: impl Into<String>) -> Result<Source> {
        self.check()?;
        let e = self.tile_epilogue();
        emit(
            name,
            self.target,
            [self.units() as u32, 1, 1],
            |s: Setting| {
                product::gemm::Gemm::new(
                    s.settings,
                    s.device,
                    s.target,
                    buffer(),
                    buffer(),
                    buffer(),
                    option(e.bias),
                    option(e.reads_other()),
                    option(e.save),
                    option(self.sums_of.is_some()),
                    (),
                    (),
                    (),
                    (),
                    (),
                    (),
                    (),
                    (),
                    (),
                    (),
                    *self,
                    self.types(),
                    self.sizes(),
                )
            },
        )
    }

    /// The kernel for many products at once.
    ///
    /// # Errors
    /// A plan without a kernel.
    pub fn grouped_source(&self, name: impl Into<String>) -> Result<Source> {
        self.check_grouped()?;
        let e = self.epilogue;
        emit(
            name,
            self.target,
            [self.units() as u32, 1, 1],
            |s: Setting| {
                grouped::grouped::Grouped::new(
                    s.settings,
                    s.device,
                    s.target,
                    buffer(),
                    buffer(),
                    buffer(),
                    option(e.bias),
                    option(e.reads_other()),
                    option(e.save),
                    buffer(),
                    (),
                    (),
                    *self,
                    self.types(),
                    self.sizes(),
                )
            },
        )
    }

    /// The kernel that adds the parts of a split product.
    ///
    /// # Errors
    /// A plan without a kernel.
    pub fn reduction_source(&self, name: impl Into<String>) -> Result<Source> {
        self.check()?;
        let e = self.epilogue;
        let types = [elem_type(self.element), elem_type(self.output)];
        emit(
            name,
            self.target,
            [reduce::UNITS as u32, 1, 1],
            |s: Setting| {
                reduce::reduce::Reduce::new(
                    s.settings,
                    s.device,
                    s.target,
                    buffer(),
                    buffer(),
                    option(e.bias),
                    option(e.reads_other()),
                    option(e.save),
                    (),
                    (),
                    (),
                    (),
                    *self,
                    types,
                )
            },
        )
    }
}

/// The family's part of the catalog: kernels for large aligned shapes.
///
/// # Errors
/// A kernel that CubeCL cannot render.
pub fn sources(targets: &[Target]) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for &target in targets {
        let gpu = target.name();
        for (element, name) in [
            (Element::F16, "f16"),
            (Element::Bf16, "bf16"),
            (Element::F32, "f32"),
        ] {
            if target == Target::Gfx1100 && element == Element::F32 {
                continue;
            }
            for (layout, layout_name) in
                [(Layout::Nt, "nt"), (Layout::Nn, "nn"), (Layout::Tn, "tn")]
            {
                let plan = large(target, element, element, layout, Epilogue::default())?;
                sources.push(plan.source(format!("gemm_{layout_name}_{name}_{gpu}"))?);
            }
        }
        fused(target, gpu, &mut sources)?;
    }
    Ok(sources)
}

/// The other plans for the catalog's plain products, those whose name is `wanted`.
///
/// # Errors
/// A kernel that CubeCL cannot render.
pub(crate) fn candidates(target: Target, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for element in [Element::F16, Element::Bf16, Element::F32] {
        for layout in [Layout::Nt, Layout::Nn, Layout::Tn] {
            let plan = large(target, element, element, layout, Epilogue::default())?;
            let shape = Shape::contiguous(layout, 1, 4096, 4096, 4096, false);
            for plan in &plan.candidates(&shape)[1..] {
                let (waves, tiles) = (plan.tiling.waves, plan.tiling.tiles);
                let name = format!(
                    "gemm_{layout:?}_{element:?}_{}_{}x{}waves_{}x{}tiles",
                    target.name(),
                    waves.0,
                    waves.1,
                    tiles.0,
                    tiles.1
                );
                let name = name.to_lowercase();
                if wanted(&name) {
                    sources.push(plan.source(name)?);
                }
            }
        }
    }
    Ok(sources)
}

/// The plan for a large aligned product.
fn large(
    target: Target,
    element: Element,
    output: Element,
    layout: Layout,
    epilogue: Epilogue,
) -> Result<Plan> {
    let shape = Shape::contiguous(layout, 1, 4096, 4096, 4096, epilogue.activation.paired());
    Plan::choose(target, (element, output), layout, &shape, epilogue)
}

/// The forms of a transformer's linear layers, in bf16.
fn fused(target: Target, gpu: &str, sources: &mut Vec<Source>) -> Result<()> {
    let none = Epilogue::default();
    let element = Element::Bf16;
    let forms = [
        (
            "nt_bias_gelu",
            Layout::Nt,
            Epilogue {
                bias: true,
                activation: Activation::Gelu,
                save: true,
                ..none
            },
        ),
        (
            "nt_swiglu",
            Layout::Nt,
            Epilogue {
                activation: Activation::SwiGlu,
                save: true,
                ..none
            },
        ),
        (
            "nt_bias_residual",
            Layout::Nt,
            Epilogue {
                bias: true,
                residual: true,
                ..none
            },
        ),
        (
            "nn_gelu_backward",
            Layout::Nn,
            Epilogue {
                activation: Activation::GeluBackward,
                ..none
            },
        ),
        (
            "nn_swiglu_backward",
            Layout::Nn,
            Epilogue {
                activation: Activation::SwiGluBackward,
                ..none
            },
        ),
    ];
    for (form, layout, epilogue) in forms {
        let plan = large(target, element, element, layout, epilogue)?;
        sources.push(plan.source(format!("gemm_{form}_bf16_{gpu}"))?);
    }
    let weight = large(
        target,
        element,
        Element::F32,
        Layout::Tn,
        Epilogue {
            accumulate: true,
            ..none
        },
    )?;
    sources.push(
        weight
            .with_sums_of(Role::Rows)?
            .source(format!("gemm_tn_accumulate_bias_bf16_{gpu}"))?,
    );
    // As a layer takes it whose weight lies as [in, out].
    let layer = large(target, element, element, Layout::Tn, none)?;
    sources.push(
        layer
            .with_sums_of(Role::Columns)?
            .source(format!("gemm_tn_bias_bf16_{gpu}"))?,
    );
    sources.push(weight.split().source(format!("gemm_tn_split_bf16_{gpu}"))?);
    sources.push(
        weight
            .split()
            .reduction_source(format!("gemm_reduction_bf16_{gpu}"))?,
    );
    sources.push(weight.grouped_source(format!("gemm_grouped_tn_bf16_{gpu}"))?);
    let experts = large(target, element, element, Layout::Nt, none)?;
    sources.push(experts.grouped_source(format!("gemm_grouped_nt_bf16_{gpu}"))?);
    Ok(())
}
