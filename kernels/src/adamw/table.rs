//! Which part of the flat buffers is which tensor.

use crate::error::{Error, Result};

/// Elements of a workgroup's tile: of one tensor, since tensors differ in their weight decay.
pub(super) const TILE: u32 = 4096;
/// Words of a tensor in the table.
pub(super) const WORDS: u32 = 4;
/// Flags of a tensor.
pub(super) const DECAYS: u32 = 1;
pub(super) const COUNTS: u32 = 2;

/// A tensor in the flat buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tensor {
    /// Where it begins, elements.
    pub offset: usize,
    /// Elements.
    pub length: usize,
    /// Whether weight decay applies to it.
    pub decays: bool,
    /// Whether this rank counts it in the norm of the gradient: one of the ranks that have it does.
    pub counts: bool,
}

/// All tensors of a launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// What the device reads, four words a tensor: its first tile, offset, length, flags.
    pub(super) words: Vec<u32>,
    /// Tiles.
    pub(super) tiles: u32,
    /// Elements of the flat buffers that the tensors reach.
    pub(super) reach: usize,
    /// Elements of an access: 4 if all offsets are multiples of it, else 1.
    pub(super) vector: usize,
}

impl Table {
    /// The table of `tensors`, one behind the other.
    ///
    /// # Errors
    /// A tensor that begins before the one before it ends, more elements than 32-bit places.
    pub fn new(tensors: &[Tensor]) -> Result<Self> {
        let mut table = Self {
            words: Vec::new(),
            tiles: 0,
            reach: 0,
            vector: 4,
        };
        for (number, tensor) in tensors.iter().enumerate() {
            if tensor.offset < table.reach {
                return Err(Error::argument(
                    "adamw",
                    format!(
                        "tensor {number} begins at element {}, the one before it ends at {}",
                        tensor.offset, table.reach
                    ),
                    "list the tensors one behind the other",
                ));
            }
            let end = tensor.offset.saturating_add(tensor.length);
            // The tile behind the last begins below 2^32 too.
            if end > (u32::MAX - TILE) as usize {
                return Err(Error::argument(
                    "adamw",
                    format!("{end} elements, but places are 32-bit numbers"),
                    "split the tensors over several launches",
                ));
            }
            table.reach = end;
            if tensor.offset % table.vector != 0 {
                table.vector = 1;
            }
            let flags = u32::from(tensor.decays) * DECAYS + u32::from(tensor.counts) * COUNTS;
            let (offset, length) = (tensor.offset as u32, tensor.length as u32);
            table.words.extend([table.tiles, offset, length, flags]);
            table.tiles += length.div_ceil(TILE);
        }
        Ok(table)
    }

    /// What the device reads, four words a tensor: its first tile, offset, length, flags.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Tiles.
    pub const fn tiles(&self) -> u32 {
        self.tiles
    }

    /// Elements of the flat buffers that the tensors reach.
    pub const fn reach(&self) -> usize {
        self.reach
    }

    /// Elements of an access: 4 if all offsets are multiples of it, else 1.
    pub const fn vector(&self) -> usize {
        self.vector
    }

    /// Tensors.
    pub fn tensors(&self) -> u32 {
        self.words.len() as u32 / WORDS
    }
}
