//! One rank's shards: pieces are collected up to a group's size, then written as one safetensors file, so a rank need
//! not hold all its pieces at once, and files stay of a size that file systems like.

use std::cmp::Reverse;
use std::path::Path;

use super::disk::Disk;
use super::manifest::{Content, Shard, Slice, Tensor, key};
use super::tensor_file::{self, Entry};
use super::{Piece, bytes};
use crate::error::{Error, Result};

/// A shard is written once it has this many bytes…
pub(super) const GROUP_BYTES: usize = 256 << 20;
/// … or this many tensors, which keeps its header below the format's limit.
const GROUP_TENSORS: usize = 1 << 16;

/// Writes the shards of one rank into a checkpoint's folder.
pub(super) struct ShardWriter<'a> {
    disk: Disk<'a>,
    folder: &'a Path,
    step: u64,
    rank: usize,
    group_bytes: usize,
    pending: Vec<(Entry, Vec<u8>)>,
    pending_bytes: usize,
    content: Content,
}

impl<'a> ShardWriter<'a> {
    /// No shards yet.
    pub(super) fn new(
        disk: Disk<'a>,
        folder: &'a Path,
        (step, rank): (u64, usize),
        group_bytes: usize,
    ) -> Self {
        Self {
            disk,
            folder,
            step,
            rank,
            group_bytes,
            pending: Vec::new(),
            pending_bytes: 0,
            content: Content::default(),
        }
    }

    /// Adds the blocks of a piece.
    pub(super) fn add(&mut self, piece: &Piece) -> Result<()> {
        let dtype = bytes::dtype_of(&piece.data);
        check(piece)?;
        refuse_non_finite(piece, self.step)?;
        let tensor = self
            .content
            .tensors
            .entry(piece.name.clone())
            .or_insert_with(|| Tensor {
                dtype,
                shape: piece.shape.clone(),
                slices: Vec::new(),
            });
        if (&tensor.shape, tensor.dtype) != (&piece.shape, dtype) {
            return Err(unsaveable(
                piece,
                "an earlier piece has another shape or type".into(),
            ));
        }
        for block in &piece.blocks {
            let data = bytes::as_bytes(&piece.data);
            let data = bytes::cut(data, dtype.bitsize() / 8, block, &piece.local_shape);
            let entry = Entry {
                key: key(&piece.name, tensor.slices.len()),
                dtype,
                shape: block.len.clone(),
            };
            tensor.slices.push(Slice {
                shard: self.content.shards.len(),
                index: tensor.slices.len(),
                start: block.global.clone(),
                len: block.len.clone(),
                crc32: crc32fast::hash(&data),
            });
            self.pending_bytes += data.len();
            self.pending.push((entry, data));
        }
        if self.pending_bytes >= self.group_bytes || self.pending.len() >= GROUP_TENSORS {
            self.flush()?;
        }
        Ok(())
    }

    /// Writes what is pending; what the manifest has to say of this rank.
    pub(super) fn finish(mut self) -> Result<Content> {
        self.flush()?;
        Ok(self.content)
    }

    fn flush(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let mut group = std::mem::take(&mut self.pending);
        let data_bytes = std::mem::take(&mut self.pending_bytes);
        group.sort_by_key(|(entry, _)| Reverse(entry.dtype.bitsize()));
        let file = format!(
            "rank{:05}-{:04}.safetensors",
            self.rank,
            self.content.shards.len()
        );
        let path = self.folder.join(&file);
        let header = tensor_file::header(&path, group.iter().map(|(entry, _)| entry), None)?;
        self.content.shards.push(Shard {
            file,
            bytes: (header.len() + data_bytes) as u64,
        });
        let chunks = std::iter::once(header).chain(group.into_iter().map(|(_, data)| data));
        self.disk.write(&path, chunks.map(Ok))
    }
}

fn check(piece: &Piece) -> Result<()> {
    if let Some(fault) = bytes::fault(&piece.shape, &piece.blocks, &piece.local_shape) {
        return Err(unsaveable(piece, fault));
    }
    let expected: usize = piece.local_shape.iter().product();
    if piece.data.len() != expected {
        let found = format!(
            "it has {} elements, but its local shape {:?} has {expected}",
            piece.data.len(),
            piece.local_shape
        );
        return Err(unsaveable(piece, found));
    }
    Ok(())
}

/// A checkpoint that nobody can train on from would push out those that somebody can.
fn refuse_non_finite(piece: &Piece, step: u64) -> Result<()> {
    let found = piece.blocks.iter().find_map(|block| {
        bytes::first_non_finite(&piece.data, block, &piece.shape, &piece.local_shape)
    });
    let Some((index, value)) = found else {
        return Ok(());
    };
    Err(Error::config(
        format!(
            "step {step} is not saved: tensor `{}` holds {value} (element {index} of {:?}), so training has diverged",
            piece.name, piece.shape
        ),
        "go on from an earlier checkpoint with a smaller learning rate",
    ))
}

fn unsaveable(piece: &Piece, why: String) -> Error {
    Error::config(
        format!("cannot save tensor `{}`: {why}", piece.name),
        "pass the parameter's own shape, blocks and local shape",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::Buffer;
    use crate::placement::Placement;

    #[test]
    fn a_shard_is_written_whenever_a_group_is_full() {
        let folder = tempfile::tempdir().unwrap();
        let unhindered = |_: &str| Ok(());
        let mut writer = ShardWriter::new(Disk::new(&unhindered), folder.path(), (1, 3), 32);
        for i in 0..5 {
            let piece = Piece {
                name: format!("t{i}"),
                shape: vec![4],
                blocks: Placement::Replicated.blocks(&[4], 0, 1),
                local_shape: vec![4],
                data: Buffer::F32(vec![i as f32; 4]),
            };
            writer.add(&piece).unwrap();
        }
        let content = writer.finish().unwrap();
        assert_eq!(content.shards.len(), 3);
        for shard in &content.shards {
            let length = std::fs::metadata(folder.path().join(&shard.file))
                .unwrap()
                .len();
            assert_eq!(length, shard.bytes, "{}", shard.file);
        }
        assert_eq!(content.tensors["t2"].slices[0].shard, 1);
        content.check().unwrap();
    }
}
