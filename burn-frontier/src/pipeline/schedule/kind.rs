//! The kinds of schedule, their names and their warm-up.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Instruction;
use crate::error::{Error, Result};

/// How forward and backward passes are ordered. In files and on the command line: `gpipe`, `1f1b`, `interleaved`
/// (two chunks a stage) or `interleaved:4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Kind {
    /// All forward passes, then all backward passes; keeps the activations of every micro-batch (arXiv 1811.06965).
    GPipe,
    /// One forward, one backward: the same bubble, but at most `stages - stage` micro-batches alive (arXiv 2104.04473, 2.2.1).
    #[default]
    OneForwardOneBackward,
    /// One forward, one backward over several chunks a stage: a bubble `chunks` times smaller (arXiv 2104.04473, 2.2.2).
    Interleaved {
        /// Model chunks on a stage, at least 2.
        chunks: usize,
    },
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GPipe => f.write_str("gpipe"),
            Self::OneForwardOneBackward => f.write_str("1f1b"),
            Self::Interleaved { chunks } => write!(f, "interleaved:{chunks}"),
        }
    }
}

impl FromStr for Kind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let interleaved = |chunks: &str| chunks.parse().ok().filter(|&chunks| chunks > 1);
        let kind = match (text, text.split_once(':')) {
            ("gpipe", _) => Some(Self::GPipe),
            ("1f1b", _) => Some(Self::OneForwardOneBackward),
            ("interleaved", _) => Some(Self::Interleaved { chunks: 2 }),
            (_, Some(("interleaved", chunks))) => {
                interleaved(chunks).map(|chunks| Self::Interleaved { chunks })
            }
            _ => None,
        };
        kind.ok_or_else(|| {
            Error::config(
                format!("there is no pipeline schedule called `{text}`"),
                "choose gpipe, 1f1b, interleaved (2 chunks a stage) or interleaved:N (N chunks a stage, at least 2)",
            )
        })
    }
}

impl TryFrom<String> for Kind {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Kind> for String {
    fn from(kind: Kind) -> Self {
        kind.to_string()
    }
}

impl Kind {
    /// Model chunks on every stage.
    pub const fn chunks(&self) -> usize {
        match self {
            Self::GPipe | Self::OneForwardOneBackward => 1,
            Self::Interleaved { chunks } => *chunks,
        }
    }

    /// Micro-batch and chunk of a stage's forward (or backward) pass number `k`.
    const fn place(&self, stages: usize, k: usize, forward: bool) -> (usize, usize) {
        let chunks = self.chunks();
        let round = stages * chunks;
        // With one chunk any number of micro-batches is allowed, and this is the identity.
        let (micro_batch, chunk) = (k / round * stages + k % stages, k % round / stages);
        (
            micro_batch,
            if forward { chunk } else { chunks - 1 - chunk },
        )
    }

    /// Pass number `at` of `stage`, none behind the last: warm-up, one forward and one backward in turn, cool-down.
    ///
    /// Chunks take turns after as many micro-batches as there are stages. Every chunk runs the micro-batches in
    /// ascending order, forward and backward, whatever the kind: gradients are added in one order, bit for bit.
    pub(crate) fn pass(
        &self,
        stages: usize,
        micro_batches: usize,
        stage: usize,
        at: usize,
    ) -> Option<Instruction> {
        let total = micro_batches * self.chunks();
        let warm_up = self.warm_up(stages, stage, micro_batches).min(total);
        let (forward, k) = match at.checked_sub(warm_up) {
            None => (true, at),
            Some(steady) if steady < 2 * (total - warm_up) => match steady.is_multiple_of(2) {
                true => (true, warm_up + steady / 2),
                false => (false, steady / 2),
            },
            Some(_) if at < 2 * total => (false, at - total),
            Some(_) => return None,
        };
        let (micro_batch, chunk) = self.place(stages, k, forward);
        Some(match forward {
            true => Instruction::Forward { micro_batch, chunk },
            false => Instruction::Backward { micro_batch, chunk },
        })
    }

    /// Most activations that `stage` keeps for backward passes at one time, in micro-batches x chunks.
    pub fn activations_alive(&self, stages: usize, stage: usize, micro_batches: usize) -> usize {
        let total = micro_batches.saturating_mul(self.chunks());
        (self.warm_up(stages, stage, micro_batches) + 1).min(total)
    }

    /// Forward passes of a stage before forward and backward passes take turns, as Megatron-LM counts them.
    fn warm_up(&self, stages: usize, stage: usize, micro_batches: usize) -> usize {
        match self {
            Self::GPipe => micro_batches,
            Self::OneForwardOneBackward => stages - stage - 1,
            // A backward pass returns after a trip down and up the pipeline, hence twice the distance to its end.
            Self::Interleaved { chunks } => 2 * (stages - stage - 1) + (chunks - 1) * stages,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_named_as_on_the_command_line() {
        for (name, kind) in [
            ("gpipe", Kind::GPipe),
            ("1f1b", Kind::OneForwardOneBackward),
            ("interleaved:2", Kind::Interleaved { chunks: 2 }),
            ("interleaved:4", Kind::Interleaved { chunks: 4 }),
        ] {
            assert_eq!(name.parse::<Kind>().unwrap(), kind);
            assert_eq!(kind.to_string(), name);
        }
        assert_eq!(
            "interleaved".parse::<Kind>().unwrap(),
            Kind::Interleaved { chunks: 2 }
        );
        for name in ["zigzag", "interleaved:1", "interleaved:x", "1f1b:2", ""] {
            let error = name.parse::<Kind>().unwrap_err().to_string();
            for part in ["gpipe", "1f1b", "interleaved:N"] {
                assert!(error.contains(part), "{error}");
            }
        }
    }
}
