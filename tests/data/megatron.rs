//! Megatron's `.bin` and `.idx`: the bytes of the format, and files that break it.

use std::path::PathBuf;

use burn_frontier::data::indexed::{IndexedDataset, TokenType, paths};
use burn_frontier::data::indexed_writer::IndexedWriter;
use burn_frontier::data::{Dataset, SamplerConfig};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::{contents, write_documents};

/// Little-endian bytes of the dataset [[1, 2, 3], [], [500]] in u16, written down from the format's description.
const INDEX: &[u8] = &[
    b'M', b'M', b'I', b'D', b'I', b'D', b'X', 0, 0, // magic
    1, 0, 0, 0, 0, 0, 0, 0, // version
    8, // u16
    3, 0, 0, 0, 0, 0, 0, 0, // sequences
    4, 0, 0, 0, 0, 0, 0, 0, // document boundaries
    3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, // lengths
    0, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, // pointers
    0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, // documents 0 and 1
    2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, // document 2 and the end
];
const TOKENS: &[u8] = &[1, 0, 2, 0, 3, 0, 0xF4, 0x01];
/// Bytes of the header, up to the lengths; then lengths of 4, pointers of 8, boundaries of 8.
const HEADER: usize = 34;

fn write(folder: &TempDir, index: &[u8], tokens: &[u8]) -> PathBuf {
    let prefix = folder.path().join("corpus");
    let (idx, bin) = paths(&prefix);
    std::fs::write(idx, index).unwrap();
    std::fs::write(bin, tokens).unwrap();
    prefix
}

/// The error of opening the tiny dataset after `change`.
fn refusal(change: impl FnOnce(&mut Vec<u8>, &mut Vec<u8>)) -> String {
    let folder = TempDir::new().unwrap();
    let (mut index, mut tokens) = (INDEX.to_vec(), TOKENS.to_vec());
    change(&mut index, &mut tokens);
    let prefix = write(&folder, &index, &tokens);
    IndexedDataset::open(prefix).unwrap_err().to_string()
}

