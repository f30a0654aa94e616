//! Other plans that compute the same bits.

use super::plan::Plan;

impl Plan {
    /// This plan, and those with half and a quarter of its waves, but not fewer than two: a workgroup has fewer queries.
    /// On RDNA3 this plan only: its 256 registers a lane are taken. In blocks too: a block's keys go with the waves.
    ///
    /// Each gives the same bits: a wave has the same queries in all of them, and meets the same tiles of keys in the same
    /// order. A workgroup of more queries only meets more keys that are masked for some, which leaves their sums as they are.
    /// The instruction and the keys of a tile decide that order, and stay. More waves than the table's would leave each too
    /// few registers, and a few waves would have to hold a whole tile of K and V on its way to shared memory.
    pub fn candidates(&self) -> Vec<Self> {
        let only = self.exchanges() || self.in_blocks();
        let least = if only { self.waves } else { 2 };
        let fewer = [self.waves / 2, self.waves / 4];
        let fewer = fewer.into_iter().filter(|&waves| waves >= least);
        let plan = |waves| Self {
            waves,
            ..self.clone()
        };
        std::iter::once(self.waves).chain(fewer).map(plan).collect()
    }
}
