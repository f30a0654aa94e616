//! What a run shows of itself: floating-point operations by name, one line a step, TensorBoard, traces and plots.

pub mod flops;
pub mod metrics;
pub mod plot;
pub mod progress;
pub mod run_log;
pub mod tensorboard;
pub mod trace;
