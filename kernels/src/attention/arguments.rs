//! Arguments of the kernels: how a geometry is passed, and checks of what a launch is given.

use cubecl_core::prelude::BufferArg;

use super::problem::{
    BiasStrides, BiasStridesCompilationArg, BiasStridesLaunch, Geometry, GeometryCompilationArg,
    GeometryLaunch, Problem, Strides, StridesCompilationArg, StridesLaunch,
};
use crate::error::{Error, Result};

pub(crate) const STRIDES: StridesCompilationArg = StridesCompilationArg {
    batch: (),
    head: (),
    row: (),
};

pub(crate) const BIAS: BiasStridesCompilationArg = BiasStridesCompilationArg {
    divisor: (),
    batch: (),
    head: (),
    query: (),
    key: (),
};

pub(crate) const GEOMETRY: GeometryCompilationArg = GeometryCompilationArg {
    group: (),
    queries: (),
    keys: (),
    q: STRIDES,
    k: STRIDES,
    v: STRIDES,
    o: STRIDES,
    lse: STRIDES,
    bias1: BIAS,
    bias2: BIAS,
    heads_global: (),
    first_head: (),
    threshold: (),
    key_low: (),
    key_high: (),
    scale: (),
    keep_scale: (),
};

impl Strides {
    pub(crate) fn launch(self) -> StridesLaunch {
        StridesLaunch::new(self.batch, self.head, self.row)
    }

    /// Elements from the first to the last of a tensor of `width` elements a row; of a packed one, at least of one row.
    pub(crate) fn span(self, problem: &Problem, heads: u32, rows: u32, width: u32) -> u64 {
        if problem.batch == 0 || heads == 0 || rows == 0 {
            return 0;
        }
        let (batch, rows) = match problem.packed {
            true => (1, 1),
            false => (problem.batch, rows),
        };
        let last = [(batch, self.batch), (heads, self.head), (rows, self.row)];
        let last = last.map(|(count, stride)| u64::from(count - 1) * u64::from(stride));
        last.iter().sum::<u64>() + u64::from(width)
    }
}

impl BiasStrides {
    pub(crate) fn launch(self) -> BiasStridesLaunch {
        BiasStridesLaunch::new(self.divisor, self.batch, self.head, self.query, self.key)
    }

    /// Elements from the first to the last.
    pub(crate) fn span(self, problem: &Problem) -> u64 {
        let counts = [
            (problem.batch.div_ceil(self.divisor), self.batch),
            (problem.heads, self.head),
            (problem.queries, self.query),
            (problem.keys, self.key),
        ];
        if counts.iter().any(|&(count, _)| count == 0) {
            return 0;
        }
        let last = counts.map(|(count, stride)| u64::from(count - 1) * u64::from(stride));
        last.iter().sum::<u64>() + 1
    }
}

impl Geometry {
    pub(crate) fn launch(&self) -> GeometryLaunch {
        GeometryLaunch::new(
            self.group,
            self.queries,
            self.keys,
            self.q.launch(),
            self.k.launch(),
            self.v.launch(),
            self.o.launch(),
            self.lse.launch(),
            self.bias1.launch(),
            self.bias2.launch(),
            self.heads_global,
            self.first_head,
            self.threshold,
            self.key_low,
            self.key_high,
            self.scale,
            self.keep_scale,
        )
    }
}

/// Checks that a buffer, if there is one, has `least` elements, and at most `most`.
pub(crate) fn holds(
    operation: &'static str,
    name: &str,
    buffer: Option<&BufferArg>,
    least: u64,
    most: u64,
) -> Result<()> {
    let found = buffer.map_or(0, BufferArg::len) as u64;
    if found < least {
        return Err(Error::argument(
            operation,
            format!("{name} has {found} elements, {least} are needed"),
            "pass the buffer that the problem's strides describe",
        ));
    }
    if found > most {
        return Err(Error::argument(
            operation,
            format!("{name} has {found} elements, but at most {most} can be addressed"),
            "split the batch",
        ));
    }
    Ok(())
}
