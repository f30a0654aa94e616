//! Megatron-LM's indexed dataset, read: `prefix.bin` holds the tokens, `prefix.idx` says where documents begin.
//!
//! The index, little-endian (megatron/core/datasets/indexed_dataset.py):
//!
//! | bytes | content |
//! |---|---|
//! | 9 | `MMIDIDX\0\0` |
//! | 8 | version, u64: 1 |
//! | 1 | token type, [`TokenType`] |
//! | 8 | number of sequences S, u64 |
//! | 8 | number of document boundaries D, u64: documents + 1 |
//! | 4 S | tokens of each sequence, i32 |
//! | 8 S | byte in `.bin` where each sequence begins, i64 |
//! | 8 D | sequence where each document begins, i64, from 0 to S |
//! | S or 0 | mode of each sequence, i8, in multimodal datasets; not used here |

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::{Error, Result};

pub(super) const MAGIC: &[u8; 9] = b"MMIDIDX\0\0";
pub(super) const VERSION: u64 = 1;
/// Bytes before the sequence lengths.
const HEADER: usize = 34;
/// A fingerprint looks at so many blocks of so many bytes, and at everything of less.
const BLOCKS: usize = 1024;
const BLOCK: usize = 64 << 10;
const REMEDY: &str = "write the dataset again, or copy both files again";

/// How a token is stored in `.bin`; the discriminant is Megatron's code. A reader goes by the header's code, never by the
/// vocabulary: others write two bytes for up to 65,536 ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum TokenType {
    /// One byte.
    U8 = 1,
    /// Two bytes, signed.
    I16 = 3,
    /// Four bytes, signed: what Megatron writes for large vocabularies.
    I32 = 4,
    /// Eight bytes, signed.
    I64 = 5,
    /// Two bytes: what Megatron writes for vocabularies below 65,500.
    U16 = 8,
}

impl TokenType {
    /// The type that Megatron-LM chooses for a vocabulary.
    pub fn for_vocabulary(vocabulary: usize) -> Self {
        if vocabulary < 65_500 {
            Self::U16
        } else {
            Self::I32
        }
    }

    /// Bytes of a token.
    pub fn size(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::I16 | Self::U16 => 2,
            Self::I32 => 4,
            Self::I64 => 8,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::U8, Self::I16, Self::I32, Self::I64, Self::U16]
            .into_iter()
            .find(|&kind| kind as u8 == code)
    }

    /// The token in `bytes`, of length [`TokenType::size`]; none if it is negative or beyond 32 bits.
    fn decode(self, bytes: &[u8]) -> Option<u32> {
        let signed = match (self, bytes) {
            (Self::U8, &[a]) => i64::from(a),
            (Self::I16, &[a, b]) => i64::from(i16::from_le_bytes([a, b])),
            (Self::U16, &[a, b]) => i64::from(u16::from_le_bytes([a, b])),
            (Self::I32, &[a, b, c, d]) => i64::from(i32::from_le_bytes([a, b, c, d])),
            (Self::I64, bytes) => i64::from_le_bytes(bytes.try_into().ok()?),
            _ => return None,
        };
        u32::try_from(signed).ok()
    }
}

/// `prefix.idx` and `prefix.bin`; the prefix may itself contain dots.
pub fn paths(prefix: &Path) -> (PathBuf, PathBuf) {
    let with = |suffix: &str| {
        let mut path = prefix.as_os_str().to_owned();
        path.push(suffix);
        PathBuf::from(path)
    };
    (with(".idx"), with(".bin"))
}

/// An indexed dataset on disk, mapped into memory and checked.
///
/// The files must not change while it is open: shortening a mapped file ends the program with SIGBUS.
#[derive(Debug)]
pub struct IndexedDataset {
    index: Index,
    tokens: Mmap,
    bin: PathBuf,
}

impl IndexedDataset {
    /// Maps and checks `prefix.idx` and `prefix.bin`; costs one pass over the index, none over the tokens.
    ///
    /// # Errors
    /// A file is missing, is not what the format says, or the two do not belong together.
    pub fn open(prefix: impl AsRef<Path>) -> Result<Self> {
        let (idx, bin) = paths(prefix.as_ref());
        let index = Index::new(map(&idx)?, idx)?;
        let tokens = map(&bin)?;
        index.check_lengths(tokens.len() as u64, &bin)?;
        index.check_documents()?;
        Ok(Self { index, tokens, bin })
    }

    /// Number of documents.
    pub fn documents(&self) -> usize {
        self.index.boundaries.len() / 8 - 1
    }

