//! The manifest: which shard holds which box of which logical tensor. Plain JSON, one object.
//!
//! Its first member is the CRC-32 of everything behind it, so a manifest proves itself whole.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;
use std::path::Path;

use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use super::{bytes, disk};
use crate::error::{Error, Result};

/// The manifest's name in a checkpoint's folder.
pub(super) const FILE: &str = "manifest.json";
const FORMAT: &str = "burn-frontier checkpoint";
const VERSION: u32 = 1;
const PREFIX: &str = "{\"checksum\":\"";
/// Hexadecimal digits of the checksum behind [`PREFIX`].
const DIGITS: usize = 8;
const MAX_BYTES: u64 = 1 << 30;
/// A manifest's first bytes, in which its version lies.
const START_BYTES: u64 = 256;

/// One shard file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Shard {
    /// Name in the checkpoint's folder.
    pub(super) file: String,
    /// Length of the file.
    pub(super) bytes: u64,
}

/// A box of a logical tensor, in a shard.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Slice {
    /// Index of the shard.
    pub(super) shard: usize,
    /// The box is called `NAME#index` there.
    pub(super) index: usize,
    /// First index, per dimension.
    pub(super) start: Vec<usize>,
    /// Lengths, per dimension.
    pub(super) len: Vec<usize>,
    /// CRC-32 of the box's bytes.
    pub(super) crc32: u32,
}

/// A logical tensor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Tensor {
    /// Element type.
    pub(super) dtype: Dtype,
    /// Logical shape.
    pub(super) shape: Vec<usize>,
    /// The boxes it consists of.
    pub(super) slices: Vec<Slice>,
}

/// The tensors of a rank, or of all: what the manifest says of the shards.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Content {
    /// The shard files.
    pub(super) shards: Vec<Shard>,
    /// The logical tensors by name.
    pub(super) tensors: BTreeMap<String, Tensor>,
}

/// The whole manifest but for its checksum.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    format: String,
    version: u32,
    /// Optimizer steps taken.
    pub(super) step: u64,
    /// What the program wants to remember: samples consumed, seed, configuration.
    pub(super) state: serde_json::Value,
    /// The tensors.
    pub(super) content: Content,
}

/// What tells manifests apart, whatever else they hold.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u32,
}

/// A box's key in its shard.
pub(super) fn key(name: &str, index: usize) -> String {
    format!("{name}#{index}")
}

impl Content {
    /// Adds another rank's tensors. Returns what contradicts.
    pub(super) fn merge(&mut self, other: Content) -> Result<(), String> {
        let first = self.shards.len();
        self.shards.extend(other.shards);
        for (name, mut tensor) in other.tensors {
            for slice in &mut tensor.slices {
                slice.shard += first;
            }
            let Some(known) = self.tensors.get_mut(&name) else {
                self.tensors.insert(name, tensor);
                continue;
            };
            if (&known.shape, known.dtype) != (&tensor.shape, tensor.dtype) {
                return Err(format!(
                    "tensor `{name}` is {} {:?} on one rank and {} {:?} on another",
                    known.dtype, known.shape, tensor.dtype, tensor.shape
                ));
            }
            known.slices.extend(tensor.slices);
        }
        Ok(())
    }

    /// Whether the shards are named well and every element of every tensor lies in exactly one box. Returns what is
    /// wrong.
    pub(super) fn check(&self) -> Result<(), String> {
        let mut files = HashSet::new();
        for shard in &self.shards {
            if !disk::is_plain(&shard.file) {
                return Err(format!(
                    "shard {:?} is no name of a file beside it",
                    shard.file
                ));
            }
            if !files.insert(&shard.file) {
                return Err(format!("shard {:?} is listed twice", shard.file));
            }
        }
        self.tensors
            .iter()
            .try_for_each(|(name, tensor)| self.check_tensor(name, tensor))
    }

    fn check_tensor(&self, name: &str, tensor: &Tensor) -> Result<(), String> {
        let shape = &tensor.shape;
        let Some(total) = bytes::count(shape) else {
            return Err(format!("tensor `{name}` of shape {shape:?} is too large"));
        };
        let mut held = 0u128;
        for slice in &tensor.slices {
            if !bytes::inside(&slice.start, &slice.len, shape) {
                return Err(format!(
                    "tensor `{name}`: the box {:?} + {:?} is empty or not within {shape:?}",
                    slice.start, slice.len
                ));
            }
            if slice.shard >= self.shards.len() {
                return Err(format!(
                    "tensor `{name}`: there is no shard {}",
                    slice.shard
                ));
            }
            held += slice.len.iter().product::<usize>() as u128;
        }
        if let Some((a, b)) = overlap(tensor) {
            return Err(format!(
                "tensor `{name}`: the boxes {:?} + {:?} in {} and {:?} + {:?} in {} overlap",
                a.start,
                a.len,
                self.shards[a.shard].file,
                b.start,
                b.len,
                self.shards[b.shard].file
            ));
        }
        // Boxes that do not overlap cover everything exactly if they are as large as everything.
        if held != total as u128 {
            return Err(format!(
                "tensor `{name}`: {held} of {total} elements are held"
            ));
        }
        Ok(())
    }
}

