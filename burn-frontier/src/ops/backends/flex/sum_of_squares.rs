//! The sum of squares, in f64.

use burn::tensor::Tensor;
use frontier_kernels_cpu::math::vectorised;
use rayon::prelude::*;

use super::{PARALLEL, elements, open};

/// Elements that one task sums.
const CHUNK: usize = 1 << 14;

/// The sum of the squares of all elements, in an order that does not depend on the number of threads.
pub(super) fn sum_of_squares(all: &[Tensor<1>]) -> Option<f64> {
    let all: Vec<_> = all.iter().map(open).collect::<Option<_>>()?;
    let chunks = all.iter().map(|x| elements(x).chunks(CHUNK));
    let chunks: Vec<&[f32]> = chunks.flatten().collect();
    let sums: Vec<f64> = if all.iter().map(|x| elements(x).len()).sum::<usize>() < PARALLEL {
        chunks.into_iter().map(lanes).collect()
    } else {
        chunks.into_par_iter().map(lanes).collect()
    };
    // Tensor by tensor, as one by itself is summed.
    let mut sums = sums.into_iter();
    let of = |x| {
        let chunks = elements(x).len().div_ceil(CHUNK);
        sums.by_ref().take(chunks).sum::<f64>()
    };
    Some(all.iter().map(of).sum())
}

/// Several running sums, so that additions need not wait for each other.
fn lanes(x: &[f32]) -> f64 {
    vectorised(
        #[inline(always)]
        || {
            let mut sums = [0.0f64; 16];
            let (whole, rest) = x.as_chunks::<16>();
            for x in whole.iter().map(|x| &x[..]).chain([rest]) {
                for (sum, &x) in sums.iter_mut().zip(x) {
                    *sum += f64::from(x) * f64::from(x);
                }
            }
            sums.iter().sum()
        },
    )
}
