//! Text files as people save them: UTF-8, with or without a byte-order mark in front.

use std::io::{self, Read};
use std::path::Path;

use crate::error::{Error, Result};

/// The byte-order mark that some editors put in front of UTF-8.
pub const MARK: &[u8] = b"\xEF\xBB\xBF";
/// Bytes checked at once.
const CHUNK: usize = 64 << 10;

/// The text of a file without its byte-order mark.
///
/// # Errors
/// The file cannot be read, or is not UTF-8; UTF-16 is named.
pub fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    Ok(text(path, &bytes)?.to_string())
}

/// The text in the bytes of a file without its byte-order mark; `path` is for messages.
///
/// # Errors
/// They are not UTF-8; UTF-16 is named.
pub fn text<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a str> {
    let content = without_mark(bytes);
    std::str::from_utf8(content).map_err(|e| {
        let skipped = bytes.len() - content.len();
        Fault::of(bytes, (skipped + e.valid_up_to()) as u64).error(path)
    })
}

/// The bytes behind a byte-order mark, if there is one.
pub fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(MARK).unwrap_or(bytes)
}

/// Why bytes are no text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// They begin with a byte-order mark of UTF-16.
    Utf16,
    /// The byte at this offset belongs to no character.
    Byte(u64),
    /// The byte at this offset is NUL, which text has not.
    Nul(u64),
}

impl Fault {
    /// The fault of a file that begins with `head` and is not UTF-8 at `offset`.
    pub(crate) fn of(head: &[u8], offset: u64) -> Self {
        match head {
            [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => Self::Utf16,
            _ => Self::Byte(offset),
        }
    }

    /// The error of a file that should have been text.
    pub(crate) fn error(self, path: &Path) -> Error {
        let convert = "convert it to UTF-8, for instance with iconv";
        match self {
            Self::Utf16 => Error::format(path, "this is UTF-16, not UTF-8", convert),
            Self::Byte(at) => Error::format(
                path,
                format!("this is not UTF-8 text: byte {at} belongs to no character"),
                format!("{convert}; decompress it; or leave it out"),
            ),
            Self::Nul(at) => Error::format(
                path,
                format!("this is not text: byte {at} is NUL"),
                "decompress it, or leave it out",
            ),
        }
    }
}

/// The first fault of a text, read to its end without keeping it; none if it is UTF-8 without NUL.
pub(crate) fn first_fault(mut text: impl Read) -> io::Result<Option<Fault>> {
    let mut head = [0; 2];
    let mut bytes = Vec::new();
    let mut offset = 0; // of the first of `bytes`, of which all but the last, cut character was checked
    loop {
        let read = (&mut text).take(CHUNK as u64).read_to_end(&mut bytes)?;
        if offset == 0 && bytes.len() >= 2 {
            head.copy_from_slice(&bytes[..2]);
        }
        let valid = match std::str::from_utf8(&bytes) {
            Ok(_) => bytes.len(),
            Err(e) if e.error_len().is_none() && read > 0 => e.valid_up_to(),
            Err(e) => return Ok(Some(Fault::of(&head, offset + e.valid_up_to() as u64))),
        };
        if let Some(nul) = bytes[..valid].iter().position(|&byte| byte == 0) {
            return Ok(Some(Fault::Nul(offset + nul as u64)));
        }
        if read == 0 {
            return Ok(None);
        }
        offset += valid as u64;
        bytes.drain(..valid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_no_part_of_the_text_and_faults_are_named() {
        let path = Path::new("config.toml");
        assert_eq!(text(path, b"\xEF\xBB\xBFsteps = 1").unwrap(), "steps = 1");
        assert_eq!(text(path, b"steps = 1").unwrap(), "steps = 1");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("runs.csv");
        std::fs::write(&file, "\u{FEFF}tp,pp\n").unwrap();
        assert_eq!(read(&file).unwrap(), "tp,pp\n");
        let missing = read(folder.path().join("no.csv")).unwrap_err().to_string();
        assert!(missing.contains("no.csv"), "{missing}");
        let wrong = |bytes| text(path, bytes).unwrap_err().to_string();
        assert!(wrong(b"\xFF\xFEs\0").contains("UTF-16"));
        assert!(wrong(b"\xEF\xBB\xBFcaf\xE9").contains("byte 6"));
        assert!(wrong(b"caf\xE9").contains("config.toml"));
    }

    #[test]
    fn the_first_fault_is_found_wherever_it_lies() {
        let fault = |bytes: &[u8]| first_fault(bytes).unwrap();
        assert_eq!(fault(b""), None);
        assert_eq!(fault(b"\xFF\xFEa\0"), Some(Fault::Utf16));
        assert_eq!(fault(b"a\0"), Some(Fault::Nul(1)));
        assert_eq!(fault(b"cut \xC3"), Some(Fault::Byte(4)));
        // A character of two bytes on every border of a chunk.
        for shift in 0..2 {
            let mut long = vec![b'a'; shift];
            long.extend("é".repeat(2 * CHUNK).bytes());
            assert_eq!(fault(&long), None);
            let end = long.len() as u64;
            long.push(0);
            assert_eq!(fault(&long), Some(Fault::Nul(end)));
            long.pop();
            long.push(0xE9);
            assert_eq!(fault(&long), Some(Fault::Byte(end)));
        }
    }
}
