//! The arrows of the papers' figures, one function each: what happens forward, and what to the gradient. A backward that
//! reduces twice is the classic silent bug, so both directions are spelled out. Sequence is dimension 1 of
//! `[batch, seq, hidden]`; bytes are those of the tensor that enters the collective, per rank.

use burn::tensor::Tensor;

use crate::comm::Group;
use crate::ops::exchange::{Exchange, exchange};

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::local::{self, LocalOptions};
    use burn::tensor::{Device, TensorData};

    type Map = fn(Tensor<3>, &Group) -> Tensor<3>;

    /// Output and input gradient of a map on two ranks. Rank r's input is `[1, seq, hidden]`, counting from `100 r`; its
    /// output's gradient counts from `1000 r`.
    fn run(map: Map, seq: usize, hidden: usize) -> Vec<(Vec<f32>, Vec<f32>)> {
        let count = |start: usize, shape: [usize; 3]| {
            let n = shape.iter().product::<usize>();
            let values: Vec<f32> = (start..start + n).map(|i| i as f32).collect();
            Tensor::<3>::from_data(TensorData::new(values, shape), &Device::flex())
        };
        local::run(2, &LocalOptions::default(), |group| {
            let rank = group.rank();
            let x = count(100 * rank, [1, seq, hidden])
                .autodiff()
                .require_grad();
            let y = map(x.clone(), &group);
            let g = count(1000 * rank, y.dims());
            let value = y.clone().into_data().try_to_vec::<f32>().unwrap();
            let gradients = (y * g).sum().backward();
            let gradient = x.grad(&gradients).unwrap().into_data();
            Ok((value, gradient.try_to_vec::<f32>().unwrap()))
        })
        .unwrap()
    }

    #[test]
    fn copy_and_reduce_are_conjugate() {
        let copied = run(copy_to_tp, 1, 2);
        assert_eq!(copied[0], (vec![0.0, 1.0], vec![1000.0, 1002.0]));
        assert_eq!(copied[1], (vec![100.0, 101.0], vec![1000.0, 1002.0]));
        let reduced = run(reduce_from_tp, 1, 2);
        assert_eq!(reduced[0], (vec![100.0, 102.0], vec![0.0, 1.0]));
        assert_eq!(reduced[1], (vec![100.0, 102.0], vec![1000.0, 1001.0]));
    }

    #[test]
    fn gather_and_scatter_of_the_last_dimension_are_conjugate() {
        let gathered = run(gather_from_tp, 2, 1);
        // Rows interleave the ranks; each takes back its own column of its own gradient.
        assert_eq!(gathered[0], (vec![0.0, 100.0, 1.0, 101.0], vec![0.0, 2.0]));
        assert_eq!(
            gathered[1],
            (vec![0.0, 100.0, 1.0, 101.0], vec![1001.0, 1003.0])
        );
        let scattered = run(scatter_to_tp, 1, 2);
        assert_eq!(scattered[0], (vec![0.0], vec![0.0, 1000.0]));
        assert_eq!(scattered[1], (vec![101.0], vec![0.0, 1000.0]));
    }

    #[test]
    fn gather_and_reduce_scatter_of_the_sequence_are_conjugate() {
        let gathered = run(gather_from_sp, 1, 2);
        assert_eq!(
            gathered[0],
            (vec![0.0, 1.0, 100.0, 101.0], vec![1000.0, 1002.0])
        );
        assert_eq!(
            gathered[1],
            (vec![0.0, 1.0, 100.0, 101.0], vec![1004.0, 1006.0])
        );
        let scattered = run(reduce_scatter_to_sp, 2, 1);
        assert_eq!(scattered[0], (vec![100.0], vec![0.0, 1000.0]));
        assert_eq!(scattered[1], (vec![102.0], vec![0.0, 1000.0]));
    }
}
