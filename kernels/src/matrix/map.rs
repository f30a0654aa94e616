//! Which element of a matrix each lane holds: (lane, element of the lane) to (row, column).

/// A coordinate as a function of lane and element: `scale * (lane / divide % modulo) + offset of the element`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Axis {
    /// Lanes that share a value before it changes.
    pub divide: usize,
    /// Values that the lanes take.
    pub modulo: usize,
    /// Distance of two neighbouring values.
    pub scale: usize,
    offsets: [u8; 16],
}

impl Axis {
    /// The part that depends on the lane; every element has offset 0.
    pub const fn lanes(divide: usize, modulo: usize, scale: usize) -> Self {
        Self {
            divide,
            modulo,
            scale,
            offsets: [0; 16],
        }
    }

    /// With `count` elements that count up in runs of `run`, the runs `stride` apart.
    pub const fn elements(mut self, count: usize, run: usize, stride: usize) -> Self {
        let mut e = 0;
        while e < count {
            self.offsets[e] = (e / run * stride + e % run) as u8;
            e += 1;
        }
        self
    }

    /// With the offsets of the first `count` elements written out.
    pub const fn table(mut self, count: usize, offsets: [u8; 8]) -> Self {
        let mut e = 0;
        while e < count {
            self.offsets[e] = offsets[e];
            e += 1;
        }
        self
    }

    /// What `element` adds to the coordinate of its lane.
    pub const fn offset(&self, element: usize) -> usize {
        self.offsets[element] as usize
    }

    /// The distinct coordinates that a lane's `count` elements have, as distances to the first, ascending.
    pub fn distinct(&self, count: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..count).map(|e| self.offset(e)).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Which of the [`Axis::distinct`] coordinates of `count` elements `element` has.
    pub fn number(&self, count: usize, element: usize) -> usize {
        let all = self.distinct(count);
        all.partition_point(|&offset| offset < self.offset(element))
    }

    /// The coordinate of `element` in `lane`.
    pub const fn at(&self, lane: usize, element: usize) -> usize {
        self.scale * (lane / self.divide % self.modulo) + self.offset(element)
    }
}

/// Where one matrix lies in the registers of a wave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Map {
    /// Elements that a lane holds.
    pub elements: usize,
    /// Row of an element.
    pub row: Axis,
    /// Column of an element.
    pub column: Axis,
}

impl Map {
    /// A map of `elements` a lane.
    pub const fn new(elements: usize, row: Axis, column: Axis) -> Self {
        Self {
            elements,
            row,
            column,
        }
    }

    /// Row and column of `element` (`0..elements`) of `lane`.
    pub const fn at(&self, lane: usize, element: usize) -> (usize, usize) {
        (self.row.at(lane, element), self.column.at(lane, element))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::instruction::{INSTRUCTIONS, Instruction, Unit};
    use super::*;

    /// The map reaches every element of a `rows x columns` matrix, each `copies` times.
    fn assert_covers((rows, columns): (usize, usize), lanes: usize, map: Map, copies: usize) {
        let mut reached = BTreeMap::new();
        for lane in 0..lanes {
            for e in 0..map.elements {
                *reached.entry(map.at(lane, e)).or_insert(0) += 1;
            }
        }
        let all: BTreeMap<_, _> = (0..rows)
            .flat_map(|r| (0..columns).map(move |c| ((r, c), copies)))
            .collect();
        assert_eq!(reached, all);
    }

    fn named(name: &str) -> Instruction {
        let has = |i: &&Instruction| matches!(i.unit, Unit::Mfma { builtin, .. } if builtin.ends_with(name));
        *INSTRUCTIONS.iter().find(has).unwrap()
    }

    #[test]
    fn each_map_is_a_bijection_onto_its_tile_except_where_lanes_repeat() {
        for i in INSTRUCTIONS {
            // WMMA repeats A and B in the upper lanes; with plain multiply-adds lanes share A, and groups of them B.
            let (a, b) = match i.unit {
                Unit::Wmma { .. } => (2, 2),
                Unit::Fma => (i.n, i.m / 4),
                Unit::Mfma { .. } | Unit::Mma => (1, 1),
            };
            assert_covers((i.m, i.k), i.lanes, i.a, a);
            assert_covers((i.k, i.n), i.lanes, i.b, b);
            assert_covers((i.m, i.n), i.lanes, i.d, 1);
        }
    }

    #[test]
    fn single_entries_are_where_the_isa_puts_them() {
        // Written out by hand: A[5][6], B[6][5] and D[13][1] of the 32x32x8 form.
        let wide = named("32x32x8f16");
        assert_eq!(wide.a.at(37, 2), (5, 6));
        assert_eq!(wide.b.at(37, 2), (6, 5));
        assert_eq!(wide.d.at(33, 5), (13, 1));
        // The 16x16 form: lanes 16..32 hold rows 4..8 of D.
        let small = named("16x16x16f16");
        assert_eq!(small.a.at(18, 3), (2, 7));
        assert_eq!(small.d.at(16, 0), (4, 0));
        assert_eq!(small.d.at(63, 3), (15, 15));
        // Double precision: neighbouring rows lie in neighbouring groups of 16 lanes.
        let double = named("16x16x4f64");
        assert_eq!(double.d.at(16, 0), (1, 0));
        assert_eq!(double.d.at(0, 1), (4, 0));
        assert_eq!(double.d.at(50, 2), (11, 2));
    }

    #[test]
    fn nvidia_entries_are_the_transposed_ones_of_the_ptx_isa() {
        let mma = INSTRUCTIONS.iter().find(|i| i.unit == Unit::Mma).unwrap();
        // PTX: lane 5 is group 1, thread 1. Its a2 is A[1 + 8][2], b3 is B[2 + 1 + 8][1], c3 is C[1 + 8][2 + 1].
        assert_eq!(mma.b.at(5, 2), (2, 9));
        assert_eq!(mma.a.at(5, 3), (1, 11));
        assert_eq!(mma.d.at(5, 3), (3, 9));
    }

    /// Attention multiplies a second time with what the first product left in D: element `e` of D becomes element
    /// `e % fragment` of a B whose rows are taken in the order in which D holds them. That needs no exchange if the lanes
    /// that hold a column in D hold it in B too, and if A's lane groups are those of D's rows.
    #[test]
    fn the_accumulator_feeds_b_without_an_exchange_except_on_rdna3_and_in_groups() {
        for i in INSTRUCTIONS {
            let same_columns =
                (i.b.column.divide, i.b.column.modulo) == (i.d.column.divide, i.d.column.modulo);
            let same_groups =
                (i.a.column.divide, i.a.column.modulo) == (i.d.row.divide, i.d.row.modulo);
            let grouped = i.unit == Unit::Fma && i.m > 4;
            assert_eq!(
                same_columns && same_groups,
                !matches!(i.unit, Unit::Wmma { .. }) && !grouped,
                "{i:?}"
            );
        }
    }
}
