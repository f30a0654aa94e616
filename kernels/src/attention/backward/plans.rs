//! The kernels of a backward pass together, and the memory that they need.

use super::super::bias::{Form, serve};
use super::super::problem::Problem;
use super::ends::GradientStrides;
use super::plan::{Plan, Role, accesses, check, width};
use crate::error::{Error, Result};
use crate::matrix::instruction::{Element, INSTRUCTIONS, Instruction, Target, Unit};

/// The kernels of a backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Plans {
    /// For dK and dV.
    pub(crate) key_value: Plan,
    /// For dQ, and for the statistics of the rows.
    pub(crate) query: Plan,
    /// For the gradient of a bias that varies along queries and keys.
    pub(crate) pair: Plan,
}

impl Plans {
    /// The kernels for `problem`, whose gradients lie at `gradient`. `wanted`: the biases whose gradients are.
    ///
    /// # Errors
    /// Those of [`Plan::choose`].
    pub fn choose(
        target: Target,
        element: Element,
        problem: &Problem,
        gradient: &GradientStrides,
        wanted: [bool; 2],
    ) -> Result<Self> {
        let width = width(problem, gradient);
        let plan = |role| Plan::choose(target, element, problem, role, width);
        let mut key_value = plan(Role::KeyValue)?;
        let wants = |i: usize| wanted[i] && key_value.bias[i].is_some_and(|b| b.form == Form::Keys);
        key_value.key_sums = wants(0) || wants(1);
        Ok(Self {
            key_value,
            query: plan(Role::Query)?,
            pair: plan(Role::Pair)?,
        })
    }

    /// The kernels of plain multiply-adds, which every target has, in blocks.
    ///
    /// # Errors
    /// Those of [`Plan::choose`].
    pub fn plain(
        target: Target,
        element: Element,
        problem: &Problem,
        gradient: &GradientStrides,
        wanted: [bool; 2],
    ) -> Result<Self> {
        let plans = Self::choose(Target::Portable, element, problem, gradient, wanted)?;
        Ok(plans.map(|plan| Plan { target, ..plan }))
    }

    /// These kernels by plain multiply-adds of which lanes share an operand, in place of matrix instructions.
    ///
    /// # Errors
    /// An element type without them.
    pub fn by_multiply_adds(self) -> Result<Self> {
        let element = self.query.element;
        let plain = |i: &&Instruction| i.unit == Unit::Fma && i.operand == element;
        let Some(&instruction) = INSTRUCTIONS.iter().find(plain) else {
            return Err(Error::argument(
                "attention backward",
                format!("elements are {element:?}"),
                "use f16, bf16 or f32",
            ));
        };
        Ok(self.map(|plan| Plan {
            instruction,
            row_tiles: 4,
            waves: 8,
            ..plan
        }))
    }

    fn map(self, change: impl Fn(Plan) -> Plan) -> Self {
        Self {
            key_value: change(self.key_value),
            query: change(self.query),
            pair: change(self.pair),
        }
    }

    /// The kernel for dK and dV.
    pub const fn key_value(&self) -> &Plan {
        &self.key_value
    }

    /// The kernel for dQ, which has the statistics of the rows too.
    pub const fn query(&self) -> &Plan {
        &self.query
    }

    /// The kernel for the gradient of a bias that varies along queries and keys.
    pub const fn pair(&self) -> &Plan {
        &self.pair
    }

    /// Checks that these are kernels for `problem`, whose gradients lie at `gradient`, and for the gradients of `wanted` biases.
    ///
    /// # Errors
    /// What another problem's kernels take for granted, or lack.
    pub(super) fn check(
        &self,
        problem: &Problem,
        gradient: &GradientStrides,
        wanted: [bool; 2],
    ) -> Result<()> {
        check(problem)?;
        let (variant, most) = (problem.variant(), width(problem, gradient));
        let wrong = |what: String| {
            let remedy = "choose the plans for this problem";
            Err(Error::argument("attention backward", what, remedy))
        };
        for plan in [&self.key_value, &self.query, &self.pair] {
            if plan.variant != variant {
                return wrong(format!(
                    "the plans are for {:?}, the problem is {variant:?}",
                    plan.variant
                ));
            }
            if plan.width > most {
                return wrong(format!(
                    "the plans take {} elements at once, the strides allow {most}",
                    plan.width
                ));
            }
            let fitting = accesses(problem, plan.element, &plan.instruction, plan.role);
            if !serve(plan.bias, fitting) {
                return wrong(format!(
                    "the plans read biases as {:?}, they lie as {fitting:?}",
                    plan.bias
                ));
            }
        }
        let mask = |i: usize| wanted[i] && problem.bias[i].map(Form::of) == Some(Form::Keys);
        if !self.key_value.key_sums && (mask(0) || mask(1)) {
            return wrong(
                "the gradient of a mask, for which the plans leave no sums over the queries".into(),
            );
        }
        Ok(())
    }
}

/// Device memory that a backward pass needs beside its inputs and results; linear in the length of the sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workspace {
    /// f32 elements of the rows' statistics.
    pub statistics: usize,
    /// f32 elements of the sums of dS over the queries; 0 if they are not needed.
    pub key_sums: usize,
}

impl Workspace {
    /// Of `problem`, whose log-sum-exp has `rows` elements.
    pub fn new(problem: &Problem, plans: &Plans, rows: usize) -> Self {
        let Problem {
            batch, heads, keys, ..
        } = *problem;
        let sizes = [batch, heads, keys].map(|n| n as usize);
        let sums = sizes.into_iter().fold(1, usize::saturating_mul);
        Self {
            statistics: 2 * rows,
            key_sums: if plans.key_value.key_sums { sums } else { 0 },
        }
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        (self.statistics + self.key_sums) * size_of::<f32>()
    }
}
