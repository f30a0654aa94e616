//! Tokenized documents, in memory or mapped from disk, and their split into train and validation.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::indexed::IndexedDataset;
use crate::error::{Error, Result};

/// Tokens that counting holds in memory.
const COUNTED_AT_ONCE: u64 = 1 << 16;

/// A range of tokenized documents. Cloning it shares the tokens.
#[derive(Debug, Clone)]
pub struct Dataset {
    corpus: Arc<Corpus>,
    documents: Range<usize>,
}

/// Tokens of all documents in one row, and where each document begins.
#[derive(Debug)]
enum Corpus {
    Memory {
        tokens: Vec<u32>,
        starts: Vec<usize>,
    },
    Indexed(IndexedDataset),
}

impl Corpus {
    fn documents(&self) -> usize {
        match self {
            Self::Memory { starts, .. } => starts.len() - 1,
            Self::Indexed(indexed) => indexed.documents(),
        }
    }

    /// First token of a document; the number of tokens from the last document on.
    fn start(&self, document: usize) -> u64 {
        match self {
            Self::Memory { tokens, starts } => {
                starts.get(document).copied().unwrap_or(tokens.len()) as u64
            }
            Self::Indexed(indexed) => indexed.document(document).start,
        }
    }

    fn read(&self, range: Range<u64>, into: &mut Vec<u32>) -> Result<()> {
        match self {
            Self::Memory { tokens, .. } => {
                let part = tokens
                    .get(range.start as usize..range.end as usize)
                    .ok_or_else(|| {
                        Error::Internal(format!("tokens {range:?} are beyond the corpus"))
                    })?;
                into.extend_from_slice(part);
                Ok(())
            }
            Self::Indexed(indexed) => indexed.read(range, into),
        }
    }
}

impl Dataset {
    /// The dataset in `prefix.bin` and `prefix.idx`, mapped into memory.
    ///
    /// # Errors
    /// As [`IndexedDataset::open`].
    pub fn open(prefix: impl AsRef<Path>) -> Result<Self> {
        Ok(Self::whole(Corpus::Indexed(IndexedDataset::open(prefix)?)))
    }

    /// A dataset in memory, of the tokens of each document.
    ///
    /// # Errors
    /// The first error among the documents.
    pub fn from_documents(documents: impl IntoIterator<Item = Result<Vec<u32>>>) -> Result<Self> {
        let mut tokens = Vec::new();
        let mut starts = vec![0];
        for document in documents {
            tokens.extend(document?);
            starts.push(tokens.len());
        }
        Ok(Self::whole(Corpus::Memory { tokens, starts }))
    }

    fn whole(corpus: Corpus) -> Self {
        Self {
            documents: 0..corpus.documents(),
            corpus: Arc::new(corpus),
        }
    }

    /// Names the tokens in a checkpoint: equal for the same documents, whichever part of them this is.
    ///
    /// Of a dataset on disk it is a checksum of the whole index and of the tokens; of more than 64 MiB of tokens, 1024 blocks
    /// evenly spread are looked at, so a change of single tokens may go unnoticed there, but no change of lengths.
    pub fn fingerprint(&self) -> String {
        match &*self.corpus {
            Corpus::Memory { tokens, starts } => {
                let lengths: Vec<u64> = starts.iter().map(|&start| start as u64).collect();
                let index = crc32fast::hash(bytemuck::cast_slice(&lengths));
                let content = crc32fast::hash(bytemuck::cast_slice(tokens));
                format!("memory-{index:08x}-{content:08x}")
            }
            Corpus::Indexed(indexed) => indexed.fingerprint(),
        }
    }

    /// Number of documents.
    pub fn documents(&self) -> usize {
        self.documents.len()
    }

    /// Number of tokens.
    pub fn tokens(&self) -> u64 {
        let end = self.corpus.start(self.documents.end);
        end.saturating_sub(self.corpus.start(self.documents.start))
    }

    /// Number of tokens of a document; 0 beyond the last.
    pub fn document_tokens(&self, document: usize) -> u64 {
        let range = self.range_of(document);
        range.end.saturating_sub(range.start)
    }

    /// Appends tokens `range` of a document to `into`.
    ///
    /// # Errors
    /// The range is not inside the document, or the file has an invalid token there.
    pub fn read(&self, document: usize, range: Range<u64>, into: &mut Vec<u32>) -> Result<()> {
        let length = self.document_tokens(document);
        if range.start > range.end || range.end > length {
            return Err(Error::Internal(format!(
                "tokens {range:?} of document {document}, which has {length}"
            )));
        }
        let start = self.range_of(document).start;
        self.corpus
            .read(start + range.start..start + range.end, into)
    }

