//! Pipeline parallelism: what a stage is, schedules as data, the executor that walks them, their checker, and the runner.

pub mod activation;
pub mod check;
pub mod execute;
pub mod micro_batches;
pub mod model;
pub mod run;
pub mod schedule;
pub mod segment;
pub mod stage;
