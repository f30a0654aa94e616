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
    pub words: Vec<u32>,
    /// Tiles.
    pub tiles: u32,
    /// Elements of the flat buffers that the tensors reach.
    pub reach: usize,
    /// Elements of an access: 4 if all offsets are multiples of it, else 1.
    pub vector: usize,
}

impl Table {
    /// The table of `tensors`.
    ///
    /// # Errors
    /// More elements than 32-bit places.
    pub fn new(tensors: &[Tensor]) -> Result<Self> {
        let mut table = Self {
            words: Vec::new(),
            tiles: 0,
            reach: 0,
            vector: 4,
        };
        for tensor in tensors {
            table.reach = table.reach.max(tensor.offset + tensor.length);
            // The tile behind the last begins below 2^32 too.
            if table.reach > (u32::MAX - TILE) as usize {
                return Err(Error::argument(
                    "adamw",
                    format!("{} elements, but places are 32-bit numbers", table.reach),
                    "split the tensors over several launches",
                ));
            }
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

    /// Tensors.
    pub fn tensors(&self) -> u32 {
        self.words.len() as u32 / WORDS
    }
}
