//! Layers and first values of Burn modules that no layout, thread or restart can change.

#[path = "layers/batch_norm.rs"]
mod batch_norm;
#[path = "layers/check.rs"]
mod check;
#[path = "layers/draws.rs"]
mod draws;
#[path = "layers/initialize.rs"]
mod initialize;
#[path = "layers/network.rs"]
mod network;
