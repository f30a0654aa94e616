//! Other plans that compute the same bits.

use super::super::plan::SIZES;
use super::super::problem::Problem;
use super::ends::GradientStrides;
use super::plan::{Plan, Role};
use super::plans::Plans;
use crate::error::Result;
use crate::hip::emit::Source;
use crate::matrix::instruction::{Element, Target, Unit};

impl Plans {
    /// These plans, and others in which the kernel for dK and dV or the one for dQ has half as many waves, or stages half as
    /// many rows at a time.
    ///
    /// Each gives the same bits: a wave has the same columns in all of them, and adds what the rows contribute one instruction
    /// after the other, in the order of the rows. Which rows are staged together does not enter the sums; of those that
    /// are staged in vain, the contribution is zero.
    pub fn candidates(&self) -> Vec<Self> {
        let mut all = vec![*self];
        for change in [Plan::fewer_waves, Plan::fewer_rows] {
            let key_value = change(self.key_value);
            let query = change(self.query);
            let changed = [Self { key_value, ..*self }, Self { query, ..*self }];
            all.extend(changed.into_iter().filter(|plans| plans != self));
        }
        all
    }
}

impl Plan {
    /// Half the waves of eight, where registers are left for twice as large a part of a stage: not on RDNA3, nor on NVIDIA in f32, with
    /// long rows, or for dK and dV with stages of many.
    fn fewer_waves(self) -> Self {
        let left = match self.instruction.unit {
            Unit::Wmma { .. } => false,
            Unit::Mma if self.role == Role::KeyValue => self.split == 1 && self.row_tiles == 1,
            _ => self.split == 1 && !self.spreads(),
        };
        Self {
            waves: if self.waves == 8 && left {
                4
            } else {
                self.waves
            },
            ..self
        }
    }

    /// Half the rows, except on NVIDIA in f32: its compiler then spills to make room for a second workgroup.
    fn fewer_rows(self) -> Self {
        Self {
            row_tiles: if self.row_tiles > 1 && !self.spreads() {
                self.row_tiles / 2
            } else {
                self.row_tiles
            },
            ..self
        }
    }
}

/// The other plans for the sizes of the catalog, those whose name is `wanted`.
///
/// # Errors
/// A kernel that CubeCL cannot render.
pub(crate) fn sources(target: Target, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for element in [Element::Bf16, Element::F16, Element::F32] {
        for (head_dim, causal) in SIZES {
            let problem = Problem::new(1, 1, 1024, 1024, head_dim).causal(causal);
            let gradient = GradientStrides::like(&problem);
            let table = Plans::choose(target, element, &problem, &gradient, [false; 2])?;
            for plans in &table.candidates()[1..] {
                let plan = match plans.key_value == table.key_value {
                    true => plans.query,
                    false => plans.key_value,
                };
                let name = format!("{}_{}waves_{}rows", plan.name(), plan.waves, plan.rows());
                if wanted(&name) {
                    sources.push(Source {
                        name,
                        ..plan.source()?
                    });
                }
            }
        }
    }
    Ok(sources)
}
