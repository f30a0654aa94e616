//! Other plans that compute the same bits.

use super::plan::Plan;

impl Plan {
    /// This plan, and those with half and a quarter of its waves: a workgroup has fewer queries.
    ///
    /// Each gives the same bits: a wave has the same queries in all of them, and meets the same tiles of keys in the same order.
    /// A workgroup of more queries only meets more keys that are masked for some, which leaves their sums as they are. The
    /// instruction and the keys of a tile decide that order, and stay. More waves than the table's would leave each too few
    /// registers.
    pub fn candidates(&self) -> Vec<Self> {
        let waves = [self.waves, self.waves / 2, self.waves / 4];
        let fewer = waves.into_iter().filter(|&waves| waves > 0);
        fewer
            .map(|waves| Self {
                waves,
                ..self.clone()
            })
            .collect()
    }
}
