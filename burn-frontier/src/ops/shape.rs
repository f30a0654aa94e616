//! Shapes and types that do not fit each other, told before a kernel reads where nothing is.

use burn::tensor::{DType, Tensor};

use crate::error::{Error, Result};

/// Fails unless `found`, the shape of `operation`'s `what`, is `expected`, whose axes are called `axes`.
pub(super) fn expect<const D: usize>(
    operation: &str,
    what: &str,
    found: [usize; D],
    expected: [usize; D],
    axes: &str,
) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::config(
        format!("{operation}: {what} has shape {found:?}, where the rest needs {expected:?}"),
        format!("{what} is {axes}"),
    ))
}

/// Fails unless a tensor is of the type of `operation`'s input.
pub(super) fn expect_type<const D: usize>(
    operation: &str,
    what: &str,
    tensor: &Tensor<D>,
    input: DType,
) -> Result<()> {
    if tensor.dtype() == input {
        return Ok(());
    }
    Err(Error::config(
        format!(
            "{operation}: {what} is of {:?}, and the input of {input:?}",
            tensor.dtype()
        ),
        "cast one of them",
    ))
}
