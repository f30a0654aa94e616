//! A run's folder: one process writes to it, an older run is kept, and what is not a run's stays as it is.

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use crate::program::{Place, code, said, text};

/// What a folder holds.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A step on other text than the place's.
fn learn(place: &Place, data: &str, out: &str) -> Output {
    let small = "--steps 1 --layers 1 --hidden 32 --heads 2 --sequence 32 --tp 1 --pp 1";
    let mut flags = vec!["--data", data, "--out", out];
    flags.extend(small.split(' '));
    place.run(&flags)
}

#[test]
fn a_second_process_is_refused_until_the_first_is_gone() {
    let place = Place::new();
    let long = ["--steps", "1000000", "--save-every", "1", "--out", "run"];
    let mut first = place.small_command(&long);
    let mut first = first.stdout(Stdio::null()).spawn().unwrap();
    while !place.out().join("checkpoints/step-00000001").exists() && place.metrics("step").len() < 3
    {
        assert_eq!(first.try_wait().unwrap(), None, "it ended early");
        std::thread::sleep(Duration::from_millis(20));
    }
    for flag in ["--resume", "--no-overlap"] {
        let output = place.small(&[flag, "--steps", "1", "--out", "run"]);
        let (code, said) = (code(&output), said(&output));
        let process = format!("process {}", first.id());
        assert!(code == 1 && said.contains(&process), "{flag}: {said}");
    }
    let plan = place.small(&["--plan", "--out", "run"]);
    assert_eq!(code(&plan), 0, "{}", said(&plan));
    assert_eq!(first.try_wait().unwrap(), None, "it was disturbed");
    first.kill().unwrap();
    first.wait().unwrap();

    let next = place.small(&["--steps", "1", "--out", "run"]);
    assert_eq!(code(&next), 0, "{}", said(&next));
    assert!(text(&next).contains("the run before is kept in run-1"));
    assert_eq!(place.metrics("step"), [1.0]);
    assert_eq!(names(place.path()), ["run", "run-1", "text.rs"]);
}

#[test]
fn a_start_that_is_refused_leaves_the_older_run_its_name() {
    let place = Place::new();
    assert_eq!(code(&place.small(&["--steps", "1", "--out", "run"])), 0);
    let before = names(&place.out());
    fs::write(place.path().join("other.txt"), "too short").unwrap();
    fs::write(place.path().join("binary"), b"\xFF\xFE\x00").unwrap();
    for (flag, value) in [
        ("--learning-rate", "nan"),
        ("--layers", "0"),
        ("--tp", "3"),
        ("--tokenizer", "text.rs"),
        ("--import", "text.rs"),
        ("--key", "content"),
    ] {
        let output = place.small(&[flag, value, "--steps", "1", "--out", "run"]);
        assert_eq!(code(&output), 1, "{flag} {value}: {}", said(&output));
        assert_eq!(names(&place.out()), before, "{flag} {value}");
    }
    for data in ["nothing", "other.txt", "binary"] {
        let output = learn(&place, data, "run");
        assert_eq!(code(&output), 1, "{data}: {}", said(&output));
        assert_eq!(names(&place.out()), before, "{data}");
    }
    assert!(!place.path().join("run-1").exists());
}

#[test]
fn the_folder_of_a_users_project_is_neither_written_to_nor_renamed() {
    let place = Place::new();
    fs::create_dir(place.path().join("checkpoints")).unwrap();
    for flags in [["--out", "."], ["--out", "../."], ["--plan", "--out=."]] {
        let output = place.small(&flags);
        let error = said(&output);
        assert_eq!(code(&output), 1, "{error}");
        assert!(error.contains("is not the folder of a run"), "{error}");
        assert_eq!(names(place.path()), ["checkpoints", "text.rs"]);
    }
    // Its runs are not its text.
    let learned = ["runs/one", "runs/two"].map(|out| {
        let output = learn(&place, ".", out);
        assert_eq!(code(&output), 0, "{}", said(&output));
        let line = |line: &&str| line.starts_with("text");
        text(&output).lines().find(line).unwrap().to_string()
    });
    assert_eq!(learned[0], learned[1]);
}

#[test]
fn what_is_left_out_and_what_is_uneven_is_said() {
    let place = Place::new();
    let folder = place.path().join("mixed");
    fs::create_dir(&folder).unwrap();
    let rows: Vec<String> = [30, 40, 9000]
        .map(|length| format!("{{\"text\": \"{}\"}}\n", "x".repeat(length)))
        .to_vec();
    fs::write(folder.join("a.json"), rows.concat() + "{\"text\": null}\n").unwrap();
    fs::write(folder.join("b.txt"), b"caf\xE9").unwrap();
    let output = learn(&place, "mixed", "run");
    let (text, said) = (text(&output), said(&output));
    assert_eq!(code(&output), 0, "{said}");
    for part in [
        "1 file left out, which is not UTF-8 text, 1 line without text passed over",
        "72 tokens to learn, 9001 to validate",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    for part in ["b.txt", "9001 tokens in 1 documents against 72 tokens in 2"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}
