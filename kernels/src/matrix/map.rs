//! Which element of a matrix each lane holds: (lane, element of the lane) to (row, column).
//!
//! Lanes run along the outer dimension first (rows of A, columns of B and D), then along the other one. Sources as in
//! [`super::instruction`].

use super::instruction::{Element, Instruction, WAVE};

impl Instruction {
    /// Row and column of A, `(i, k)`, that `lane` (`0..64`) holds as its `element`
    /// (`0..` [`Instruction::operand_elements`]).
    pub const fn a(&self, lane: usize, element: usize) -> (usize, usize) {
        (
            lane % self.m,
            lane / self.m * self.operand_elements() + element,
        )
    }

    /// Row and column of B, `(k, j)`, that `lane` holds as its `element`.
    pub const fn b(&self, lane: usize, element: usize) -> (usize, usize) {
        (
            lane / self.n * self.operand_elements() + element,
            lane % self.n,
        )
    }

    /// Row and column of C and D, `(i, j)`, that `lane` holds as its `element`
    /// (`0..` [`Instruction::accumulator_elements`]).
    pub const fn d(&self, lane: usize, element: usize) -> (usize, usize) {
        let (lanes_a_column, run) = (WAVE / self.n, self.run());
        let row = run * (lanes_a_column * (element / run) + lane / self.n) + element % run;
        (row, lane % self.n)
    }

    /// Consecutive rows of D in one lane, before the next lane's rows follow.
    const fn run(&self) -> usize {
        match self.accumulator {
            Element::F64 => 1,
            _ => 4,
        }
    }

    /// Whether D, converted to the operand type, can be the B of the same instruction without moving between lanes:
    /// elements `E s .. E (s + 1)` of D, `E` = [`Instruction::operand_elements`], are B's fragment for rows
    /// `k s .. k (s + 1)` of D.
    ///
    /// So attention needs no exchange between its two products: `S^T = K Q^T` leaves scores in D, and `O^T = V^T P^T`
    /// takes them as B.
    pub fn d_feeds_b(&self) -> bool {
        let fragment = self.operand_elements();
        (0..WAVE).all(|lane| {
            (0..self.accumulator_elements()).all(|element| {
                let (k, j) = self.b(lane, element % fragment);
                self.d(lane, element) == (self.k * (element / fragment) + k, j)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::instruction::{INSTRUCTIONS, Target};
    use super::*;

    /// The map reaches every element of a `rows x columns` matrix, each exactly once.
    fn assert_bijection(
        (rows, columns): (usize, usize),
        elements: usize,
        map: impl Fn(usize, usize) -> (usize, usize),
    ) {
        let lanes = 0..WAVE;
        let held: Vec<_> = lanes
            .flat_map(|lane| (0..elements).map(move |e| (lane, e)))
            .collect();
        let reached: BTreeSet<_> = held.iter().map(|&(lane, e)| map(lane, e)).collect();
        let all: BTreeSet<_> = (0..rows)
            .flat_map(|r| (0..columns).map(move |c| (r, c)))
            .collect();
        assert_eq!(held.len(), rows * columns);
        assert_eq!(reached, all);
    }

    fn named(builtin: &str) -> Instruction {
        *INSTRUCTIONS
            .iter()
            .find(|i| i.builtin.ends_with(builtin))
            .unwrap()
    }

    #[test]
    fn each_map_holds_every_element_of_its_matrix_once() {
        for i in INSTRUCTIONS {
            assert_bijection((i.m, i.k), i.operand_elements(), |lane, e| i.a(lane, e));
            assert_bijection((i.k, i.n), i.operand_elements(), |lane, e| i.b(lane, e));
            assert_bijection((i.m, i.n), i.accumulator_elements(), |lane, e| i.d(lane, e));
        }
    }

    #[test]
    fn b_is_laid_out_as_the_transpose_of_a() {
        for i in INSTRUCTIONS {
            for (lane, e) in (0..WAVE).flat_map(|l| (0..i.operand_elements()).map(move |e| (l, e)))
            {
                let (row, k) = i.a(lane, e);
                assert_eq!(i.b(lane, e), (k, row), "{i:?}");
            }
        }
    }

    #[test]
    fn single_entries_are_where_the_isa_puts_them() {
        // Written out by hand: A[5][6], B[6][5] and D[13][1] of the 32x32x8 form.
        let wide = named("32x32x8f16");
        assert_eq!(wide.a(37, 2), (5, 6));
        assert_eq!(wide.b(37, 2), (6, 5));
        assert_eq!(wide.d(33, 5), (13, 1));
        // The 16x16 form: lanes 16..32 hold rows 4..8 of D.
        let small = named("16x16x16f16");
        assert_eq!(small.a(18, 3), (2, 7));
        assert_eq!(small.d(16, 0), (4, 0));
        assert_eq!(small.d(63, 3), (15, 15));
        // Double precision: neighbouring rows lie in neighbouring groups of 16 lanes.
        let double = named("16x16x4f64");
        assert_eq!(double.d(16, 0), (1, 0));
        assert_eq!(double.d(0, 1), (4, 0));
        assert_eq!(double.d(50, 2), (11, 2));
    }

    #[test]
    fn the_accumulator_of_every_half_precision_form_feeds_b() {
        for i in INSTRUCTIONS {
            // Four rows of D lie in one lane, so a fragment must hold four of k (one of k for f64's single rows).
            let expected = match i.operand {
                Element::F16 | Element::Bf16 | Element::F64 => true,
                Element::I8 => i.passes(Target::Gfx90a).is_some(),
                Element::F32 | Element::I32 => false,
            };
            assert_eq!(i.d_feeds_b(), expected, "{i:?}");
        }
    }
}
