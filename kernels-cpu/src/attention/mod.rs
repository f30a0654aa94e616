//! Attention in tiles, forward and back, without a matrix of scores in memory (FlashAttention-2, arXiv 2307.08691).
//!
//! The lanes of vectors are queries. So a score's row maximum and sum need no steps across lanes; keys and values are read as
//! they lie, an element at a time for all lanes; and a tile of probabilities is what the next product takes as it is.

mod backward;
mod bias;
mod dropout;
mod forward;
mod problem;
#[cfg(test)]
mod reference;
mod score;
#[cfg(test)]
mod tests;
mod vector;

pub use backward::{Outputs, backward};
pub use bias::bias_gradient;
pub use forward::forward;
pub use problem::{Bias, Dropout, Gradients, Inputs, Problem, Rotation, Rows};
