//! Documents from files, folders and JSONL, and the default corpus.

use std::path::Path;

use burn_frontier::data::default_corpus;
use burn_frontier::data::text::{Filter, documents};
use burn_frontier::error::Result;
use tempfile::TempDir;

use crate::put;

fn texts(path: &Path, filter: &Filter) -> Vec<String> {
    let found: Result<Vec<_>> = documents(&[path.to_path_buf()], filter).collect();
    found
        .unwrap()
        .into_iter()
        .map(|document| document.text)
        .collect()
}

#[test]
fn a_folder_is_read_in_the_order_of_names_without_binaries_hidden_files_and_build_outputs() {
    let folder = TempDir::new().unwrap();
    put(&folder, "b.txt", "second");
    put(&folder, "a/z.md", "first");
    put(
        &folder,
        "c.jsonl",
        "{\"text\": \"third\"}\n\n{\"text\": \"\"}\n{\"id\": 1, \"text\": \"fourth\"}",
    );
    put(&folder, "d.bin", [0xFF, 0xFE, 0x00]);
    put(&folder, "e.dat", "NUL \0 inside");
    put(&folder, "empty.txt", "");
    put(&folder, ".hidden/f.txt", "hidden");
    put(&folder, "target/g.txt", "built");
    put(
        &folder,
        "target/CACHEDIR.TAG",
        "Signature: 8a477f597d28d172789f06886806bc55",
    );
    let mut found = documents(&[folder.path().to_path_buf()], &Filter::default());
    let read: Vec<String> = found
        .by_ref()
        .map(|document| document.unwrap().text)
        .collect();
    assert_eq!(read, ["first", "second", "third", "fourth"]);
    assert_eq!((found.files(), found.skipped()), (4, 2));
    let markdown = Filter {
        extensions: vec!["md".into()],
        ..Filter::default()
    };
    assert_eq!(texts(folder.path(), &markdown), ["first"]);
}

#[test]
fn a_linked_folder_cannot_make_a_walk_endless() {
    let folder = TempDir::new().unwrap();
    put(&folder, "a/b.txt", "once");
    #[cfg(unix)]
    std::os::unix::fs::symlink(folder.path(), folder.path().join("a/loop")).unwrap();
    assert_eq!(texts(folder.path(), &Filter::default()), ["once"]);
}

#[test]
fn a_long_text_is_cut_at_line_ends_or_characters_and_loses_nothing() {
    let folder = TempDir::new().unwrap();
    let filter = Filter {
        longest: 10,
        ..Filter::default()
    };
    for text in [
        "one\ntwo\nthree\nfour\nfive",
        "ünïcödé wíthöut ány líne énd",
        "0123456789",
        "é",
        "01234567\n\n",
    ] {
        let path = put(&folder, "long.txt", text);
        let found: Vec<_> = documents(&[path], &filter)
            .map(|document| document.unwrap())
            .collect();
        assert!(found.iter().all(|document| document.text.len() <= 10));
        assert_eq!(
            found
                .iter()
                .map(|document| document.text.as_str())
                .collect::<String>(),
            text
        );
        for document in &found {
            assert!(text[document.offset as usize..].starts_with(&document.text));
        }
    }
    let pieces = texts(&put(&folder, "long.txt", "one\ntwo\nthree\nfour"), &filter);
    assert_eq!(pieces, ["one\ntwo\n", "three\n", "four"]);
    let late = put(&folder, "late.txt", b"good lines\nbad \xFF\n");
    let error = documents(&[late], &filter)
        .find_map(|document| document.err())
        .unwrap();
    assert!(error.to_string().contains("late.txt"), "{error}");
}

#[test]
fn a_malformed_jsonl_line_is_named() {
    let folder = TempDir::new().unwrap();
    let cases = [
        (
            "{\"text\": \"good\"}\n\n{\"text\": \"cut",
            "line 3",
            "no JSON object",
        ),
        ("{\"text\": \"good\"}\n[1]\n", "line 2", "no JSON object"),
        (
            "{\"content\": \"x\"}\n",
            "line 1",
            "no field \"text\", but: content",
        ),
        ("{\"text\": 5}\n", "line 1", "not a string"),
    ];
    for (lines, line, what) in cases {
        let path = put(&folder, "part.jsonl", lines);
        let found: Result<Vec<_>> = documents(&[path], &Filter::default()).collect();
        let error = found.unwrap_err().to_string();
        for part in ["part.jsonl", line, what] {
            assert!(error.contains(part), "{part:?} is missing in: {error}");
        }
    }
    let path = put(&folder, "part.jsonl", b"{\"text\": \"\xFF\"}\n");
    assert!(documents(&[path], &Filter::default()).any(|document| document.is_err()));
    let key = Filter {
        key: "content".into(),
        ..Filter::default()
    };
    let path = put(&folder, "part.jsonl", "{\"content\": \"a \\u00e9\"}");
    assert_eq!(texts(&path, &key), ["a é"]);
}

#[test]
fn a_missing_file_is_an_error() {
    let mut found = documents(&["no/such/file".into()], &Filter::default());
    let error = found.next().unwrap().unwrap_err().to_string();
    assert!(error.contains("no/such/file"), "{error}");
    assert!(found.next().is_none());
}

#[test]
fn every_machine_that_builds_this_has_a_default_corpus() {
    let limit = 300_000;
    let corpus = default_corpus(limit).unwrap();
    let bytes: u64 = corpus.sources.iter().map(|source| source.bytes).sum();
    assert!(bytes > 0 && bytes <= limit, "{corpus}");
    assert!(corpus.to_string().contains("MB of text in"), "{corpus}");
    assert_eq!(default_corpus(limit).unwrap().files, corpus.files);
    let mut found = documents(&corpus.files, &Filter::default());
    let read: u64 = found
        .by_ref()
        .map(|document| document.unwrap().text.len() as u64)
        .sum();
    assert_eq!((read, found.skipped()), (bytes, 0));
    assert!(default_corpus(0).is_err());
}
