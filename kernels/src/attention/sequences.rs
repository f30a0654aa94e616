//! Sequences of different lengths whose rows follow each other.

use cubecl_core::client::Client;
use cubecl_core::prelude::*;
use cubecl_core::server::Handle;

use crate::argument::places;
use crate::error::{Error, Result};
use crate::hip::run::bytes;

const OPERATION: &str = "attention";

/// Where the rows of packed sequences begin. The kernels read it on the device, where it lies as it was checked here.
#[derive(Clone)]
pub struct Sequences {
    queries: Bounds,
    keys: Bounds,
}

#[derive(Clone)]
struct Bounds {
    handle: Handle,
    count: u32,
    rows: u32,
    longest: u32,
}

impl Sequences {
    /// Sequence `i` has the rows `queries[i]..queries[i + 1]` of Q and O, and `keys[i]..keys[i + 1]` of K and V.
    ///
    /// # Errors
    /// Rows that do not begin at 0 or go back, more sequences of queries than of keys or the other way.
    pub fn new(client: &Client, queries: &[u32], keys: &[u32]) -> Result<Self> {
        let all = Self {
            queries: Bounds::new(client, "queries", queries)?,
            keys: Bounds::new(client, "keys", keys)?,
        };
        if all.queries.count == all.keys.count {
            return Ok(all);
        }
        let counts = [all.queries.count, all.keys.count];
        Err(Error::argument(
            OPERATION,
            format!(
                "queries of {} sequences and keys of {}",
                counts[0], counts[1]
            ),
            "give as many of both",
        ))
    }

    /// Sequences.
    pub const fn count(&self) -> u32 {
        self.queries.count
    }

    /// Queries and keys of all sequences.
    pub const fn rows(&self) -> [u32; 2] {
        [self.queries.rows, self.keys.rows]
    }

    /// The most queries of a sequence, and the most keys.
    pub const fn longest(&self) -> [u32; 2] {
        [self.queries.longest, self.keys.longest]
    }

    /// Where queries begin, and where keys do.
    pub(crate) fn arguments(&self) -> [BufferArg; 2] {
        [&self.queries, &self.keys].map(|bounds| {
            let length = bounds.count as usize + 1;
            // SAFETY: the buffer was made of so many numbers.
            unsafe { BufferArg::from_raw_parts(bounds.handle.clone(), length) }
        })
    }
}

impl Bounds {
    fn new(client: &Client, what: &str, bounds: &[u32]) -> Result<Self> {
        let wrong = |problem: String| {
            let remedy = "say where each sequence begins, from 0 on, and where the last one ends";
            Err(Error::argument(OPERATION, problem, remedy))
        };
        let (Some(0), Some(&rows)) = (bounds.first(), bounds.last()) else {
            return wrong(format!("the first sequence's {what} do not begin at row 0"));
        };
        let mut longest = 0;
        for (number, pair) in bounds.windows(2).enumerate() {
            let Some(length) = pair[1].checked_sub(pair[0]) else {
                return wrong(format!(
                    "the {what} of sequence {number} begin at row {} and end at {}",
                    pair[0], pair[1]
                ));
            };
            longest = longest.max(length);
        }
        Ok(Self {
            handle: client.create_from_slice(&bytes(bounds)),
            count: places(OPERATION, bounds.len() - 1)?,
            rows,
            longest,
        })
    }
}
