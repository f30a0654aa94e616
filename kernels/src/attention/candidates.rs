//! Other plans that compute the same bits.

use super::plan::{Plan, SIZES};
use super::problem::Problem;
use crate::error::Result;
use crate::hip::emit::Source;
use crate::matrix::instruction::{Element, Target, Unit};

impl Plan {
    /// This plan, and those with half and a quarter of its waves, but not fewer than two: a workgroup has fewer queries.
    /// On RDNA3 this plan only: its 256 registers a lane are taken. In blocks too: a block's keys go with the waves. On NVIDIA not
    /// fewer than four, and this plan only in f32 and with long rows, for lack of registers.
    ///
    /// Each gives the same bits: a wave has the same queries in all of them, and meets the same tiles of keys in the same
    /// order. A workgroup of more queries only meets more keys that are masked for some, which leaves their sums as they are.
    /// The instruction and the keys of a tile decide that order, and stay. More waves than the table's would leave each too
    /// few registers, and a few waves would have to hold a whole tile of K and V on its way to shared memory.
    pub fn candidates(&self) -> Vec<Self> {
        let least = match self.instruction.unit {
            _ if self.exchanges() || self.in_blocks() => self.waves,
            Unit::Mma if self.variant.head_dim > 128 => self.waves,
            Unit::Mma => 4,
            _ => 2,
        };
        let fewer = [self.waves / 2, self.waves / 4];
        let fewer = fewer.into_iter().filter(|&waves| waves >= least);
        let plan = |waves| Self {
            waves,
            ..self.clone()
        };
        std::iter::once(self.waves).chain(fewer).map(plan).collect()
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
            let plans = Plan::choose(target, element, &problem)?.candidates();
            for plan in &plans[1..] {
                let name = format!("{}_{}waves", plan.name(), plan.waves);
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
