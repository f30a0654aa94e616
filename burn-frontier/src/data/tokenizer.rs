//! Text to token ids and back: bytes, which need no file, or a Hugging Face `tokenizer.json`.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::utf8;

/// Vocabulary of the byte tokenizer: 256 bytes and the end of a document.
const BYTE_VOCABULARY: usize = 257;
/// The byte tokenizer's end-of-document id.
const BYTE_END: u32 = 256;
/// Names under which published tokenizers hold their end-of-document token, most specific first.
const END_NAMES: [&str; 7] = [
    "<|endoftext|>",
    "<|end_of_text|>",
    "<｜end▁of▁sentence｜>",
    "<eod>",
    "</s>",
    "<eos>",
    "[EOS]",
];

/// Turns text into token ids and back. Share it between threads by reference.
pub struct Tokenizer {
    kind: Kind,
    fingerprint: String,
}

enum Kind {
    Bytes,
    HuggingFace {
        inner: Box<tokenizers::Tokenizer>,
        path: PathBuf,
        vocabulary: usize,
        end: Option<u32>,
    },
}

impl Tokenizer {
    /// One token a byte: ids 0..=255 are the bytes, 256 ends a document. Needs no file and loses nothing.
    pub fn bytes() -> Self {
        Self {
            kind: Kind::Bytes,
            fingerprint: "bytes-257".into(),
        }
    }

    /// The tokenizer in a Hugging Face `tokenizer.json`, of any model that the crate `tokenizers` knows.
    ///
    /// Merges may be written as `["G", "t"]` or as `"G t"`. Truncation and padding that the file asks for are ignored: they would
    /// cut documents silently.
    ///
    /// # Errors
    /// The file cannot be read, is no tokenizer, or has an empty vocabulary.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let json = utf8::read(path)?;
        let mut inner = tokenizers::Tokenizer::from_bytes(&json).map_err(|e| {
            Error::format(
                path,
                format!("this is not a tokenizer that can be used: {e}"),
                "give a Hugging Face `tokenizer.json` (not tokenizer_config.json, vocab.json or .model)",
            )
        })?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| {
            Error::format(
                path,
                format!("its truncation cannot be switched off: {e}"),
                "remove `truncation` from it",
            )
        })?;
        // Ids may have gaps, so the size of the embedding is the largest id + 1, not the number of entries.
        let vocabulary = inner
            .get_vocab(true)
            .into_values()
            .max()
            .map_or(0, |id| id as usize + 1);
        if vocabulary == 0 {
            return Err(Error::format(
                path,
                "its vocabulary is empty",
                "train the tokenizer, or give another file",
            ));
        }
        let end = END_NAMES.iter().find_map(|name| inner.token_to_id(name));
        let fingerprint = format!(
            "huggingface-{vocabulary}-{}-{:08x}",
            json.len(),
            crc32fast::hash(json.as_bytes())
        );
        Ok(Self {
            kind: Kind::HuggingFace {
                inner: Box::new(inner),
                path: path.to_path_buf(),
                vocabulary,
                end,
            },
            fingerprint,
        })
    }

    /// The token ids of `text`, without an end-of-document token.
    ///
    /// # Errors
    /// The tokenizer has no token for a part of the text, and none for unknown text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &self.kind {
            Kind::Bytes => Ok(text.bytes().map(u32::from).collect()),
            Kind::HuggingFace { inner, path, .. } => inner
                .encode_fast(text, false)
                .map(|encoding| encoding.get_ids().to_vec())
                .map_err(|e| cannot_encode(path, &e)),
        }
    }

    /// The token ids of each document, each followed by [`Tokenizer::end_of_document`].
    ///
    /// A Hugging Face tokenizer encodes the documents of a call in parallel on all cores.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`] and [`Tokenizer::end_of_document`].
    pub fn encode_documents(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>> {
        let end = self.end_of_document()?;
        let mut documents: Vec<Vec<u32>> = match &self.kind {
            Kind::Bytes => texts
                .iter()
                .map(|text| self.encode(text))
                .collect::<Result<_>>()?,
            Kind::HuggingFace { inner, path, .. } => inner
                .encode_batch_fast(texts.to_vec(), false)
                .map_err(|e| cannot_encode(path, &e))?
                .iter()
                .map(|encoding| encoding.get_ids().to_vec())
                .collect(),
        };
        for document in &mut documents {
            document.push(end);
        }
        Ok(documents)
    }

    /// The text of token ids. Special tokens are left out; bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// An id is outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.vocabulary()) {
            return Err(Error::config(
                format!(
                    "token id {id} is outside the tokenizer's vocabulary of {}",
                    self.vocabulary()
                ),
                "decode with the tokenizer that encoded the tokens",
            ));
        }
        match &self.kind {
            Kind::Bytes => {
                let bytes: Vec<u8> = ids.iter().filter_map(|&id| u8::try_from(id).ok()).collect();
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            Kind::HuggingFace { inner, path, .. } => inner.decode(ids, true).map_err(|e| {
                Error::format(
                    path,
                    format!("cannot decode {} tokens: {e}", ids.len()),
                    "check its `decoder`",
                )
            }),
        }
    }

    /// Ids are below this number: the rows that an embedding needs.
    pub fn vocabulary(&self) -> usize {
        match &self.kind {
            Kind::Bytes => BYTE_VOCABULARY,
            Kind::HuggingFace { vocabulary, .. } => *vocabulary,
        }
    }

    /// All ids that stand for something, in order. A Hugging Face tokenizer's may have gaps.
    pub fn ids(&self) -> Vec<u32> {
        match &self.kind {
            Kind::Bytes => (0..=BYTE_END).collect(),
            Kind::HuggingFace { inner, .. } => {
                let mut ids: Vec<u32> = inner.get_vocab(true).into_values().collect();
                ids.sort_unstable();
                ids.dedup();
                ids
            }
        }
    }

    /// The id that ends a document.
    ///
    /// # Errors
    /// The tokenizer's vocabulary has none of the usual names for it.
    pub fn end_of_document(&self) -> Result<u32> {
        match &self.kind {
            Kind::Bytes => Ok(BYTE_END),
            Kind::HuggingFace { end: Some(id), .. } => Ok(*id),
            Kind::HuggingFace { path, .. } => Err(Error::format(
                path,
                format!(
                    "no end-of-document token: looked for {}",
                    END_NAMES.join(", ")
                ),
                "add one of these to its `added_tokens`",
            )),
        }
    }

    /// Names this tokenizer in a checkpoint: equal for the same file content on every machine, different otherwise.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Tokenizer").field(&self.fingerprint).finish()
    }
}

fn cannot_encode(path: &Path, error: &tokenizers::Error) -> Error {
    Error::format(
        path,
        format!("the tokenizer cannot encode the text: {error}"),
        "give its model an unknown token, or use a byte-level tokenizer",
    )
}
