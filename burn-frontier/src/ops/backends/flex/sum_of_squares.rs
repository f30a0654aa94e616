//! The sum of squares, in f64.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::{elements, open};

/// Elements that one task sums.
const CHUNK: usize = 1 << 14;

/// The sum of the squares of x, in an order that does not depend on the number of threads.
pub(super) fn sum_of_squares(x: &Tensor<1>) -> Option<f64> {
    let x = open(x)?;
    let sums: Vec<f64> = elements(&x).par_chunks(CHUNK).map(lanes).collect();
    Some(sums.iter().sum())
}

/// Several running sums, so that additions need not wait for each other.
fn lanes(x: &[f32]) -> f64 {
    let mut sums = [0.0f64; 16];
    for x in x.chunks(16) {
        for (sum, &x) in sums.iter_mut().zip(x) {
            *sum += f64::from(x) * f64::from(x);
        }
    }
    sums.iter().sum()
}
