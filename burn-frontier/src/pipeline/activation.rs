//! Tensors that stages hand on.

use burn::tensor::{Device, Gradients, Shape, Tensor};

use crate::comm::tensor::{from_buffer, to_buffer};
use crate::comm::{Buffer, Communicator};
use crate::error::{Error, Result};
use crate::ops::gradient::seed;

/// The highest rank of an [`Activation`].
const MAX_RANK: usize = 8;

macro_rules! ranks {
    ($($name:ident $rank:literal),*) => {
        /// A float tensor of any rank from 1 to 8: what a stage gives the next, or its gradient.
        #[derive(Debug, Clone)]
        pub struct Activation(Ranked);

        #[derive(Debug, Clone)]
        enum Ranked {
            $($name(Tensor<$rank>),)*
        }

        $(impl From<Tensor<$rank>> for Activation {
            fn from(tensor: Tensor<$rank>) -> Self {
                Self(Ranked::$name(tensor))
            }
        })*

        /// Does the same to a tensor of whichever rank.
        macro_rules! each {
            ($ranked:expr, $x:ident => $result:expr) => {
                match $ranked {
                    $(Ranked::$name($x) => $result,)*
                }
            };
        }

        /// A tensor of the given rank, from `$make`, which knows its own rank by where it goes.
        macro_rules! of_rank {
            ($given:expr, $make:expr) => {
                match $given {
                    $($rank => Activation::from($make as Tensor<$rank>),)*
                    other => return Err(unknown_rank(other)),
                }
            };
        }
    };
}

ranks!(One 1, Two 2, Three 3, Four 4, Five 5, Six 6, Seven 7, Eight 8);

impl Activation {
    /// The tensor.
    ///
    /// # Errors
    /// Another rank.
    pub fn tensor<const D: usize>(self) -> Result<Tensor<D>> {
        let shape = self.shape();
        if shape.num_dims() == D {
            return Ok(each!(self.0, x => Tensor::from_dispatch(x.into_dispatch())));
        }
        Err(Error::config(
            format!("an activation of shape {shape:?} was taken as one of rank {D}"),
            "take it with the rank that the stage before gave it",
        ))
    }

    /// Its shape.
    pub fn shape(&self) -> Shape {
        each!(&self.0, x => x.shape())
    }

    /// A leaf of a new autodiff graph.
    pub(crate) fn leaf(self) -> Self {
        each!(self.0, x => x.without_autodiff().autodiff().require_grad().into())
    }

    /// Without autodiff.
    pub(crate) fn plain(self) -> Self {
        each!(self.0, x => x.without_autodiff().into())
    }

    /// The gradient of a leaf; zeros if it took no part: what lies before it waits for one.
    pub(crate) fn take_gradient(self, gradients: &mut Gradients) -> Self {
        each!(self.0, x => {
            let gradient = x.grad_remove(gradients);
            gradient.unwrap_or_else(|| x.without_autodiff().zeros_like()).into()
        })
    }

    /// A scalar whose backward pass gives this output the gradient `gradient`.
    ///
    /// # Errors
    /// A gradient of another shape.
    pub(crate) fn seed(self, gradient: Self) -> Result<Tensor<1>> {
        if self.shape() != gradient.shape() {
            return Err(Error::Internal(format!(
                "a backward pass starts from a gradient of shape {:?} where the output has {:?}",
                gradient.shape(),
                self.shape()
            )));
        }
        Ok(each!(self.0, x => seed(x, gradient.tensor()?)))
    }

    fn to_buffer(&self) -> Result<Buffer> {
        each!(&self.0, x => to_buffer(x.clone()))
    }

    fn from_buffer(data: Buffer, shape: &Shape, device: &Device) -> Result<Self> {
        let shape = shape.clone();
        Ok(of_rank!(
            shape.num_dims(),
            from_buffer(data, shape, device)?
        ))
    }
}

fn unknown_rank(rank: usize) -> Error {
    Error::config(
        format!("an activation of rank {rank}"),
        format!("stages hand on tensors of rank 1 to {MAX_RANK}"),
    )
}

/// Sends activations: first their shapes, then each. Received by [`receive`].
///
/// # Errors
/// Failed communication, or a device that cannot be read.
pub fn send(activations: &[Activation], pp: &dyn Communicator, to: usize) -> Result<()> {
    let mut header = Vec::new();
    for activation in activations {
        let shape = activation.shape();
        header.push(shape.num_dims() as i64);
        header.extend(shape.iter().map(|&n| n as i64));
    }
    pp.send(Buffer::I64(header), to)?;
    send_values(activations, pp, to)
}

/// Sends activations whose shapes the receiver knows. Received by [`receive_values`].
///
/// # Errors
/// As [`send`].
pub fn send_values(activations: &[Activation], pp: &dyn Communicator, to: usize) -> Result<()> {
    let mut activations = activations.iter();
    activations.try_for_each(|activation| pp.send(activation.to_buffer()?, to))
}

/// Receives what [`send`] sent.
///
/// # Errors
/// Failed communication.
pub fn receive(pp: &dyn Communicator, from: usize, device: &Device) -> Result<Vec<Activation>> {
    let header = pp.recv(from)?.into_i64()?;
    let mut shapes = Vec::new();
    let mut rest = header.as_slice();
    while let Some((&rank, tail)) = rest.split_first() {
        let (shape, tail) = usize::try_from(rank)
            .ok()
            .and_then(|rank| tail.split_at_checked(rank))
            .ok_or_else(|| Error::Internal("shapes of activations arrived damaged".into()))?;
        shapes.push(shape.iter().map(|&n| n as usize).collect::<Vec<_>>().into());
        rest = tail;
    }
    receive_values(&shapes, pp, from, device)
}

/// Receives activations of the given shapes.
///
/// # Errors
/// Failed communication, or another number of elements.
pub fn receive_values(
    shapes: &[Shape],
    pp: &dyn Communicator,
    from: usize,
    device: &Device,
) -> Result<Vec<Activation>> {
    let receive = |shape| Activation::from_buffer(pp.recv(from)?, shape, device);
    shapes.iter().map(receive).collect()
}
