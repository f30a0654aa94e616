//! The element type of parameters and activations: its names, its type in Burn, its size.

use std::fmt;
use std::str::FromStr;

use burn::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Element type of parameters and activations; optimizer state and gradient sums are fp32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floating point.
    #[default]
    Fp32,
    /// 16-bit floating point with a loss scale.
    Fp16,
    /// 16-bit brain floating point.
    Bf16,
}

impl Precision {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Fp32, Self::Fp16, Self::Bf16];

    /// The type of elements in Burn.
    pub const fn dtype(self) -> DType {
        match self {
            Self::Fp32 => DType::F32,
            Self::Fp16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }

    /// Bytes of an element.
    pub const fn bytes(self) -> f64 {
        self.dtype().size() as f64
    }

    /// Whether the optimizer keeps master weights in fp32 beside the parameters.
    pub const fn is_half(self) -> bool {
        matches!(self, Self::Fp16 | Self::Bf16)
    }
}

/// Whether a tensor's elements are of half precision.
pub(crate) fn is_half<const D: usize>(x: &Tensor<D>) -> bool {
    matches!(x.dtype(), DType::F16 | DType::BF16)
}

/// The tensor in fp32, or in the type that it has beyond.
pub(crate) fn full_precision<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    match x.dtype() {
        DType::F64 | DType::F32 => x,
        _ => x.cast(DType::F32),
    }
}

/// As in files and on command lines.
impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
        })
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let named = Self::ALL.into_iter().find(|one| one.to_string() == text);
        named.ok_or_else(|| {
            Error::config(
                format!("there is no precision named '{text}'"),
                "choose fp32, bf16 or fp16",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_precision_is_read_by_its_name_and_has_the_size_of_its_type() {
        for one in Precision::ALL {
            assert_eq!(one.to_string().parse::<Precision>().unwrap(), one);
        }
        assert_eq!(Precision::ALL.map(Precision::bytes), [4.0, 2.0, 2.0]);
        let error = "fp64".parse::<Precision>().unwrap_err().to_string();
        for part in ["'fp64'", "fp32, bf16 or fp16"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