    /// Train and validation documents by weights such as `"99,1"`, as Megatron-LM splits: contiguous, rounded to
    /// whole documents. A third weight holds out a test part, which is not returned.
    ///
    /// Unlike Megatron's, a part of positive weight has at least one document. Documents of uneven length may give a
    /// part other tokens than its weight says: a warning says so where validation gets more than training, although
    /// it has the smaller weight.
    ///
    /// # Errors
    /// The text is not two or three weights, or there are fewer documents than parts.
    pub fn split(&self, weights: &str) -> Result<(Self, Self)> {
        let weights = parse_weights(weights)?;
        let total: f64 = weights.iter().sum();
        let least: Vec<usize> = weights
            .iter()
            .map(|&weight| usize::from(weight > 0.0))
            .collect();
        let count = self.documents();
        if count < least.iter().sum() {
            return Err(Error::config(
                format!(
                    "{count} documents cannot be split into {} parts",
                    least.iter().sum::<usize>()
                ),
                "give more documents: text files are cut at `longest` bytes, JSONL has one a line",
            ));
        }
        let mut ends = vec![0];
        let mut fraction = 0.0;
        for (weight, least) in weights.iter().zip(&least) {
            fraction += weight / total;
            let rounded = (fraction * count as f64).round_ties_even() as usize;
            let begin = ends[ends.len() - 1];
            ends.push(rounded.max(begin + least));
        }
        // Rounding up for one part must leave the later ones theirs.
        ends[weights.len()] = count;
        for part in (1..weights.len()).rev() {
            ends[part] = ends[part].min(ends[part + 1] - least[part]);
        }
        let (train, validation) = (self.part(ends[0]..ends[1]), self.part(ends[1]..ends[2]));
        if weights[0] > weights[1]
            && let Some(warning) = uneven(&train, &validation)
        {
            tracing::warn!("{warning}");
        }
        Ok((train, validation))
    }

    /// How often each id below `vocabulary` occurs in the first `at_most` tokens.
    ///
    /// # Errors
    /// A token is outside the vocabulary, or cannot be read.
    pub fn token_counts(&self, vocabulary: usize, at_most: u64) -> Result<Vec<u64>> {
        let mut counts = vec![0; vocabulary];
        let mut tokens = Vec::new();
        let mut next = self.corpus.start(self.documents.start);
        let end = next + self.tokens().min(at_most);
        while next < end {
            let chunk = next..end.min(next + COUNTED_AT_ONCE);
            next = chunk.end;
            tokens.clear();
            self.corpus.read(chunk, &mut tokens)?;
            check_vocabulary(&tokens, vocabulary)?;
            for &token in &tokens {
                counts[token as usize] += 1;
            }
        }
        Ok(counts)
    }

    fn part(&self, documents: Range<usize>) -> Self {
        let first = self.documents.start;
        Self {
            corpus: self.corpus.clone(),
            documents: first + documents.start..first + documents.end,
        }
    }

    /// Where a document lies in the corpus.
    fn range_of(&self, document: usize) -> Range<u64> {
        let at = |document: usize| {
            let document = self.documents.start.saturating_add(document);
            self.corpus.start(document.min(self.documents.end))
        };
        at(document)..at(document.saturating_add(1))
    }
}

/// What to say about parts of which the smaller one became the larger one.
fn uneven(train: &Dataset, validation: &Dataset) -> Option<String> {
    let size =
        |part: &Dataset| format!("{} tokens in {} documents", part.tokens(), part.documents());
    (validation.tokens() > train.tokens()).then(|| {
        format!(
            "the validation part is larger than the training part, {} against {}: the documents are few and of uneven length; \
             cut or mix them, or give more text",
            size(validation),
            size(train)
        )
    })
}

/// Fails if a token is not below `vocabulary`: an embedding would read beyond its rows.
pub(super) fn check_vocabulary(tokens: &[u32], vocabulary: usize) -> Result<()> {
    match tokens.iter().find(|&&token| token as usize >= vocabulary) {
        None => Ok(()),
        Some(token) => Err(Error::config(
            format!("the dataset has token {token}, outside the vocabulary of {vocabulary}"),
            "use the tokenizer that the dataset was made with, or enlarge the model's vocabulary",
        )),
    }
}

fn parse_weights(text: &str) -> Result<Vec<f64>> {
    let weights: Vec<f64> = text
        .split(',')
        .map(|weight| weight.trim().parse().unwrap_or(f64::NAN))
        .collect();
    let valid = weights
        .iter()
        .all(|weight| weight.is_finite() && *weight >= 0.0);
    let total: f64 = weights.iter().sum();
    let usable = valid && total > 0.0 && total.is_finite();
    if !(2..=3).contains(&weights.len()) || !usable {
        return Err(Error::config(
            format!("the split {text:?} is not two or three weights"),
            "write train and validation weights, such as 99,1",
        ));
    }
    Ok(weights)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_uneven_documents_are_said_with_their_numbers() {
        let parts = |lengths: [usize; 3]| {
            let documents = lengths.map(|length| Ok(vec![1; length]));
            let dataset = Dataset::from_documents(documents).unwrap();
            let (train, validation) = dataset.split("98,2").unwrap();
            uneven(&train, &validation)
        };
        assert_eq!(parts([10, 10, 10]), None);
        let warning = parts([5, 4, 90]).unwrap();
        assert!(
            warning.contains("90 tokens in 1 documents against 9 tokens in 2 documents"),
            "{warning}"
        );
    }
}
