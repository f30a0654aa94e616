//! Orders of samples, token files and tokenizers.

use std::collections::BTreeSet;

use burn_frontier::data::indexed::{IndexedDataset, TokenType, paths};
use burn_frontier::data::indexed_writer::IndexedWriter;
use burn_frontier::data::{Dataset, SamplerConfig, Tokenizer};
use burn_frontier::pipeline::micro_batches::micro_batches;
use tempfile::TempDir;

#[test]
fn an_epoch_is_a_partition_over_the_replicas_and_no_shuffle_of_the_last_one() {
    // 24 samples of 4 tokens and their targets, all of different tokens.
    let dataset = Dataset::from_documents([Ok((0..97).collect::<Vec<u32>>())]).unwrap();
    let init = |seed| {
        let config = SamplerConfig {
            sequence: 4,
            vocabulary: 97,
            seed,
        };
        config.init(&dataset).unwrap()
    };
    let sampler = init(5);
    assert_eq!(sampler.len(), 24);
    let mut orders = BTreeSet::new();
    for epoch in 0..3 {
        // Batches of 6 over 4 replicas, which do not divide them, in micro-batches of 1.
        let mut seen = vec![Vec::new(); 4];
        for step in 0..4 {
            for (replica, seen) in seen.iter_mut().enumerate() {
                for cut in micro_batches(6, 1, replica, 4).unwrap() {
                    seen.extend(cut.map(|i| sampler.sample(epoch * 24 + step * 6 + i).unwrap()[0]));
                }
            }
        }
        let mut all = seen.concat();
        all.sort_unstable();
        assert!(all.into_iter().eq((0..24).map(|i| 4 * i)), "epoch {epoch}");
        // A sampler that has seen no other epoch gives the same one: it is a function of (seed, epoch).
        let fresh = init(5);
        let order: Vec<u32> = (0..24)
            .map(|i| fresh.sample(epoch * 24 + i).unwrap()[0])
            .collect();
        let known = (0..24).map(|i| sampler.sample(epoch * 24 + i).unwrap()[0]);
        assert!(known.eq(order.iter().copied()));
        orders.insert(order);
    }
    assert_eq!(orders.len(), 3, "two epochs have the same order");
}

/// A token file of one document, whose header says which type its tokens have.
fn written(folder: &TempDir, code: u8, tokens: &[u8], count: u8) -> std::path::PathBuf {
    let mut index = b"MMIDIDX\0\0".to_vec();
    index.extend(1u64.to_le_bytes());
    index.push(code);
    index.extend(1u64.to_le_bytes());
    index.extend(2u64.to_le_bytes());
    index.extend([count, 0, 0, 0]);
    for number in [0u64, 0, 1] {
        index.extend(number.to_le_bytes()); // Where the document begins, and the bounds of documents.
    }
    let prefix = folder.path().join(format!("type{code}"));
    let (idx, bin) = paths(&prefix);
    std::fs::write(idx, index).unwrap();
    std::fs::write(bin, tokens).unwrap();
    prefix
}

#[test]
fn token_65535_of_a_vocabulary_of_65536_survives_in_either_type() {
    let folder = TempDir::new().unwrap();
    let read = |prefix| {
        let dataset = Dataset::open(prefix).unwrap();
        let mut tokens = Vec::new();
        let length = dataset.document_tokens(0);
        dataset.read(0, 0..length, &mut tokens).unwrap();
        tokens
    };
    // Others write u16 up to a vocabulary of 65,536: the header decides how it is read.
    let narrow = written(&folder, 8, &[0xFF, 0xFF, 0xDB, 0xFF], 2);
    assert_eq!(read(narrow), [65_535, 65_499]);
    let wide = written(&folder, 4, &[0xFF, 0xFF, 0, 0], 1);
    assert_eq!(read(wide), [65_535]);
    // We write as Megatron does: u16 below a vocabulary of 65,500.
    for (vocabulary, kind) in [
        (65_499, TokenType::U16),
        (65_500, TokenType::I32),
        (65_536, TokenType::I32),
    ] {
        let prefix = folder.path().join(format!("ours{vocabulary}"));
        let last = vocabulary as u32 - 1;
        let mut writer = IndexedWriter::create(&prefix, vocabulary).unwrap();
        writer.push(&[last, 0, last]).unwrap();
        writer.finish().unwrap();
        assert_eq!(IndexedDataset::open(&prefix).unwrap().token_type(), kind);
        assert_eq!(read(prefix), [last, 0, last]);
    }
}

#[test]
fn merges_as_pairs_or_as_strings_give_the_same_ids() {
    let folder = TempDir::new().unwrap();
    let ids = |name: &str, merges: &str| {
        let json = format!(
            r#"{{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": null, "model": {{"type": "BPE", "dropout": null,
            "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "vocab": {{"G": 0, "t": 1, "o": 2, "Gt": 3, "Gto": 4}}, "merges": {merges}}}}}"#
        );
        let path = folder.path().join(name);
        std::fs::write(&path, json).unwrap();
        let tokenizer = Tokenizer::from_file(path).unwrap();
        tokenizer.encode("GtoGtto").unwrap()
    };
    let pairs = ids("pairs.json", r#"[["G", "t"], ["Gt", "o"]]"#);
    assert_eq!(pairs, [4, 3, 1, 2]);
    assert_eq!(ids("strings.json", r#"["G t", "Gt o"]"#), pairs);
}