    /// Checksums of the index and of the tokens, or of blocks of them; see [`Dataset`](super::Dataset::fingerprint).
    pub(super) fn fingerprint(&self) -> String {
        let mut content = crc32fast::Hasher::new();
        let tokens = &self.tokens[..];
        let apart = (tokens.len() / BLOCKS).max(BLOCK);
        for begin in (0..tokens.len()).step_by(apart) {
            content.update(&tokens[begin..tokens.len().min(begin + BLOCK)]);
        }
        format!(
            "{}-{:08x}-{:08x}",
            tokens.len(),
            crc32fast::hash(&self.index.map),
            content.finalize()
        )
    }

    /// How the tokens are stored.
    pub fn token_type(&self) -> TokenType {
        self.index.token_type
    }

    /// Where document `document` lies, in tokens from the beginning of `.bin`; empty beyond the last document.
    pub fn document(&self, document: usize) -> Range<u64> {
        self.start(document)..self.start(document.saturating_add(1))
    }

    /// Appends the tokens at `range` of `.bin` to `into`.
    ///
    /// # Errors
    /// The range is beyond the file, or a token is negative or beyond 32 bits.
    pub fn read(&self, range: Range<u64>, into: &mut Vec<u32>) -> Result<()> {
        let kind = self.index.token_type;
        let byte = |token: u64| usize::try_from(token).ok()?.checked_mul(kind.size());
        let bytes = byte(range.start)
            .zip(byte(range.end))
            .and_then(|(from, to)| self.tokens.get(from..to))
            .ok_or_else(|| {
                Error::Internal(format!(
                    "tokens {range:?} are beyond {}",
                    self.bin.display()
                ))
            })?;
        into.reserve(bytes.len() / kind.size());
        for (i, token) in bytes.chunks_exact(kind.size()).enumerate() {
            into.push(kind.decode(token).ok_or_else(|| {
                let what = format!(
                    "token {} is not in 0..2^32 (type {kind:?})",
                    range.start + i as u64
                );
                Error::format(
                    &self.bin,
                    what,
                    "tokenize the text again; ids are not negative",
                )
            })?);
        }
        Ok(())
    }

    /// First token of a document; the end of `.bin` from the last document on.
    fn start(&self, document: usize) -> u64 {
        let size = self.index.token_type.size() as u64;
        let sequence = i64_at(self.index.boundaries(), document)
            .and_then(|sequence| i64_at(self.index.pointers(), usize::try_from(sequence).ok()?));
        sequence.map_or(self.tokens.len() as u64, i64::cast_unsigned) / size
    }
}

/// The `.idx` file, its three arrays cut out.
#[derive(Debug)]
struct Index {
    map: Mmap,
    path: PathBuf,
    token_type: TokenType,
    lengths: Range<usize>,
    pointers: Range<usize>,
    boundaries: Range<usize>,
}

impl Index {
    /// Checks the header and that the arrays fill the file; allocates nothing.
    fn new(map: Mmap, path: PathBuf) -> Result<Self> {
        let wrong = |what: String, remedy: &str| Error::format(&path, what, remedy);
        let length = map.len();
        if !map.starts_with(MAGIC) {
            let what =
                "this is no Megatron index: it does not begin with MMIDIDX\\0\\0".to_string();
            return Err(wrong(
                what,
                "give the prefix of an .idx and a .bin file made by Megatron or this library",
            ));
        }
        let (Some(version), Some(&code), Some(sequences), Some(boundaries)) = (
            u64_at(&map, 9),
            map.get(17),
            u64_at(&map, 18),
            u64_at(&map, 26),
        ) else {
            return Err(wrong(
                format!("the header of {HEADER} bytes is cut off at {length}"),
                REMEDY,
            ));
        };
        if version != VERSION {
            let what = format!("its format version is {version}, and only {VERSION} is known");
            return Err(wrong(
                what,
                "write it with Megatron-LM's current preprocess_data.py or this library",
            ));
        }
        let token_type = TokenType::from_code(code).ok_or_else(|| {
            let what = format!(
                "its token type code is {code}, not 1 (u8), 3 (i16), 4 (i32), 5 (i64) or 8 (u16)"
            );
            wrong(what, "write it with an integer token type")
        })?;
        if boundaries == 0 {
            return Err(wrong(
                "it has 0 document boundaries; there is at least one, 0".into(),
                REMEDY,
            ));
        }
        let cut = arrays(sequences, boundaries)
            .filter(|(_, modes)| length == modes.start || length == modes.end);
        let Some(([lengths, pointers, boundaries], _)) = cut else {
            let what = format!(
                "its header announces {sequences} sequences and {boundaries} document boundaries, \
                 which do not fill its {length} bytes"
            );
            return Err(wrong(what, REMEDY));
        };
        Ok(Self {
            map,
            path,
            token_type,
            lengths,
            pointers,
            boundaries,
        })
    }

