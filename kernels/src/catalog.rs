//! Every kernel, for every GPU that it is compiled for: what `cargo xtask hip` checks and measures.

use crate::error::Result;
use crate::hip::emit::Source;
use crate::{adamw, attention, cross_entropy, dropout, gemm, norm, rotary};

/// The kernels, family by family. A name ends with its target.
///
/// # Errors
/// A kernel that CubeCL cannot render.
pub fn sources() -> Result<Vec<Source>> {
    let families = [
        gemm::sources()?,
        norm::sources()?,
        dropout::sources()?,
        cross_entropy::sources()?,
        rotary::sources()?,
        adamw::sources()?,
        attention::sources()?,
        attention::backward::sources()?,
    ];
    Ok(families.into_iter().flatten().collect())
}
