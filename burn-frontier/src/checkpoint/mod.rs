//! Checkpoints: logical tensors on disk, independent of the layout that wrote them.
//!
//! A checkpoint is a folder `step-00000100` of safetensors shards beside a `manifest.json` that says which shard holds
//! which box of which tensor, with a CRC-32 of every box and of itself. [`save()`] writes it so that a kill at any
//! moment leaves the previous one whole; [`Checkpoint`] reads any box of any tensor, whatever layout wrote it.
//!
//! Floats of the state come back exactly only if serde_json has its feature `float_roundtrip`.
//! One run at a time writes to a folder of checkpoints.

pub(crate) mod assembly;
pub(crate) mod bytes;
pub(crate) mod disk;
mod folder;
mod load;
mod manifest;
mod save;
mod shard;
pub(crate) mod tensor_file;

use crate::comm::Buffer;
use crate::error::Result;
use crate::placement::Block;

pub use load::Checkpoint;
pub use save::save;
#[doc(hidden)]
pub use save::save_with;

/// What one rank contributes of one logical tensor.
#[derive(Debug, Clone)]
pub struct Piece {
    /// The tensor's name, the same in every layout.
    pub name: String,
    /// Shape of the whole logical tensor.
    pub shape: Vec<usize>,
    /// The boxes that this rank contributes, and where they lie in `data`.
    pub blocks: Vec<Block>,
    /// Shape of `data`, padding included.
    pub local_shape: Vec<usize>,
    /// The local tensor, row-major. What lies in no block (padding) is not saved.
    pub data: Buffer,
}

/// Logical tensors by name, from which a rank reads its own part: a [`Checkpoint`], or another program's file.
pub trait TensorSource {
    /// The local tensor of shape `local_shape` whose `blocks` are filled from the logical tensor `name`; the rest is
    /// zero. The element type is the stored one. Reads the parts of files that overlap the blocks; no communication.
    ///
    /// # Errors
    /// No such tensor, a logical shape other than `shape`, blocks outside either shape, a damaged or missing file.
    fn read(
        &self,
        name: &str,
        shape: &[usize],
        blocks: &[Block],
        local_shape: &[usize],
    ) -> Result<Buffer>;

    /// Names and logical shapes of the tensors whose names begin with `prefix`, in alphabetical order.
    fn list(&self, prefix: &str) -> Vec<(String, Vec<usize>)>;
}
