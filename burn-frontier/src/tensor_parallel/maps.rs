//! The arrows of the papers' figures, one function each: what happens forward, and what to the gradient. A backward that
//! reduces twice is the classic silent bug, so both directions are spelled out. Sequence is dimension 1 of
//! `[batch, seq, hidden]`; bytes are those of the tensor that enters the collective, per rank.

use burn::tensor::Tensor;

use crate::ops::exchange::{Exchange, Group, exchange};

/// f of arXiv 1909.08053: before a column-parallel linear. Forward nothing, backward all-reduce.
pub fn copy_to_tp(x: Tensor<3>, tp: &Group) -> Tensor<3> {
    exchange(x, tp, Exchange::Identity, Exchange::AllReduce)
}

/// g of arXiv 1909.08053: after a row-parallel linear. Forward all-reduce, backward nothing.
pub fn reduce_from_tp(x: Tensor<3>, tp: &Group) -> Tensor<3> {
    exchange(x, tp, Exchange::AllReduce, Exchange::Identity)
}

/// Joins the ranks' parts of the last dimension. Forward all-gather, backward split.
pub fn gather_from_tp(x: Tensor<3>, tp: &Group) -> Tensor<3> {
    exchange(x, tp, Exchange::AllGather(2), Exchange::Split(2))
}

/// Takes this rank's part of the last dimension. Forward split, backward all-gather.
pub fn scatter_to_tp(x: Tensor<3>, tp: &Group) -> Tensor<3> {
    exchange(x, tp, Exchange::Split(2), Exchange::AllGather(2))
}

/// g of arXiv 2205.05198: joins the sequence before a column-parallel linear. Forward all-gather, backward reduce-scatter.
pub fn gather_from_sp(x: Tensor<3>, tp: &Group) -> Tensor<3> {
    exchange(x, tp, Exchange::AllGather(1), Exchange::ReduceScatter(1))
}

/// g-bar of arXiv 2205.05198: splits the sequence after a row-parallel linear. Forward reduce-scatter, backward all-gather.
pub fn reduce_scatter_to_sp(x: Tensor<3>, tp: &Group) -> Tensor<3> {
    exchange(x, tp, Exchange::ReduceScatter(1), Exchange::AllGather(1))
}
