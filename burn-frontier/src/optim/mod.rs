//! What an update is: rules and the optimiser that holds their state; learning-rate schedules, gradient clipping and loss
//! scaling.

mod adamw;
mod config;
mod group;
mod logical;
mod optimizer;
mod rule;
pub mod scaler;
pub mod schedule;
mod state;
mod stored;
mod update;

pub use adamw::AdamWConfig;
pub use config::OptimizerConfig;
pub use group::ParameterGroup;
pub use optimizer::Optimizer;
pub use rule::{BurnRule, Rule};

/// Factor that brings a gradient of this norm down to `max_norm` (PyTorch's `clip_grad_norm_`). `None`: no clipping.
pub fn clip_factor(norm: f64, max_norm: Option<f64>) -> f64 {
    max_norm.map_or(1.0, |max| (max / (norm + 1e-6)).min(1.0))
}
