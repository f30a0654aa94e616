//! How a global batch is cut into the replicas' micro-batches.

use std::ops::Range;

use super::schedule::MAX_PASSES;
use crate::error::{Error, Result};

/// This replica's share of a global batch, cut into micro-batches of at most `size`: ranges of positions in the batch.
/// Neither the replicas nor the micro-batches need to divide the batch: the loss is divided once, by the global count.
///
/// # Errors
/// Fewer samples than replicas, micro-batches of no samples, or more of them than a step can run.
pub fn micro_batches(
    global_batch: u64,
    size: u64,
    replica: usize,
    replicas: usize,
) -> Result<Vec<Range<u64>>> {
    let share = share(global_batch, size, replica, replicas)?;
    let count = (share.end - share.start).div_ceil(size);
    if count > MAX_PASSES as u64 {
        return Err(Error::config(
            format!(
                "a global batch of {global_batch} gives a replica {count} micro-batches of {size}"
            ),
            format!("use at most {MAX_PASSES}: larger micro-batches, or a smaller global batch"),
        ));
    }
    let cuts = (0..count).map(|i| share.start + i * size);
    Ok(cuts
        .map(|first| first..share.end.min(first.saturating_add(size)))
        .collect())
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
    let share = share(global_batch, size, replica, replicas)?;
    Ok((share.end - share.start).div_ceil(size))
}

/// This replica's samples.
fn share(global_batch: u64, size: u64, replica: usize, replicas: usize) -> Result<Range<u64>> {
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
            format!("use a global batch of at least {replicas}, or --dp {global_batch} or less"),
        ));
    }
    if size == 0 {
        return Err(Error::config(
            "a micro-batch of 0 samples",
            "use at least 1",
        ));
    }
    // The product may need more than 64 bits, the quotient does not.
    let until =
        |replica: u64| (u128::from(global_batch) * u128::from(replica) / u128::from(n)) as u64;
    Ok(until(replica as u64)..until(replica as u64 + 1))
}
