//! Saving: every rank writes its shards into a temporary folder; rank 0 adds the manifest and gives it its name.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::disk::Disk;
use super::manifest::{self, Content, Manifest};
use super::shard::{GROUP_BYTES, ShardWriter};
use super::{Piece, folder};
use crate::comm::{Buffer, Communicator};
use crate::error::{Error, Result};

/// Saves a checkpoint as `folder/step-…`, and returns that path. Collective: every rank of `comm` calls it with the
/// same `folder`, which all of them see, and the same `step`; a rank may have no pieces. Every element of a tensor must
/// come from exactly one rank. `state` is rank 0's.
///
/// Pieces are taken one at a time; a rank holds about 256 MB of them and the current one. A checkpoint of the same
/// step is replaced. Of the checkpoints in `folder`, the one saved and the newest others stay, `keep` in all (0: all).
///
/// Communicates three all-gathers of outcomes; the second carries each rank's share of the manifest, some 200 bytes a
/// block.
///
/// # Errors
/// The same on every rank, if one rank fails: a piece is an error or contradicts its shape, holds a float that is not
/// finite, an element comes from two ranks or none, a file cannot be written, `folder` holds a checkpoint of a newer
/// version of this library. Earlier checkpoints stay whole; the new one is there only if nothing failed but the very last
/// sync. Failure to remove old ones is a warning.
pub fn save(
    folder: &Path,
    step: u64,
    state: &serde_json::Value,
    pieces: impl IntoIterator<Item = Result<Piece>>,
    comm: &dyn Communicator,
    keep: usize,
) -> Result<PathBuf> {
    save_with(folder, step, state, pieces, comm, keep, &|_| Ok(()))
}

/// [`save`], with `before` told of every durable operation before it happens: an error stops the writer there.
#[doc(hidden)]
pub fn save_with(
    folder: &Path,
    step: u64,
    state: &serde_json::Value,
    pieces: impl IntoIterator<Item = Result<Piece>>,
    comm: &dyn Communicator,
    keep: usize,
    before: &dyn Fn(&str) -> Result<()>,
) -> Result<PathBuf> {
    let disk = Disk::new(before);
    let root = comm.rank() == 0;
    let prepared = if root {
        prepare(disk, folder, step)
    } else {
        Ok(())
    };
    let saved = agree(comm, prepared).and_then(|_| {
        let shares = agree(comm, write_shards(disk, folder, step, pieces, comm.rank()))?;
        let published = if root {
            publish(disk, folder, step, state, shares)
        } else {
            Ok(())
        };
        agree(comm, published)
    });
    if root {
        folder::warn_of(match &saved {
            Ok(_) => folder::prune(disk, folder, step, keep),
            // What a newer version left is not ours to clear up.
            Err(_) if folder.is_dir() && folder::refuse_newer(folder).is_ok() => {
                folder::recover(disk, folder)
            }
            Err(_) => Ok(()),
        });
    }
    saved?;
    // Nobody goes on while an old checkpoint is still being removed: it may be about to be read.
    comm.barrier()?;
    Ok(folder::whole(folder, step))
}

/// Makes an empty temporary folder, and clears up behind a writer that was stopped.
fn prepare(disk: Disk<'_>, folder: &Path, step: u64) -> Result<()> {
    if !folder.is_dir() {
        disk.create_folder(folder, true)?;
        if let Some(parent) = folder.parent().filter(|parent| parent.is_dir()) {
            disk.sync_folder(parent)?;
        }
    }
    folder::refuse_newer(folder)?;
    folder::warn_of(folder::recover(disk, folder));
    disk.create_folder(&folder::temporary(folder, step), false)
}

fn write_shards(
    disk: Disk<'_>,
    folder: &Path,
    step: u64,
    pieces: impl IntoIterator<Item = Result<Piece>>,
    rank: usize,
) -> Result<Content> {
    let folder = folder::temporary(folder, step);
    let mut writer = ShardWriter::new(disk, &folder, (step, rank), GROUP_BYTES);
    for piece in pieces {
        writer.add(&piece?)?;
    }
    writer.finish()
}

/// Writes the manifest of all ranks' shares, and gives the checkpoint its name.
fn publish(
    disk: Disk<'_>,
    folder: &Path,
    step: u64,
    state: &serde_json::Value,
    shares: Vec<Content>,
) -> Result<()> {
    let mut content = Content::default();
    shares
        .into_iter()
        .try_for_each(|share| content.merge(share))
        .and_then(|()| content.check())
        .map_err(|what| {
            Error::config(
                format!("the ranks' pieces make no checkpoint: {what}"),
                "every element of a tensor must come from exactly one rank",
            )
        })?;
    let manifest = Manifest::new(step, state.clone(), content).encode()?;
    let path = folder::temporary(folder, step).join(manifest::FILE);
    disk.write(&path, [Ok(manifest)])?;
    folder::publish(disk, folder, step).map(drop)
}

/// Exchanges the ranks' outcomes, in rank order. One rank's error is every rank's.
fn agree<T: Serialize + DeserializeOwned>(
    comm: &dyn Communicator,
    outcome: Result<T>,
) -> Result<Vec<T>> {
    let message = outcome.as_ref().map_err(Error::to_string);
    let message = serde_json::to_vec(&message)
        .map_err(|e| Error::Internal(format!("an outcome cannot be written as JSON: {e}")))?;
    let framed = [&(message.len() as u64).to_le_bytes()[..], &message].concat();
    let gathered = comm.all_gather(Buffer::U8(framed));
    // Its own error says more than what the others make of it.
    outcome?;
    let gathered = gathered?.into_u8()?;
    let mut rest = gathered.as_slice();
    let mut outcomes = Vec::with_capacity(comm.size());
    for &member in comm.members() {
        let message = unframe(&mut rest)
            .ok_or_else(|| Error::Internal("an outcome arrived incomplete".into()))?;
        let outcome: Result<T, String> = serde_json::from_slice(message)
            .map_err(|e| Error::Internal(format!("an outcome arrived damaged: {e}")))?;
        outcomes.push(outcome.map_err(|what| {
            Error::communication(
                comm.members()[comm.rank()],
                format!("no checkpoint was saved, because rank {member} failed: {what}"),
                "earlier checkpoints are whole; mend what that rank reports",
            )
        })?);
    }
    Ok(outcomes)
}

/// Takes the next message off the front.
fn unframe<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, tail) = rest.split_first_chunk::<8>()?;
    let (message, tail) =
        tail.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    *rest = tail;
    Some(message)
}
