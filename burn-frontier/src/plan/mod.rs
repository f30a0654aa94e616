//! Says before a job what it will need and how fast it will be: does it fit, how long is a step, what limits it, and which
//! layout is best. Plain arithmetic: nothing is allocated, no device is touched.
//!
//! - [`machine`] is what ranks, links and software can do, read from a file; [`job`] what is to run;
//!   [`model`] is what the planner asks a model, [`outline`] the least that it can be told
//! - [`memory`] gives the bytes of every stage by kind, [`time`] the seconds of a step by term
//! - [`fit`] calibrates a machine file with measured runs
//! - [`search`] ranks the layouts that fit, [`advice`] says what would be faster
//! - [`what_if`] is a job with what this runtime lacks, [`zero_bubble`] one of its schedules;
//!   [`outlook`] searches them
//! - [`report`] writes all of it down

pub mod advice;
pub mod fit;
pub mod job;
mod layer;
pub mod machine;
pub mod makespan;
pub mod memory;
pub mod model;
pub mod outline;
pub mod outlook;
mod parameters;
mod pass;
pub mod report;
pub mod search;
pub mod time;
mod update;
pub mod what_if;
pub mod zero_bubble;

pub use job::Job;
pub use machine::Machine;
pub use model::Planned;
pub use outline::{Estimate, Outline};
pub use report::Report;
pub use what_if::WhatIf;
