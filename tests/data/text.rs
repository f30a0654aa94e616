//! Documents from files, folders and JSONL, and the default corpus.

use std::path::Path;

use burn_frontier::data::text::{Counts, Filter, documents};
use burn_frontier::error::Result;
use burn_frontier::run_folder;
use tempfile::TempDir;

use crate::{put, write_documents};

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
    let counts = found.counts();
    assert_eq!((counts.files, counts.skipped), (4, 2));
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

/// The texts of a path, and what was counted.
fn counted(path: &Path) -> (Vec<String>, Counts) {
    let mut found = documents(&[path.to_path_buf()], &Filter::default());
    let read = found.by_ref().map(|document| document.unwrap().text);
    (read.collect(), found.counts())
}

fn refusal(path: &Path) -> String {
    let found: Result<Vec<_>> = documents(&[path.to_path_buf()], &Filter::default()).collect();
    found.unwrap_err().to_string()
}

#[test]
fn a_byte_order_mark_is_no_part_of_text_or_jsonl() {
    let folder = TempDir::new().unwrap();
    put(&folder, "a.txt", "\u{FEFF}one");
    put(&folder, "b.txt", "\u{FEFF}");
    put(
        &folder,
        "c.jsonl",
        "\u{FEFF}{\"text\": \"two\"}\n\u{FEFF}{\"text\": \"three\"}\n",
    );
    put(
        &folder,
        "d.json",
        "\u{FEFF}\n{\"text\": \"four\"}\n{\"text\": \"five\"}\n",
    );
    let expected = ["one", "two", "three", "four", "five"];
    assert_eq!(counted(folder.path()).0, expected);
    // The same files, one by one: what comes through a pipe is read so too.
    let named: Vec<_> = ["a.txt", "b.txt", "c.jsonl", "d.json"]
        .iter()
        .flat_map(|name| counted(&folder.path().join(name)).0)
        .collect();
    assert_eq!(named, expected);
    let first = documents(&[folder.path().join("a.txt")], &Filter::default()).next();
    assert_eq!(
        first.unwrap().unwrap().offset,
        3,
        "the text is behind the mark"
    );
    for name in ["wide.txt", "wide.jsonl"] {
        let wide = put(&folder, name, b"\xFF\xFE{\0}\0");
        assert!(refusal(&wide).contains("UTF-16"), "{}", refusal(&wide));
    }
}

#[test]
fn an_object_a_line_is_jsonl_whatever_the_file_is_called() {
    let lines = "{\"text\": \"one\", \"id\": 0}\n\n{\"text\": \"two\", \"id\": 1}\n";
    for name in [
        "corpus.json",
        "corpus.txt",
        "corpus",
        "corpus.JSONL",
        "part-00001",
    ] {
        let folder = TempDir::new().unwrap();
        let file = put(&folder, name, lines);
        for path in [file.as_path(), folder.path()] {
            let (read, counts) = counted(path);
            assert_eq!(read, ["one", "two"], "{name}");
            assert_eq!((counts.files, counts.json_lines), (1, 1), "{name}");
        }
        // One line is enough, and a field of another name is asked for.
        put(&folder, name, "{\"text\": \"one\"}");
        assert_eq!(counted(&file).0, ["one"], "{name}");
        put(&folder, name, "{\"content\": \"one\"}\n");
        let error = refusal(&file);
        assert!(error.contains("but: content"), "{name}: {error}");
    }
    let folder = TempDir::new().unwrap();
    for text in [
        "{\"a\": 1}\nis an object\n",
        "{ braces }\n{ more }\n",
        "[1]\n[2]\n",
    ] {
        let (read, counts) = counted(&put(&folder, "prose.txt", text));
        assert_eq!((read, counts.json_lines), (vec![text.to_string()], 0));
    }
}

#[test]
fn json_that_is_not_an_object_a_line_is_refused_if_named_and_counted_if_found() {
    let folder = TempDir::new().unwrap();
    let documents = [
        "[\n  {\"text\": \"one\"},\n  {\"text\": \"two\"}\n]\n",
        "[{\"text\": \"one\"}]",
        "{\n  \"name\": \"package\"\n}\n",
        "{\"text\": \"cut",
    ];
    for text in documents {
        let file = put(&folder, "package.json", text);
        let error = refusal(&file);
        assert!(error.contains("not one object a line"), "{error}");
        let (read, counts) = counted(folder.path());
        assert_eq!(read, [text]);
        assert_eq!((counts.files, counts.json_as_text), (1, 1));
        assert!(counts.remarks().contains("1 JSON file read as plain text"));
    }
    // A folder of source code holds objects a line that are no documents.
    put(&folder, "package.json", "{\"name\": \"minified\"}");
    let (read, counts) = counted(folder.path());
    assert_eq!(read, ["{\"name\": \"minified\"}"]);
    assert_eq!((counts.json_lines, counts.json_as_text), (0, 1));
}

