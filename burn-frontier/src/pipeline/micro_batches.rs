//! How a global batch is cut into the replicas' micro-batches.

use std::ops::Range;

use super::schedule::MAX_PASSES;
use crate::error::{Error, Result};

/// This replica's share of a global batch, cut into micro-batches of at most `size`: ranges of positions in the batch.
///
/// The micro-batches that the replicas have at the same time are neighbours in the batch: with `size` samples each, they are the
/// micro-batch of `replicas * size` samples that one replica would have, so that a layer that looks at all of them, such as
/// [`SyncBatchNorm`](crate::layers::SyncBatchNorm), sees the same samples in any layout. Neither the replicas nor the
/// micro-batches need to divide the batch: the loss is divided once, by the global count.
///
/// # Errors
/// Fewer samples than replicas, micro-batches of no samples, or more of them than a step can run.
pub fn micro_batches(
    global_batch: u64,
    size: u64,
    replica: usize,
    replicas: usize,
) -> Result<Vec<Range<u64>>> {
    let count = count_micro_batches(global_batch, size, replica, replicas)?;
    if count > MAX_PASSES as u64 {
        return Err(Error::config(
            format!(
                "a global batch of {global_batch} gives a replica {count} micro-batches of {size}"
            ),
            format!("use at most {MAX_PASSES}: larger micro-batches, or a smaller global batch"),
        ));
    }
    let n = replicas as u64;
    let cuts = (0..count).map(|i| {
        // Rounds before this one are full, so this does not overflow.
        let first = i * size * n;
        let round = (global_batch - first).min(size.saturating_mul(n));
        let share = share(round, replica as u64, n);
        first + share.start..first + share.end
    });
    Ok(cuts.collect())
}

/// How many micro-batches [`micro_batches`] gives, if they are not too many.
///
/// # Errors
/// Fewer samples than replicas, or micro-batches of no samples.
pub fn count_micro_batches(
    global_batch: u64,
    size: u64,
    replica: usize,
    replicas: usize,
) -> Result<u64> {
    let n = replicas as u64;
    if n == 0 || replica >= replicas {
        return Err(Error::config(
            format!("there is no replica {replica} of {replicas}"),
            "count them from 0",
        ));
    }
    if global_batch < n {
        return Err(Error::config(
            format!("a global batch of {global_batch} cannot feed dp {replicas}"),
            format!("use a global batch of at least {replicas}, or dp {global_batch} or less"),
        ));
    }
    if size == 0 {
        return Err(Error::config(
            "a micro-batch of 0 samples",
            "use at least 1",
        ));
    }
    let share = share(global_batch, replica as u64, n);
    Ok((share.end - share.start).div_ceil(size))
}

/// The samples of `replica` of `n`, of some that they share as evenly as can be.
fn share(samples: u64, replica: u64, n: u64) -> Range<u64> {
    // The product may need more than 64 bits, the quotient does not.
    let until = |replica: u64| (u128::from(samples) * u128::from(replica) / u128::from(n)) as u64;
    until(replica)..until(replica + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_sample_is_in_one_micro_batch_and_rounds_are_neighbours(
            replicas in 1usize..9,
            more in 0u64..40,
            size in 1u64..6,
        ) {
            let batch = replicas as u64 + more;
            let cuts: Vec<Vec<_>> = (0..replicas)
                .map(|replica| micro_batches(batch, size, replica, replicas).unwrap())
                .collect();
            let rounds = cuts.iter().map(Vec::len).max().unwrap();
            let (mut at, whole) = (0, size * replicas as u64);
            for round in 0..rounds {
                for cut in cuts.iter().filter_map(|cuts| cuts.get(round)) {
                    prop_assert_eq!(cut.start, at);
                    prop_assert!(cut.end > at && cut.end - at <= size);
                    at = cut.end;
                }
                prop_assert_eq!(at, batch.min((round as u64 + 1) * whole));
            }
        }
    }

    #[test]
    fn batches_of_any_size_are_cut_without_overflow() {
        let cuts = micro_batches(u64::MAX, u64::MAX, 1, 2).unwrap();
        assert_eq!(cuts, vec![u64::MAX / 2..u64::MAX]);
        assert!(micro_batches(u64::MAX, 1, 0, 1).is_err());
    }
}
