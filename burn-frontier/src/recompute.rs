//! What a backward pass computes again.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Which activations the backward pass computes again instead of reading them from memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Nothing.
    #[default]
    None,
    /// The attention core: scores, softmax, weighted values.
    Selective,
    /// The forward pass of every layer; not the logits.
    Full,
}

impl Recompute {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::None, Self::Selective, Self::Full];
}

/// As in files and on command lines.
impl fmt::Display for Recompute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Selective => "selective",
            Self::Full => "full",
        })
    }
}

impl FromStr for Recompute {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let named = Self::ALL.into_iter().find(|one| one.to_string() == text);
        named.ok_or_else(|| {
            Error::config(
                format!("there is no way to recompute named '{text}'"),
                "choose none, selective or full",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_is_read_by_its_name() {
        for one in Recompute::ALL {
            assert_eq!(one.to_string().parse::<Recompute>().unwrap(), one);
        }
        let error = "some".parse::<Recompute>().unwrap_err().to_string();
        for part in ["'some'", "none, selective or full"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
