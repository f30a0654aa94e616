//! Pipeline parallelism: schedules as data, their checker, and the runner.

pub mod check;
pub mod execute;
pub mod part;
pub mod run;
pub mod schedule;
pub mod segment;
