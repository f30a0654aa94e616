//! Arguments of the kernels: how a geometry is passed, and checks of what a launch is given.

use cubecl_core::client::Client;
use cubecl_core::prelude::BufferArg;

use super::problem::{
    BiasStrides, BiasStridesCompilationArg, BiasStridesLaunch, Geometry, GeometryCompilationArg,
    GeometryLaunch, Problem, Strides, StridesCompilationArg, StridesLaunch,
};
use super::sequences::Sequences;
use crate::argument::{declared, filler, memory};
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

    /// Elements from the first to the last of a tensor of `width` elements a row.
    pub(crate) fn span(self, [batch, heads, rows]: [u32; 3], width: u32) -> u64 {
        if batch == 0 || heads == 0 || rows == 0 {
            return 0;
        }
        let last = [(batch, self.batch), (heads, self.head), (rows, self.row)];
        last.iter()
            .fold(u64::from(width), |span, &(count, stride)| {
                span.saturating_add(u64::from(count - 1) * u64::from(stride))
            })
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
        // What is the same for all is read even if there are none.
        if counts
            .iter()
            .any(|&(count, stride)| count == 0 && stride > 0)
        {
            return 0;
        }
        counts.iter().fold(1, |span, &(count, stride)| {
            span.saturating_add(u64::from(count.saturating_sub(1)) * u64::from(stride))
        })
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

impl Problem {
    /// What the problem is where there are no keys, and what stands in for K, V and biases then: kernels read the front of
    /// each in vain, before they know that there is nothing to add up.
    pub(crate) fn without_keys(self, client: &Client) -> (Self, NoKeys) {
        let nothing = |bias: Option<BiasStrides>| bias.map(|_| BiasStrides::default());
        let row = filler(client, self.head_dim as usize);
        let problem = Self {
            k: Strides::default(),
            v: Strides::default(),
            bias: self.bias.map(nothing),
            ..self
        };
        let bias = self.bias.map(|bias| bias.map(|_| filler(client, 4)));
        (problem, NoKeys { row, bias })
    }
}

/// Memory in place of what has no elements.
pub(crate) struct NoKeys {
    /// For K and for V.
    pub row: BufferArg,
    /// For the biases that there are.
    pub bias: [Option<BufferArg>; 2],
}

/// How many rows the tensors of a problem have, which its own numbers or its packed sequences say.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows {
    batch: u32,
    /// Of Q and O.
    pub queries: u32,
    /// Of K and V.
    pub keys: u32,
}

impl Rows {
    /// # Errors
    /// Sequences that the problem lacks or does not know.
    pub fn of(
        operation: &'static str,
        problem: &Problem,
        sequences: Option<&Sequences>,
    ) -> Result<Self> {
        let Problem {
            batch,
            queries,
            keys,
            packed,
            ..
        } = *problem;
        let wrong = |what: String| {
            let remedy = "let the problem have the sequences' number and the longest one's rows";
            Err(Error::argument(operation, what, remedy))
        };
        match sequences {
            None if !packed => Ok(Self {
                batch,
                queries,
                keys,
            }),
            None => wrong("a packed problem without sequences".into()),
            Some(_) if !packed => wrong("sequences of a problem that is not packed".into()),
            Some(sequences) => {
                let (count, longest) = (sequences.count(), sequences.longest());
                if count != batch || longest[0] > queries || longest[1] > keys {
                    return wrong(format!(
                        "{count} sequences of up to {} queries and {} keys, the problem has {batch} of {queries} and {keys}",
                        longest[0], longest[1]
                    ));
                }
                let [queries, keys] = sequences.rows();
                Ok(Self {
                    batch: 1,
                    queries,
                    keys,
                })
            }
        }
    }

    /// Elements from the first to the last of a tensor of queries.
    pub fn of_queries(&self, strides: Strides, problem: &Problem, width: u32) -> u64 {
        strides.span([self.batch, problem.heads, self.queries], width)
    }

    /// The same of keys.
    pub fn of_keys(&self, strides: Strides, problem: &Problem) -> u64 {
        let counts = [self.batch, problem.kv_heads, self.keys];
        strides.span(counts, problem.head_dim)
    }
}

/// Checks that a buffer, if there is one, has memory for `least` elements of `bytes` bytes, and has at most `most`.
pub(crate) fn holds(
    operation: &'static str,
    name: &str,
    buffer: Option<&BufferArg>,
    [least, most]: [u64; 2],
    bytes: usize,
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
    match buffer {
        Some(buffer) => memory(operation, name, buffer, bytes),
        None => Ok(()),
    }
}

/// As [`holds`], of a bias, which may begin anywhere.
pub(crate) fn holds_bias(
    operation: &'static str,
    buffer: Option<&BufferArg>,
    strides: Option<BiasStrides>,
    problem: &Problem,
    [bytes, most]: [usize; 2],
) -> Result<()> {
    let (Some(buffer), Some(strides)) = (buffer, strides) else {
        return match (buffer.is_some(), strides.is_some()) {
            (found, wanted) if found == wanted => Ok(()),
            (found, _) => Err(Error::argument(
                operation,
                if found {
                    "a bias that the problem lacks"
                } else {
                    "a bias of the problem is missing"
                },
                "pass the biases that the problem has",
            )),
        };
    };
    let (least, found) = (strides.span(problem), buffer.len() as u64);
    if found < least || found > most as u64 {
        return Err(Error::argument(
            operation,
            format!("a bias has {found} elements, {least} to {most} are expected"),
            "pass the buffer that the problem's strides describe",
        ));
    }
    declared(operation, "a bias", buffer, bytes).map(|_| ())
}
