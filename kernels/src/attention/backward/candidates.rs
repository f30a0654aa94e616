//! Other plans that compute the same bits.

use super::plan::{Plan, Plans};
use crate::matrix::instruction::Unit;

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
    /// Half the waves of eight. Where the table has four, and on RDNA3, no registers are left for twice as large a
    /// part of a stage.
    const fn fewer_waves(self) -> Self {
        let rdna3 = matches!(self.instruction.unit, Unit::Wmma { .. });
        Self {
            waves: if self.waves == 8 && !rdna3 {
                4
            } else {
                self.waves
            },
            ..self
        }
    }

    const fn fewer_rows(self) -> Self {
        Self {
            row_tiles: if self.row_tiles > 1 {
                self.row_tiles / 2
            } else {
                1
            },
            ..self
        }
    }
}