/// Two boxes with a common element, if there are any. Boxes are swept in order of the dimension that is cut most.
fn overlap(tensor: &Tensor) -> Option<(&Slice, &Slice)> {
    let cuts = |dim: &usize| {
        let starts: HashSet<usize> = tensor.slices.iter().map(|s| s.start[*dim]).collect();
        starts.len()
    };
    let Some(dim) = (0..tensor.shape.len()).max_by_key(cuts) else {
        return Some((tensor.slices.first()?, tensor.slices.get(1)?));
    };
    let mut order: Vec<&Slice> = tensor.slices.iter().collect();
    order.sort_by_key(|slice| slice.start[dim]);
    let mut active: Vec<&Slice> = Vec::new();
    for slice in order {
        active.retain(|other| other.start[dim] + other.len[dim] > slice.start[dim]);
        let meets = |other: &&&Slice| {
            (0..tensor.shape.len()).all(|d| {
                other.start[d] < slice.start[d] + slice.len[d]
                    && slice.start[d] < other.start[d] + other.len[d]
            })
        };
        if let Some(other) = active.iter().find(meets) {
            return Some((other, slice));
        }
        active.push(slice);
    }
    None
}

impl Manifest {
    /// A manifest of this version.
    pub(super) fn new(step: u64, state: serde_json::Value, content: Content) -> Self {
        Self {
            format: FORMAT.into(),
            version: VERSION,
            step,
            state,
            content,
        }
    }

    /// The file's content.
    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        let json = serde_json::to_vec(self)
            .map_err(|e| Error::Internal(format!("a manifest cannot be written as JSON: {e}")))?;
        // The object's own brace gives way to the checksum's member.
        let rest = [b"\",", &json[1..], b"\n"].concat();
        let digits = format!("{:08x}", crc32fast::hash(&rest));
        Ok([PREFIX.as_bytes(), digits.as_bytes(), &rest].concat())
    }

    /// Reads and checks the manifest of the checkpoint `folder`.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        refuse_newer(folder)?;
        let path = folder.join(FILE);
        let content = disk::read(&path, MAX_BYTES)?;
        Self::decode(&content).map_err(|what| {
            Error::format(
                &path,
                what,
                "it is damaged or of another program: load another checkpoint",
            )
        })
    }

    fn decode(content: &[u8]) -> Result<Self, String> {
        let head = Head::decode(content)?;
        if head.version != VERSION {
            return Err(other_version(head.version));
        }
        let manifest: Self = serde_json::from_slice(content).map_err(|e| e.to_string())?;
        manifest.content.check()?;
        Ok(manifest)
    }
}

impl Head {
    /// The head of a manifest whose checksum is right.
    fn decode(content: &[u8]) -> Result<Self, String> {
        let Some((digits, rest)) = content
            .strip_prefix(PREFIX.as_bytes())
            .and_then(|tail| tail.split_at_checked(DIGITS))
        else {
            return Err(format!(
                "does not begin with {PREFIX}, as a manifest of this library does"
            ));
        };
        let found = format!("{:08x}", crc32fast::hash(rest));
        if digits != found.as_bytes() {
            return Err(format!(
                "has checksum {found}, but says {}",
                String::from_utf8_lossy(digits)
            ));
        }
        let head: Self = serde_json::from_slice(content).map_err(|e| e.to_string())?;
        if head.format != FORMAT {
            return Err(format!("has format {:?}, not {FORMAT:?}", head.format));
        }
        Ok(head)
    }
}

fn other_version(version: u32) -> String {
    format!("has version {version}, but this library reads version {VERSION}")
}

/// Fails if the checkpoint `folder` is whole and of a newer version: it is not damaged, so it must be neither passed over
/// nor replaced. What cannot be read is left to [`Manifest::read`].
pub(super) fn refuse_newer(folder: &Path) -> Result<()> {
    let path = folder.join(FILE);
    // The first bytes suffice for a manifest of ours, and one may be large.
    let announced = disk::open(&path).ok().and_then(|(file, _)| {
        let mut start = Vec::new();
        file.take(START_BYTES).read_to_end(&mut start).ok()?;
        announced_version(&start)
    });
    if announced.is_none_or(|version| version <= VERSION) {
        return Ok(());
    }
    match Head::decode(&disk::read(&path, MAX_BYTES)?) {
        Ok(head) if head.version > VERSION => Err(Error::format(
            &path,
            other_version(head.version),
            "use the version of burn-frontier that wrote it, or move it to another folder",
        )),
        _ => Ok(()),
    }
}

/// The version that a manifest's first bytes announce.
fn announced_version(start: &[u8]) -> Option<u32> {
    let behind = start.strip_prefix(PREFIX.as_bytes())?.get(DIGITS..)?;
    let between = format!("\",\"format\":\"{FORMAT}\",\"version\":");
    let number = behind.strip_prefix(between.as_bytes())?;
    let digits = number.iter().take_while(|byte| byte.is_ascii_digit());
    let digits: Vec<u8> = digits.copied().collect();
    std::str::from_utf8(&digits).ok()?.parse().ok()
}