    fn lengths(&self) -> &[u8] {
        self.part(&self.lengths)
    }

    fn pointers(&self) -> &[u8] {
        self.part(&self.pointers)
    }

    fn boundaries(&self) -> &[u8] {
        self.part(&self.boundaries)
    }

    fn part(&self, range: &Range<usize>) -> &[u8] {
        self.map.get(range.clone()).unwrap_or_default()
    }

    /// Checks that the sequences follow each other in `.bin`, from its first byte to its last.
    fn check_lengths(&self, file: u64, bin: &Path) -> Result<()> {
        let size = self.token_type.size() as i64;
        let mut expected = 0_i64;
        let both = i32s(self.lengths()).zip(i64s(self.pointers()));
        for (sequence, (length, pointer)) in both.enumerate() {
            let end = i64::from(length)
                .checked_mul(size)
                .and_then(|bytes| pointer.checked_add(bytes));
            let Some(end) = end.filter(|_| length >= 0 && pointer == expected) else {
                let what = format!(
                    "sequence {sequence} has {length} tokens at byte {pointer}, where byte {expected} should \
                     follow its predecessor"
                );
                return Err(Error::format(&self.path, what, REMEDY));
            };
            if end.cast_unsigned() > file {
                let what = format!(
                    "sequence {sequence} ends at byte {end}, beyond the {file} bytes of {}",
                    bin.display()
                );
                return Err(Error::format(&self.path, what, REMEDY));
            }
            expected = end;
        }
        if expected.cast_unsigned() != file {
            let what = format!(
                "it has {file} bytes, but {} describes {expected}",
                self.path.display()
            );
            return Err(Error::format(
                bin,
                what,
                "copy both files again: they are not of the same dataset",
            ));
        }
        Ok(())
    }

    /// Checks that the document boundaries rise from 0 to the number of sequences.
    fn check_documents(&self) -> Result<()> {
        let sequences = (self.lengths.len() / 4) as i64;
        let mut last = 0;
        for (document, boundary) in i64s(self.boundaries()).enumerate() {
            if boundary < last || (document == 0 && boundary != 0) {
                let what = format!(
                    "document {document} begins at sequence {boundary}, which is not in {last}..={}",
                    if document == 0 { 0 } else { sequences }
                );
                return Err(Error::format(&self.path, what, REMEDY));
            }
            last = boundary;
        }
        if last != sequences {
            let what = format!("its documents end at sequence {last} of {sequences}");
            return Err(Error::format(&self.path, what, REMEDY));
        }
        Ok(())
    }
}

/// Where the three arrays of an index lie, and then the modes; none if the counts overflow.
fn arrays(sequences: u64, boundaries: u64) -> Option<([Range<usize>; 3], Range<usize>)> {
    let (sequences, boundaries) = (
        usize::try_from(sequences).ok()?,
        usize::try_from(boundaries).ok()?,
    );
    let pointers = HEADER.checked_add(sequences.checked_mul(4)?)?;
    let documents = pointers.checked_add(sequences.checked_mul(8)?)?;
    let modes = documents.checked_add(boundaries.checked_mul(8)?)?;
    let end = modes.checked_add(sequences)?;
    Some((
        [HEADER..pointers, pointers..documents, documents..modes],
        modes..end,
    ))
}

#[expect(unsafe_code)]
fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    // SAFETY: the map is read-only, and every bit pattern is valid for the bytes it is read as. A file changed by
    // another process while mapped gives other bytes; all positions taken from it are checked against the map.
    unsafe { Mmap::map(&file) }.map_err(|e| Error::io("map", path, e))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    let end = offset.checked_add(8)?;
    Some(u64::from_le_bytes(bytes.get(offset..end)?.try_into().ok()?))
}

/// Element `index` of an array of i64, which lies unaligned in the file.
fn i64_at(bytes: &[u8], index: usize) -> Option<i64> {
    u64_at(bytes, index.checked_mul(8)?).map(u64::cast_signed)
}

fn i64s(bytes: &[u8]) -> impl Iterator<Item = i64> {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().map(|&word| i64::from_le_bytes(word))
}

fn i32s(bytes: &[u8]) -> impl Iterator<Item = i32> {
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|&word| i32::from_le_bytes(word))
}
