//! Operations with gradients of their own, each in a file with its plain reference.
//!
//! An operation computes its value with ordinary tensors and hands [`gradient::with_gradient`] a function for the way
//! back. That function is the crate's one Burn backend extension, so an operation is written once and runs wherever
//! Burn does; a backend with a faster way is asked first, inside the operation's file. What it is asked stands below both, in
//! descriptions that know neither.
//!
//! Shapes and types are checked first: what does not fit is an error, and no kernel reads beyond a tensor.

pub mod activation;
pub mod adamw;
pub mod attention;
mod backends;
pub(crate) mod batch_norm;
pub mod convolution;
pub mod cross_entropy;
pub mod dropout;
pub mod embedding;
pub mod exchange;
pub mod feed_forward;
pub mod gradient;
pub mod gradient_sum;
pub mod kernels;
pub mod linear;
pub mod norm;
pub mod pool;
mod problem;
pub mod rotary;
mod shape;
pub mod sum_squares;
#[cfg(all(test, feature = "flex"))]
mod testing;
pub mod tuning;

pub use attention::attention;
