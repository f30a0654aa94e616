//! Collectives as differentiable operations. What goes forward and what goes backward are chosen independently, because
//! tensor parallelism needs pairs that no automatic rule gives.

use burn::tensor::{Shape, Tensor};

use super::gradient::with_gradient;
use crate::comm::tensor::{from_buffer, to_buffer};
use crate::comm::{Buffer, Group, Reduction};
use crate::error::{Error, Result};

/// What is done to a tensor across the ranks of a group. Dimensions count from zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exchange {
    /// Nothing.
    Identity,
    /// Sum over ranks; every rank gets it.
    AllReduce,
    /// Every rank's part, joined along a dimension in rank order.
    AllGather(usize),
    /// Sum over ranks; a rank gets its part along a dimension.
    ReduceScatter(usize),
    /// A rank's own part along a dimension. Communicates nothing.
    Split(usize),
}

/// Applies `forward` now and `backward` to the gradient on the way back.
///
/// A failed collective, or a dimension that cannot be split into equal parts, is kept by the group ([`failure`](crate::comm::Communicator::failure))
/// and gives zeros here, so that a backward pass can end; whoever runs the pass asks the group afterwards.
pub fn exchange<const D: usize>(
    x: Tensor<D>,
    group: &Group,
    forward: Exchange,
    backward: Exchange,
) -> Tensor<D> {
    if group.size() == 1 {
        return x;
    }
    let y = apply(x.clone().without_autodiff(), group, forward);
    let group = group.clone();
    with_gradient([x.into_dispatch()], y, move |g| {
        [Some(apply(g, &group, backward).into_dispatch())]
    })
}

/// Applies an exchange to a tensor without autodiff. Failures as in [`exchange`].
pub fn apply<const D: usize>(x: Tensor<D>, group: &Group, exchange: Exchange) -> Tensor<D> {
    let (n, rank) = (group.size(), group.rank());
    match exchange {
        Exchange::Split(dim) | Exchange::ReduceScatter(dim) if !x.dims()[dim].is_multiple_of(n) => {
            group.fail(Error::config(
                format!(
                    "dimension {dim} of {:?} cannot be split over {n} ranks",
                    x.dims()
                ),
                format!("give it a multiple of {n}"),
            ));
            let (mut shape, options) = (x.shape(), (&x.device(), x.dtype()));
            shape[dim] = shape[dim].div_ceil(n);
            Tensor::zeros(shape, options)
        }
        _ if n == 1 => x,
        Exchange::Identity => x,
        Exchange::AllReduce => {
            let shape = x.shape();
            through(x, group, shape, |data| {
                group.all_reduce(data, Reduction::Sum)
            })
        }
        Exchange::Split(dim) => {
            let len = x.dims()[dim] / n;
            x.narrow(dim, rank * len, len)
        }
        Exchange::AllGather(dim) => gather(x, group, dim),
        Exchange::ReduceScatter(dim) => {
            // Pieces must be contiguous: rank-major order first.
            let pieces = Tensor::cat(x.chunk(n, dim), 0);
            let mut shape = pieces.shape();
            shape[0] /= n;
            through(pieces, group, shape, |data| group.reduce_scatter(data))
        }
    }
}

fn gather<const D: usize>(x: Tensor<D>, group: &Group, dim: usize) -> Tensor<D> {
    let n = group.size();
    let mut shape = x.shape();
    shape[0] *= n;
    let stacked = through(x, group, shape, |data| group.all_gather(data));
    if dim == 0 {
        stacked
    } else {
        Tensor::cat(stacked.chunk(n, 0), dim)
    }
}

/// Runs a collective on a tensor's elements; zeros of the expected shape if it failed.
fn through<const D: usize>(
    x: Tensor<D>,
    group: &Group,
    shape: Shape,
    collective: impl FnOnce(Buffer) -> Result<Buffer>,
) -> Tensor<D> {
    let (device, dtype) = (x.device(), x.dtype());
    let result = to_buffer(x)
        .and_then(collective)
        .and_then(|data| from_buffer(data, shape.clone(), &device));
    result.unwrap_or_else(|error| {
        group.fail(error);
        Tensor::zeros(shape, (&device, dtype))
    })
}

/// Element-wise maximum over the group, without autodiff. Failures as in [`exchange`].
pub fn maximum<const D: usize>(x: Tensor<D>, group: &Group) -> Tensor<D> {
    if group.size() == 1 {
        return x;
    }
    let shape = x.shape();
    through(x, group, shape, |data| {
        group.all_reduce(data, Reduction::Max)
    })
}
