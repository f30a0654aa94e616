//! Which part of the copying of K and V each matrix instruction hides.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use super::copy::{locate, store};
use super::state::{Tiles, Work};
use crate::attention::plan::Plan;

/// Matrix instructions that hide the search for the places of the next tiles in memory.
const FINDING: usize = 2;

/// Part `index` of `parts` of `0..total`, the larger parts first.
pub(super) fn part(total: usize, parts: usize, index: usize) -> (usize, usize) {
    let bound = |index: usize| (index.min(parts) * total).div_ceil(parts);
    (bound(index), bound(index + 1))
}

/// Which of `count` matrix instructions is the first that hides the other work: by then the results of those before are there.
pub(super) fn late(count: usize) -> usize {
    2.min(count - 1)
}

/// Part `index` of `parts` of `0..total`, of which the first [`late`] have nothing.
pub(super) fn late_part(total: usize, parts: usize, index: usize) -> (usize, usize) {
    match index.checked_sub(late(parts)) {
        Some(index) => part(total, parts - late(parts), index),
        None => (0, 0),
    }
}

/// Writes to shared memory some of the items of K, then of V, that wait in registers.
#[cube]
pub(super) fn store_items<E: Numeric, WK: Size, WV: Size, SK: Size, SV: Size>(
    tiles: &mut Tiles<E, SK, SV>,
    key_half: u32,
    value_half: u32,
    #[comptime] items: (usize, usize),
    #[comptime] plan: Plan,
) {
    let (keys, values) = comptime!((plan.key_copy(), plan.value_copy()));
    #[unroll]
    for item in comptime!(items.0)..comptime!(items.1) {
        if comptime!(item < keys.turns()) {
            let layout = comptime!(plan.key_layout());
            let base = key_half * comptime!(layout.len() as u32);
            store::<E, WK, SK>(&mut tiles.keys, base, &tiles.next_keys, item, keys, layout);
        } else {
            let (layout, turn) = comptime!((plan.value_layout(), item - keys.turns()));
            let base = value_half * comptime!(layout.len() as u32);
            store::<E, WV, SV>(
                &mut tiles.values,
                base,
                &tiles.next_values,
                turn,
                values,
                layout,
            );
        }
    }
}

/// Finds the places of some of the accesses: to K from row `key` on, then to V from row `value` on.
#[cube]
pub(super) fn find(
    of_k: &mut Array<u32>,
    of_v: &mut Array<u32>,
    work: &Work,
    key: u32,
    value: u32,
    #[comptime] accesses: (usize, usize),
    #[comptime] plan: Plan,
) {
    let (keys, values) = comptime!((plan.key_copy(), plan.value_copy()));
    let count = comptime!(keys.accesses());
    let of_keys = comptime!((accesses.0.min(count), accesses.1.min(count)));
    let of_values = comptime!((accesses.0.max(count) - count, accesses.1.max(count) - count));
    locate(&work.keys, key, of_k, of_keys, keys);
    locate(&work.values, value, of_v, of_values, values);
}

/// How a step's copying follows its `count` matrix instructions for the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Copying {
    count: usize,
    items: usize,
    accesses: usize,
}

impl Copying {
    pub(super) fn of(plan: &Plan) -> Self {
        let (keys, values) = (plan.key_copy(), plan.value_copy());
        Self {
            count: plan.value_order().products(),
            items: keys.turns() + values.turns(),
            accesses: keys.accesses() + values.accesses(),
        }
    }

    /// What instruction `at` is followed by: items that are written to shared memory, and accesses whose place is found.
    pub(super) fn after(&self, at: usize) -> ((usize, usize), (usize, usize)) {
        let finding = self.count.saturating_sub(1 + FINDING).max(1);
        let items = part(self.items, finding, at);
        let accesses = match at.checked_sub(finding) {
            Some(at) => part(self.accesses, FINDING.min(self.count - finding), at),
            None => (0, 0),
        };
        (items, accesses)
    }

    /// Whether what was found is read after instruction `at`: at the end, where no wait for shared memory follows.
    pub(super) fn reads_after(&self, at: usize) -> bool {
        at + 1 == self.count
    }
}
