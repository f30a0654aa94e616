//! Every kernel in the forms that large models take: what `cargo xtask hip` checks and measures.

use crate::error::Result;
use crate::hip::emit::Source;
use crate::matrix::instruction::Target;
use crate::{adamw, attention, cross_entropy, dropout, gemm, norm, rotary};

/// The kernels for `targets`, family by family. A name ends with its target.
///
/// # Errors
/// A kernel that CubeCL cannot render.
pub fn sources(targets: &[Target]) -> Result<Vec<Source>> {
    let families = [
        gemm::sources(targets)?,
        norm::sources(targets)?,
        dropout::sources(targets)?,
        cross_entropy::sources(targets)?,
        rotary::sources(targets)?,
        adamw::sources(targets)?,
        attention::sources(targets)?,
        attention::backward::sources(targets)?,
    ];
    Ok(families.into_iter().flatten().collect())
}

/// What tuning may take on `target` in place of the catalog's matrix products and attention: the plans that are timed against
/// the table's. Only those whose name is `wanted`.
///
/// # Errors
/// A kernel that CubeCL cannot render.
pub fn candidates(target: Target, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Source>> {
    let families = [
        gemm::candidates(target, wanted)?,
        attention::candidates::sources(target, wanted)?,
        attention::backward::candidates::sources(target, wanted)?,
    ];
    Ok(families.into_iter().flatten().collect())
}
