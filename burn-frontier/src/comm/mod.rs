//! Communication between ranks: one trait, several transports.
//!
//! [`local`] runs every rank as a thread of this process; [`tensor`] is how tensors get into messages and out of them.

pub mod groups;
pub mod local;
pub mod record;
pub mod tensor;

use std::sync::Arc;

use half::{bf16, f16};

use crate::error::{Error, Result};

/// Elements on their way between ranks.
#[derive(Debug, Clone, PartialEq)]
pub enum Buffer {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 64-bit floats.
    F64(Vec<f64>),
    /// Half precision; sums are formed in f32 and rounded once.
    F16(Vec<f16>),
    /// Brain floats; sums are formed in f32 and rounded once.
    BF16(Vec<bf16>),
    /// Integers: token ids, counts.
    I64(Vec<i64>),
    /// Bytes: messages, flags.
    U8(Vec<u8>),
}

impl Buffer {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F64(v) => v.len(),
            Self::F16(v) => v.len(),
            Self::BF16(v) => v.len(),
            Self::I64(v) => v.len(),
            Self::U8(v) => v.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::F32(v) => size_of_val(v.as_slice()),
            Self::F64(v) => size_of_val(v.as_slice()),
            Self::F16(v) => size_of_val(v.as_slice()),
            Self::BF16(v) => size_of_val(v.as_slice()),
            Self::I64(v) => size_of_val(v.as_slice()),
            Self::U8(v) => v.len(),
        }
    }

    /// Name of the element type, as error messages and records show it.
    pub fn dtype(&self) -> &'static str {
        match self {
            Self::F32(_) => "f32",
            Self::F64(_) => "f64",
            Self::F16(_) => "f16",
            Self::BF16(_) => "bf16",
            Self::I64(_) => "i64",
            Self::U8(_) => "u8",
        }
    }

    /// The 32-bit floats inside.
    ///
    /// # Errors
    /// Another element type inside.
    pub fn into_f32(self) -> Result<Vec<f32>> {
        match self {
            Self::F32(v) => Ok(v),
            other => Err(Error::Internal(format!(
                "expected f32, got {}",
                other.dtype()
            ))),
        }
    }

    /// The 64-bit floats inside.
    ///
    /// # Errors
    /// Another element type inside.
    pub fn into_f64(self) -> Result<Vec<f64>> {
        match self {
            Self::F64(v) => Ok(v),
            other => Err(Error::Internal(format!(
                "expected f64, got {}",
                other.dtype()
            ))),
        }
    }

    /// The integers inside.
    ///
    /// # Errors
    /// Another element type inside.
    pub fn into_i64(self) -> Result<Vec<i64>> {
        match self {
            Self::I64(v) => Ok(v),
            other => Err(Error::Internal(format!(
                "expected i64, got {}",
                other.dtype()
            ))),
        }
    }

    /// The bytes inside.
    ///
    /// # Errors
    /// Another element type inside.
    pub fn into_u8(self) -> Result<Vec<u8>> {
        match self {
            Self::U8(v) => Ok(v),
            other => Err(Error::Internal(format!(
                "expected u8, got {}",
                other.dtype()
            ))),
        }
    }
}

/// How a reduction combines elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reduction {
    /// Sum, added in rank order.
    Sum,
    /// Largest element.
    Max,
}

/// Ranks that communicate, as everything that needs them holds them.
pub type Group = Arc<dyn Communicator>;

/// A group of ranks that communicate. Every member calls the same operations in the same order.
///
/// Calls block until the operation is complete on this rank. Each call is numbered; when the members' calls differ in
/// operation, element type, count, reduction or root, when a member has panicked or returned, or when the time-out
/// passes, every waiting member gets an error that names the ranks and their operations. After an error the
/// communicator and all its relatives (parent, sub-groups) stay failed: every later call returns the first error at once.
///
/// Additions happen in rank order, so results do not depend on timing.
pub trait Communicator: Send + Sync + std::fmt::Debug {
    /// This rank's index in the group.
    fn rank(&self) -> usize;

    /// Number of ranks in the group.
    fn size(&self) -> usize;

    /// World ranks of the members, in group order.
    fn members(&self) -> &[usize];

    /// The group's label in errors and traffic counts: `world`, `tp`, `dp`, …
    fn label(&self) -> &str;

    /// Element-wise reduction over the group; every rank gets the result. Moves `2 (n-1)/n` of the bytes per rank (ring convention).
    fn all_reduce(&self, data: Buffer, reduction: Reduction) -> Result<Buffer>;

    /// Element-wise sum over the group; rank `r` gets the `r`-th of `size` equal pieces. The count must divide.
    fn reduce_scatter(&self, data: Buffer) -> Result<Buffer>;

    /// Every rank's elements, in rank order. Counts may differ between ranks.
    fn all_gather(&self, data: Buffer) -> Result<Buffer>;

    /// Piece `r` of `size` equal pieces goes to rank `r`; pieces arrive in rank order. The count must divide.
    fn all_to_all(&self, data: Buffer) -> Result<Buffer>;

    /// `root`'s elements on every rank; other ranks' `data` says only the type and is otherwise ignored.
    fn broadcast(&self, data: Buffer, root: usize) -> Result<Buffer>;

    /// Sends to group rank `to`. Returns as soon as the message is on its way; messages between two ranks keep their order.
    fn send(&self, data: Buffer, to: usize) -> Result<()>;

    /// Receives the next message from group rank `from`.
    fn recv(&self, from: usize) -> Result<Buffer>;

    /// Returns once every member has called it.
    fn barrier(&self) -> Result<()>;

    /// A communicator of some members of this one, given by their ranks in this group. Every one of them calls it, with
    /// the same label and list; others need not. Calling it again with the same arguments gives an independent group.
    fn subgroup(&self, label: &str, ranks: &[usize]) -> Result<Group>;

    /// The first error that any member of the world met, if one did.
    fn failure(&self) -> Option<Error>;

    /// Marks the world as failed, so that no peer waits for this rank. Keeps the first error.
    fn fail(&self, error: Error);

    /// What this rank has communicated so far, by group label and operation.
    fn traffic(&self) -> Vec<Traffic>;
}

/// What one rank has communicated in one group by one operation.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Traffic {
    /// Label of the group.
    pub group: String,
    /// Name of the operation.
    pub operation: &'static str,
    /// Number of calls.
    pub calls: u64,
    /// Bytes of the buffers that this rank passed in (received, for `recv` and `broadcast`).
    pub bytes: u64,
}
