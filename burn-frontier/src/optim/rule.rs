//! How a parameter is updated.

use super::adamw::AdamWConfig;

/// How a parameter is updated.
#[derive(Debug, Clone)]
pub enum Rule {
    /// AdamW, fused.
    AdamW(AdamWConfig),
}
