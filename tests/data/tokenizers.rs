//! Tokenizers, and a corpus tokenized to disk.

use burn_frontier::data::text::Filter;
use burn_frontier::data::{Dataset, Tokenizer, tokenize_corpus};
use tempfile::TempDir;

use crate::{contents, put};

const WORDS: &str = r#"{"version": "1.0", "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
    "padding": null, "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
    "added_tokens": [{"id": 9, "content": "<|endoftext|>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true}],
    "model": {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {"[UNK]": 0, "the": 1, "house": 2, "stands": 3, "<|endoftext|>": 9}}}"#;

#[test]
fn bytes_come_back() {
    let tokenizer = Tokenizer::bytes();
    let text = "naïve \u{1F3E0}\0\n";
    let tokens = tokenizer.encode(text).unwrap();
    assert_eq!(tokens.len(), text.len());
    assert_eq!(tokenizer.decode(&tokens).unwrap(), text);
    assert_eq!(
        (tokenizer.vocabulary(), tokenizer.end_of_document().unwrap()),
        (257, 256)
    );
    assert_eq!(
        tokenizer.decode(&[104, 105, 256, 0xFF]).unwrap(),
        "hi\u{FFFD}"
    );
    assert!(
        tokenizer
            .decode(&[257])
            .unwrap_err()
            .to_string()
            .contains("257")
    );
}

#[test]
fn a_hugging_face_tokenizer_encodes_whole_documents() {
    let folder = TempDir::new().unwrap();
    let tokenizer = Tokenizer::from_file(put(&folder, "tokenizer.json", WORDS)).unwrap();
    // The file asks to cut at two tokens; its ids have a gap from 3 to 9.
    assert_eq!(
        tokenizer.encode("the house stands firmly").unwrap(),
        [1, 2, 3, 0]
    );
    assert_eq!(
        (tokenizer.vocabulary(), tokenizer.end_of_document().unwrap()),
        (10, 9)
    );
    assert_eq!(tokenizer.decode(&[1, 2, 9]).unwrap(), "the house");
    assert!(tokenizer.decode(&[10]).is_err());
    let documents = tokenizer.encode_documents(&["the house", ""]).unwrap();
    assert_eq!(documents, [vec![1, 2, 9], vec![9]]);
}

#[test]
fn a_fingerprint_names_the_content_of_a_tokenizer() {
    let folder = TempDir::new().unwrap();
    let print = |name: &str, json: &str| {
        let tokenizer = Tokenizer::from_file(put(&folder, name, json)).unwrap();
        tokenizer.fingerprint().to_string()
    };
    assert_eq!(print("a.json", WORDS), print("b.json", WORDS));
    assert_ne!(
        print("a.json", WORDS),
        print("b.json", &WORDS.replace("house", "mouse"))
    );
    assert_ne!(print("a.json", WORDS), Tokenizer::bytes().fingerprint());
}

#[test]
fn a_broken_tokenizer_says_what_to_give_instead() {
    let folder = TempDir::new().unwrap();
    for json in [
        "",
        "{}",
        "[1, 2]",
        "not json",
        &WORDS.replace("WordLevel", "Unknown"),
        &WORDS[..200],
    ] {
        let error = Tokenizer::from_file(put(&folder, "broken.json", json))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("broken.json") && error.contains("tokenizer.json"),
            "{error}"
        );
    }
    let endless = WORDS.replace("<|endoftext|>", "<|other|>");
    let tokenizer = Tokenizer::from_file(put(&folder, "endless.json", endless)).unwrap();
    assert_eq!(tokenizer.encode("the house").unwrap(), [1, 2]);
    let error = tokenizer
        .encode_documents(&["the house"])
        .unwrap_err()
        .to_string();
    assert!(error.contains("<|endoftext|>"), "{error}");
}

#[test]
fn a_corpus_is_tokenized_to_disk() {
    let folder = TempDir::new().unwrap();
    put(&folder, "in/a.txt", "ab");
    put(
        &folder,
        "in/b.jsonl",
        "{\"text\": \"c\"}\n{\"text\": \"d\"}\n",
    );
    put(&folder, "in/c.gz", [0x1F, 0x8B, 0xFF]);
    let (input, prefix) = (folder.path().join("in"), folder.path().join("out/corpus"));
    let mut reports = Vec::new();
    let stats = tokenize_corpus(
        &[input],
        &Filter::default(),
        &Tokenizer::bytes(),
        &prefix,
        |stats| reports.push(*stats),
    );
    let stats = stats.unwrap();
    assert_eq!(
        (
            stats.counts.files,
            stats.counts.skipped,
            stats.documents,
            stats.bytes,
            stats.tokens
        ),
        (2, 1, 3, 4, 7)
    );
    assert_eq!(reports.last(), Some(&stats));
    assert_eq!(
        contents(&Dataset::open(&prefix).unwrap()),
        [vec![97, 98, 256], vec![99, 256], vec![100, 256]]
    );

    put(&folder, "binaries/c.gz", [0x1F, 0x8B, 0xFF]);
    for (named, what) in [
        ("binaries", "1 files are not UTF-8"),
        ("in/c.gz", "c.gz: this is not UTF-8"),
    ] {
        let none = tokenize_corpus(
            &[folder.path().join(named)],
            &Filter::default(),
            &Tokenizer::bytes(),
            folder.path().join("none"),
            |_| {},
        );
        let error = none.unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
        let left = std::fs::read_dir(folder.path()).unwrap();
        assert_eq!(left.count(), 3, "nothing of it is left: in, out, binaries");
    }
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_tokenizer() {
    let folder = TempDir::new().unwrap();
    let plain = Tokenizer::from_file(put(&folder, "plain.json", WORDS)).unwrap();
    let marked = put(&folder, "marked.json", format!("\u{FEFF}{WORDS}"));
    let marked = Tokenizer::from_file(marked).unwrap();
    assert_eq!(marked.fingerprint(), plain.fingerprint());
    let wide: Vec<u8> = [0xFEFF]
        .into_iter()
        .chain(WORDS.encode_utf16())
        .flat_map(u16::to_le_bytes)
        .collect();
    let error = Tokenizer::from_file(put(&folder, "wide.json", wide)).unwrap_err();
    assert!(error.to_string().contains("UTF-16"), "{error}");
}