#[test]
fn a_file_that_is_not_utf8_is_left_out_of_a_folder_wherever_that_shows() {
    let late = |fault: &[u8]| [&b"good line\n".repeat(20_000)[..], fault].concat();
    for bytes in [
        b"caf\xE9\n".to_vec(),
        late(b"caf\xE9\n"),
        late(b"\0"),
        late(b"\xC3"),
    ] {
        for name in ["m.txt", "m.jsonl"] {
            let folder = TempDir::new().unwrap();
            put(&folder, "a.txt", "first");
            put(&folder, "z.txt", "last");
            let file = put(&folder, name, &bytes);
            let mut found = documents(&[folder.path().to_path_buf()], &Filter::default());
            let read: Vec<_> = found.by_ref().map(|d| d.unwrap().text).collect();
            assert_eq!(read, ["first", "last"], "nothing of it is half used");
            assert_eq!((found.counts().files, found.counts().skipped), (2, 1));
            let why = found.left_out().unwrap().to_string();
            assert!(why.contains(name) && why.contains("byte"), "{why}");
            // Named, it is an error; so is what it would give before that.
            assert!(refusal(&file).contains(name), "{}", refusal(&file));
        }
    }
}

#[test]
fn rows_without_text_are_passed_over_and_counted() {
    let folder = TempDir::new().unwrap();
    let rows = "{\"text\": null}\n{\"text\": \"one\"}\n{\"text\": \"\"}\n";
    let (read, counts) = counted(&put(&folder, "null.jsonl", rows));
    assert_eq!((read, counts.without_text), (vec!["one".to_string()], 2));
    assert_eq!(counts.remarks(), "2 lines without text passed over");
    assert_eq!(
        counted(&put(&folder, "full.txt", "text")).1.remarks(),
        "",
        "nothing to say"
    );
}

#[test]
fn half_of_a_dataset_of_tokens_names_the_prefix() {
    let folder = TempDir::new().unwrap();
    write_documents(&folder.path().join("corpus"), 200, &[vec![65; 100]]);
    for half in ["corpus.bin", "corpus.idx"] {
        let error = refusal(&folder.path().join(half));
        let prefix = folder.path().join("corpus").display().to_string();
        assert!(error.ends_with(&format!("prefix, {prefix}")), "{error}");
    }
    assert_eq!(counted(folder.path()).1.skipped, 2);
}

#[test]
fn what_runs_write_is_not_read_as_text() {
    let folder = TempDir::new().unwrap();
    put(&folder, "a.txt", "mine");
    put(&folder, "corpus.bin.1-2.partial", "");
    put(&folder, "runs/one/metrics.jsonl", "{\"loss\": 1}\n");
    run_folder::mark(&folder.path().join("runs/two")).unwrap();
    put(&folder, "runs/two/metrics.jsonl", "{\"loss\": 1}\n");
    let record = "{\"step\":1,\"samples\":1,\"tokens\":1,\"loss\":1,\"gradient_norm\":1,\"learning_rate\":1,\"skipped\":0,\
        \"seconds\":1,\"tokens_per_second\":1,\"tokens_per_second_per_rank\":1,\"communicated_bytes\":0}\n";
    put(&folder, "runs/three/metrics.jsonl", record);
    put(&folder, "runs/three/config.toml", "steps = 1\n");
    let error = refusal(folder.path());
    assert!(error.contains("runs/one"), "which is no run's: {error}");
    std::fs::remove_dir_all(folder.path().join("runs/one")).unwrap();
    let (read, counts) = counted(folder.path());
    assert_eq!((read, counts.files), (vec!["mine".to_string()], 1));
}

#[test]
fn a_missing_file_is_an_error() {
    let mut found = documents(&["no/such/file".into()], &Filter::default());
    let error = found.next().unwrap().unwrap_err().to_string();
    assert!(error.contains("no/such/file"), "{error}");
    assert!(found.next().is_none());
}
