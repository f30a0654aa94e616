//! Facts worked out by hand, most of them once a fault of another program. docs/rules.md says which rules ours follow.

#[path = "facts/data.rs"]
mod data;
#[path = "facts/stages.rs"]
mod stages;
