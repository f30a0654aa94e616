//! A rank's local tensor, put together from stored boxes of the logical one.

use std::path::Path;

use safetensors::Dtype;

use super::bytes;
use crate::comm::Buffer;
use crate::error::{Error, Result};
use crate::placement::{Block, for_each_run_of};

/// A local tensor that is being filled.
pub(crate) struct Assembly<'a> {
    blocks: &'a [Block],
    local_shape: &'a [usize],
    data: Buffer,
    /// Bytes of an element.
    size: usize,
    /// Elements filled so far.
    filled: usize,
}

impl<'a> Assembly<'a> {
    /// A local tensor of zeros for the tensor `name` of logical shape `found` in `path`, of which `shape` is expected.
    pub(crate) fn new(
        (path, name): (&Path, &str),
        (found, dtype): (&[usize], Dtype),
        shape: &[usize],
        blocks: &'a [Block],
        local_shape: &'a [usize],
    ) -> Result<Self> {
        if found != shape {
            return Err(Error::format(
                path,
                format!("tensor `{name}` has shape {found:?}, but {shape:?} is expected"),
                "load it into a model of the configuration it was saved with",
            ));
        }
        if let Some(fault) = bytes::fault(shape, blocks, local_shape) {
            return Err(Error::config(
                format!("cannot read tensor `{name}`: {fault}"),
                "ask for blocks as `Placement::blocks` gives them",
            ));
        }
        let Some(data) = bytes::zeros(dtype, local_shape.iter().product()) else {
            return Err(Error::format(
                path,
                format!("tensor `{name}` has elements of type {dtype}"),
                "convert it to F64, F32, F16, BF16, I64 or U8",
            ));
        };
        Ok(Self {
            blocks,
            local_shape,
            data,
            size: dtype.bitsize() / 8,
            filled: 0,
        })
    }

    /// Whether a stored box holds anything that is wanted.
    pub(crate) fn wants(&self, start: &[usize], len: &[usize]) -> bool {
        self.blocks
            .iter()
            .any(|block| common(block, start, len).is_some())
    }

    /// Copies what is wanted out of a stored box, whose elements are `stored`, row-major.
    pub(crate) fn fill(&mut self, start: &[usize], len: &[usize], stored: &[u8]) {
        let (size, target) = (self.size, bytes::as_bytes_mut(&mut self.data));
        for part in self
            .blocks
            .iter()
            .filter_map(|block| common(block, start, len))
        {
            for_each_run_of(&part, len, self.local_shape, &mut |from, to, run| {
                target[to * size..(to + run) * size]
                    .copy_from_slice(&stored[from * size..(from + run) * size]);
            });
            self.filled += part.count();
        }
    }

    /// The local tensor, once every block is filled.
    pub(crate) fn finish(self, path: &Path, name: &str) -> Result<Buffer> {
        let wanted: usize = self.blocks.iter().map(Block::count).sum();
        if self.filled == wanted {
            return Ok(self.data);
        }
        Err(Error::format(
            path,
            format!("tensor `{name}` gives {} of {wanted} elements", self.filled),
            "remove this checkpoint and load another",
        ))
    }
}

/// What a block and a stored box have in common: `global` counts from the box's first element.
fn common(block: &Block, start: &[usize], len: &[usize]) -> Option<Block> {
    let mut part = block.clone();
    for d in 0..start.len() {
        let low = block.global[d].max(start[d]);
        let high = (block.global[d] + block.len[d]).min(start[d] + len[d]);
        part.len[d] = high.checked_sub(low).filter(|&len| len > 0)?;
        part.global[d] = low - start[d];
        part.local[d] = block.local[d] + low - block.global[d];
    }
    Some(part)
}
