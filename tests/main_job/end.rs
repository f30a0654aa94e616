//! Behind the last checkpoint nothing is lost, and what is missing can be had later.

use std::fs;
use std::process::Command;

use crate::program::{Place, code, said, text};

#[test]
fn a_finished_run_is_completed_by_resume() {
    let place = Place::new();
    assert_eq!(code(&place.small(&["--steps", "3", "--out", "run"])), 0);
    let metrics = place.metrics("loss");
    fs::remove_file(place.out().join("loss.svg")).unwrap();

    let again = ["--resume", "--out", "run", "--export", "exported"];
    let output = place.run(&again);
    assert_eq!(code(&output), 0, "{}", said(&output));
    assert!(
        text(&output).contains("all 3 steps are trained"),
        "{}",
        text(&output)
    );
    assert!(
        text(&output).contains("the model writes"),
        "{}",
        text(&output)
    );
    assert!(place.out().join("loss.svg").exists());
    assert!(place.path().join("exported/model.safetensors").exists());

    // Fewer steps than are done are no reason to forget them.
    let output = place.run(&["--resume", "--out", "run", "--steps", "2"]);
    assert_eq!(code(&output), 0, "{}", said(&output));
    assert!(
        text(&output).contains("--resume --out run --steps 6"),
        "{}",
        text(&output)
    );
    let config = fs::read_to_string(place.out().join("config.toml")).unwrap();
    assert!(
        config.contains("steps = 3\n") && !config.contains("decay-steps"),
        "{config}"
    );

    // One part cannot be had: it is said, counted, and the others are there all the same.
    fs::remove_file(place.out().join("loss.svg")).unwrap();
    fs::create_dir(place.out().join("loss.svg")).unwrap();
    fs::remove_dir_all(place.path().join("exported")).unwrap();
    let output = place.run(&again);
    assert_eq!(code(&output), 3, "{}", said(&output));
    assert!(
        said(&output).contains("warning: loss.svg is missing"),
        "{}",
        said(&output)
    );
    assert!(
        text(&output).contains("the model writes"),
        "{}",
        text(&output)
    );
    // What is there already is not asked for again: an export overwrites nothing.
    let printed = text(&output);
    assert!(printed.contains("complete the run with"), "{printed}");
    assert!(printed.contains("--resume --out run"), "{printed}");
    assert!(!printed.contains("--export exported"), "{printed}");
    assert!(place.path().join("exported/model.safetensors").exists());
    assert_eq!(place.metrics("loss"), metrics, "the log is as it was");
}

/// Words without a token for anything else, and ids with a gap.
const WORDS: &str = r#"{"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
    "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "<|endoftext|>": 70}, "unk_token": "[UNK]"}}"#;

#[test]
fn a_tokenizer_without_the_prompts_words_still_gives_a_sample_of_its_own_tokens() {
    let place = Place::new();
    fs::write(place.path().join("words.json"), WORDS).unwrap();
    fs::write(place.path().join("text.rs"), "a b b a ".repeat(4000)).unwrap();
    let output = place.small(&["--tokenizer", "words.json", "--steps", "2", "--out", "run"]);
    assert_eq!(code(&output), 0, "{}", said(&output));
    let printed = text(&output);
    assert!(
        printed.contains("the tokenizer has no tokens for `pub fn `"),
        "{printed}"
    );
    let written = printed.split("the model writes:\n").nth(1).unwrap();
    let sample = written.lines().next().unwrap();
    assert!(sample.split_whitespace().count() > 20, "{printed}");
    let mut words = sample.split_whitespace();
    assert!(
        words.all(|word| ["a", "b", "<|endoftext|>"].contains(&word)),
        "{printed}"
    );
}

#[test]
#[cfg(unix)]
fn what_the_program_suggests_works_as_printed() {
    let place = Place::new();
    // A name that a shell would take for two.
    let output = place.small(&[
        "--layers", "4", "--tp", "2", "--pp", "2", "--steps", "2", "--out", "a run",
    ]);
    assert_eq!(code(&output), 0, "{}", said(&output));
    let printed = text(&output);
    let lines: Vec<&str> = printed
        .split("to try next:\n")
        .nth(1)
        .unwrap()
        .lines()
        .collect();
    assert_eq!(lines.len(), 3, "{printed}");
    for line in &lines {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", line])
            .current_dir(place.path())
            .env_remove("CARGO");
        let output = shell.output().unwrap();
        assert_eq!(code(&output), 0, "{line}: {}", said(&output));
    }
    let losses = |name: &str| crate::program::metrics(&place.path().join(name), "loss");
    assert_eq!(losses("a run").len(), 4);
    for other in ["a run-one-rank", "a run-eight-ranks"] {
        let other = losses(other);
        assert_eq!(
            other.len(),
            4,
            "it repeats the run as it is after the first line"
        );
        for (a, b) in losses("a run").iter().zip(&other) {
            assert!((a - b).abs() <= 1e-5 * b, "{a} and {b}");
        }
    }
}