fn set(index: &mut [u8], offset: usize, value: u64) {
    index[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
}

#[test]
fn the_writer_writes_megatrons_bytes() {
    let folder = TempDir::new().unwrap();
    let prefix = folder.path().join("new folder").join("v1.2");
    write_documents(&prefix, 501, &[vec![1, 2, 3], vec![], vec![500]]);
    let (idx, bin) = paths(&prefix);
    assert!(idx.ends_with("v1.2.idx"));
    assert_eq!(std::fs::read(idx).unwrap(), INDEX);
    assert_eq!(std::fs::read(bin).unwrap(), TOKENS);
    let left = std::fs::read_dir(folder.path().join("new folder")).unwrap();
    assert_eq!(left.count(), 2, "temporary files stay behind");
}

#[test]
fn documents_come_back_in_both_token_types() {
    for (vocabulary, kind) in [(65_499, TokenType::U16), (65_500, TokenType::I32)] {
        let folder = TempDir::new().unwrap();
        let prefix = folder.path().join("corpus");
        let largest = vocabulary as u32 - 1;
        let written: Vec<Vec<u32>> = (0..1000_u32)
            .map(|i| {
                (0..i % 7)
                    .map(|j| largest - (i * 31 + j) % 60_000)
                    .collect()
            })
            .chain([vec![], vec![]])
            .collect();
        write_documents(&prefix, vocabulary, &written);
        assert_eq!(IndexedDataset::open(&prefix).unwrap().token_type(), kind);
        assert_eq!(contents(&Dataset::open(&prefix).unwrap()), written);
    }
}

#[test]
fn the_dataset_of_no_documents_opens() {
    let folder = TempDir::new().unwrap();
    let prefix = folder.path().join("corpus");
    write_documents(&prefix, 10, &[]);
    let dataset = Dataset::open(&prefix).unwrap();
    assert_eq!((dataset.documents(), dataset.tokens()), (0, 0));
}

#[test]
fn a_document_may_have_many_sequences_or_none_and_modes_are_ignored() {
    let folder = TempDir::new().unwrap();
    let mut index = INDEX.to_vec();
    for (document, boundary) in [0, 2, 2, 3].into_iter().enumerate() {
        set(&mut index, HEADER + 3 * 12 + 8 * document, boundary);
    }
    index.extend([0, 0, 0]); // modes of a multimodal dataset
    let dataset = Dataset::open(write(&folder, &index, TOKENS)).unwrap();
    assert_eq!(contents(&dataset), [vec![1, 2, 3], vec![], vec![500]]);
}

#[test]
fn other_integer_types_are_read_and_negative_tokens_refused() {
    let wide: Vec<u8> = [1_i64, 2, 3, 500]
        .iter()
        .flat_map(|token| token.to_le_bytes())
        .collect();
    let negative: Vec<u8> = [1_i64, 2, 3, -1]
        .iter()
        .flat_map(|token| token.to_le_bytes())
        .collect();
    let folder = TempDir::new().unwrap();
    let mut index = INDEX.to_vec();
    index[17] = 5;
    set(&mut index, HEADER + 12 + 8, 24);
    set(&mut index, HEADER + 12 + 16, 24);
    let dataset = Dataset::open(write(&folder, &index, &wide)).unwrap();
    assert_eq!(contents(&dataset), [vec![1, 2, 3], vec![], vec![500]]);
    let dataset = Dataset::open(write(&folder, &index, &negative)).unwrap();
    let error = dataset
        .read(2, 0..1, &mut Vec::new())
        .unwrap_err()
        .to_string();
    assert!(error.contains("token 3"), "{error}");
}

#[test]
fn an_index_or_token_file_cut_anywhere_is_refused() {
    for length in 0..INDEX.len() {
        let error = refusal(|index, _| index.truncate(length));
        assert!(error.contains("corpus.idx"), "cut at {length}: {error}");
    }
    for length in 0..TOKENS.len() {
        refusal(|_, tokens| tokens.truncate(length));
    }
}

#[test]
fn wrong_headers_say_what_is_wrong() {
    assert!(refusal(|index, _| index[0] = b'X').contains("MMIDIDX"));
    assert!(refusal(|index, _| index[9] = 2).contains("version is 2"));
    assert!(refusal(|index, _| index[17] = 6).contains("type code is 6"));
    assert!(refusal(|index, _| set(index, 26, 0)).contains("0 document boundaries"));
    assert!(refusal(|index, _| index.push(0)).contains("do not fill"));
}

#[test]
fn counts_beyond_the_file_are_refused_before_anything_is_allocated() {
    for huge in [
        4,
        1 << 20,
        u64::MAX / 12,
        u64::MAX / 8 + 1,
        i64::MAX as u64,
        u64::MAX,
    ] {
        assert!(refusal(|index, _| set(index, 18, huge)).contains("do not fill"));
        let boundaries = huge + u64::from(huge == 4);
        assert!(refusal(|index, _| set(index, 26, boundaries)).contains("do not fill"));
    }
}

#[test]
fn pointers_lengths_and_documents_that_contradict_are_refused() {
    let pointers = HEADER + 12;
    let documents = pointers + 24;
    assert!(
        refusal(|index, _| set(index, pointers + 8, 4))
            .contains("sequence 1 has 0 tokens at byte 4")
    );
    assert!(refusal(|index, _| set(index, pointers + 16, u64::MAX)).contains("sequence 2"));
    assert!(refusal(|index, _| index[HEADER + 3] = 0x7F).contains("beyond the 8 bytes"));
    assert!(refusal(|index, _| index[HEADER + 3] = 0xFF).contains("sequence 0 has -"));
    assert!(
        refusal(|index, _| set(index, documents + 8, 3))
            .contains("document 2 begins at sequence 2")
    );
    assert!(refusal(|index, _| set(index, documents, 1)).contains("document 0"));
    assert!(refusal(|index, _| set(index, documents + 24, 2)).contains("end at sequence 2 of 3"));
    assert!(refusal(|index, _| set(index, documents + 24, 4)).contains("sequence 4"));
    assert!(refusal(|_, tokens| tokens.extend([0, 0])).contains("it has 10 bytes"));
    let missing = IndexedDataset::open("no/such").unwrap_err().to_string();
    assert!(missing.contains("no/such.idx"), "{missing}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn corrupted_files_never_panic(
        changes in prop::collection::vec((0..INDEX.len(), any::<u8>()), 0..6),
        index_length in 0..=INDEX.len(),
        cut in any::<bool>(),
        tokens in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let folder = TempDir::new().unwrap();
        let mut index = INDEX.to_vec();
        for (at, value) in changes {
            index[at] = value;
        }
        if cut {
            index.truncate(index_length);
        }
        if let Ok(dataset) = Dataset::open(write(&folder, &index, &tokens)) {
            for document in 0..dataset.documents() + 2 {
                let length = dataset.document_tokens(document);
                let _ = dataset.read(document, 0..length, &mut Vec::new());
            }
            if let Ok(sampler) = (SamplerConfig { sequence: 1, vocabulary: 9, seed: 0 }).init(&dataset) {
                let _ = sampler.sample(5);
            }
        }
    }
}

#[test]
fn an_abandoned_writer_leaves_nothing_and_keeps_the_old_dataset() {
    let folder = TempDir::new().unwrap();
    let prefix = write(&folder, INDEX, TOKENS);
    let mut writer = IndexedWriter::create(&prefix, 10).unwrap();
    writer.push(&[1; 100]).unwrap();
    let error = writer.push(&[10]).unwrap_err().to_string();
    assert!(error.contains("token 10"), "{error}");
    drop(writer);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    assert_eq!(contents(&Dataset::open(&prefix).unwrap())[0], [1, 2, 3]);
    write_documents(&prefix, 10, &[vec![7]]);
    assert_eq!(contents(&Dataset::open(&prefix).unwrap()), [vec![7]]);
}

#[test]
fn a_fingerprint_changes_with_any_token_and_any_document() {
    let documents = vec![vec![1, 2, 3], vec![], vec![500; 200]];
    let print = |documents: &[Vec<u32>]| {
        let folder = TempDir::new().unwrap();
        let prefix = folder.path().join("corpus");
        write_documents(&prefix, 501, documents);
        Dataset::open(&prefix).unwrap().fingerprint()
    };
    assert_eq!(print(&documents), print(&documents));
    let mut token = documents.clone();
    token[2][150] = 499;
    let mut cut = documents.clone();
    let moved = cut[0].pop().unwrap();
    cut[1].push(moved);
    let mut longer = documents.clone();
    longer[1].push(4);
    let prints = [&documents, &token, &cut, &longer].map(|documents| print(documents));
    for (i, one) in prints.iter().enumerate() {
        assert!(prints[..i].iter().all(|other| other != one), "{prints:?}");
    }
    let memory = |documents: &[Vec<u32>]| {
        let dataset = Dataset::from_documents(documents.iter().cloned().map(Ok)).unwrap();
        let (train, _) = dataset.split("1,1").unwrap();
        assert_eq!(train.fingerprint(), dataset.fingerprint());
        dataset.fingerprint()
    };
    assert_eq!(memory(&documents), memory(&documents));
    assert_ne!(memory(&documents), memory(&token));
    assert_ne!(memory(&documents), memory(&cut));
}
