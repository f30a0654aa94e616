//! Against the definition in f64, of the same bf16.

use super::*;
use crate::element::Element;
use crate::product::Size;

fn numbers(count: usize, seed: usize) -> Vec<bf16> {
    let number = |i: usize| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0;
    (0..count).map(|i| Element::round(number(i))).collect()
}

#[test]
fn products_of_bf16_equal_their_definition() {
    for [rows, columns, depth] in [
        [1, 1, 1],
        [12, 32, 8],
        [13, 33, 257],
        [70, 50, 1300],
        [300, 200, 512],
    ] {
        let size = Size {
            rows,
            columns,
            depth,
        };
        let (a, b) = (numbers(rows * depth, 1), numbers(depth * columns, 2));
        for transposed in [[false, false], [true, false], [false, true]] {
            let strides = |turned: bool, along: [usize; 2]| {
                if turned { [1, along[0]] } else { [along[1], 1] }
            };
            let [left, right] = [
                strides(transposed[0], [rows, depth]),
                strides(!transposed[1], [columns, depth]),
            ];
            let at = |x: &[bf16], [across, deep]: [usize; 2], i: usize, d: usize| {
                f64::from(x[i * across + d * deep])
            };
            let operands = [
                Halves::new(&a, left[0], left[1], depth),
                Halves::new(&b, right[0], right[1], depth),
            ];
            let operands = [&operands[0] as &dyn Operand, &operands[1]];
            let mut sums = vec![1.0; rows * columns];
            bf16::sums(size, operands, &mut sums, true);
            let mut rounded = vec![bf16::ZERO; rows * columns];
            bf16::product(size, operands, &mut rounded, None);
            for row in 0..rows {
                for column in 0..columns {
                    let term = |d| at(&a, left, row, d) * at(&b, right, column, d);
                    let expected: f64 = (0..depth).map(term).sum();
                    let i = row * columns + column;
                    let error = (f64::from(sums[i]) - 1.0 - expected).abs();
                    assert!(
                        error < 1e-6 * (depth as f64 + 2.0),
                        "{size:?} {transposed:?}: off by {error}"
                    );
                    let error = (f64::from(rounded[i]) - expected).abs();
                    let bound = expected.abs() / 256.0 + 1e-6 * depth as f64;
                    assert!(error <= bound, "{size:?}: off by {error}, rounded");
                }
            }
        }
    }
}
