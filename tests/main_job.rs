//! The main job's program, as users and batch systems treat it.

#[path = "main_job/end.rs"]
mod end;
#[path = "main_job/folder.rs"]
mod folder;
#[path = "main_job/imports.rs"]
mod imports;
#[path = "main_job/program.rs"]
mod program;
#[path = "main_job/schedule.rs"]
mod schedule;
#[path = "main_job/signals.rs"]
mod signals;

use std::fs;

use program::{Place, code, said, text};

#[test]
fn numbers_with_which_nothing_can_be_computed_are_refused_by_name() {
    let place = Place::new();
    for (flag, value) in [
        ("--learning-rate", "nan"),
        ("--learning-rate", "inf"),
        ("--learning-rate", "-1"),
        ("--learning-rate", "0"),
        ("--weight-decay", "-0.1"),
        ("--weight-decay", "nan"),
        ("--clip", "nan"),
        ("--clip", "-1"),
        ("--dropout", "nan"),
        ("--dropout", "1"),
        ("--dropout", "-0.5"),
        ("--peak", "0"),
        ("--peak", "inf"),
        ("--decay-steps", "0"),
    ] {
        let output = place.small(&[flag, value, "--steps", "1"]);
        let said = said(&output);
        assert_eq!(code(&output), 1, "{flag} {value}: {said}");
        assert!(said.contains(&format!("error: {flag} ")), "{said}");
    }
    assert!(!place.out().exists(), "nothing was begun");
}

#[test]
fn a_run_that_diverges_says_where_and_what_it_advises_works() {
    let place = Place::new();
    let first = ["--steps", "3", "--save-every", "3", "--out", "run"];
    assert_eq!(code(&place.small(&first)), 0);
    let more = ["--resume", "--steps", "6", "--out", "run"];

    // Parameters so large that the next loss is no number.
    let output = place.run(&[&more[..], &["--learning-rate", "1e30"]].concat());
    assert_eq!(code(&output), 1);
    assert!(
        text(&output).contains("step 4 has learning rate"),
        "{}",
        text(&output)
    );
    let error = said(&output);
    assert!(error.contains("training has diverged"), "{error}");
    assert!(
        error.contains("step 3 is saved") && error.contains("--resume --out run"),
        "{error}"
    );

    // Parameters that are infinite already, where a checkpoint is due.
    let output = place.run(
        &[
            &more[..],
            &["--learning-rate", "1e300", "--save-every", "1"],
        ]
        .concat(),
    );
    let error = said(&output);
    assert_eq!(code(&output), 1, "{error}");
    assert!(error.contains("step 4 is not saved: tensor `"), "{error}");
    assert_eq!(place.checkpoints(), [3]);

    let output = place.run(&[&more[..], &["--learning-rate", "1e-3"]].concat());
    assert_eq!(code(&output), 0, "{}", said(&output));
    assert_eq!(place.metrics("step").len(), 6);
}

#[test]
fn rust_log_is_honoured_and_a_wrong_one_is_said() {
    let place = Place::new();
    let run = |value: &str| {
        let flags = ["--steps", "1", "--out", "run"];
        said(
            &place
                .small_command(&flags)
                .env("RUST_LOG", value)
                .output()
                .unwrap(),
        )
    };
    assert_eq!(run("warn"), "");
    assert!(run("burn_frontier=loud").starts_with("warning: RUST_LOG is not understood"));
}

#[test]
fn a_damaged_checkpoint_that_is_passed_over_is_said_and_a_newer_one_is_refused() {
    let place = Place::new();
    let first = ["--steps", "4", "--save-every", "2", "--out", "run"];
    assert_eq!(code(&place.small(&first)), 0);
    assert_eq!(place.checkpoints(), [2, 4]);
    let manifest = place.out().join("checkpoints/step-00000004/manifest.json");
    let whole = fs::read_to_string(&manifest).unwrap();
    let again = ["--resume", "--out", "run"];

    let rest = whole[r#"{"checksum":"01234567"#.len()..].replace("\"version\":1", "\"version\":2");
    let checksum = crc32fast::hash(rest.as_bytes());
    let newer = format!(r#"{{"checksum":"{checksum:08x}{rest}"#);
    fs::write(&manifest, &newer).unwrap();
    let output = place.run(&again);
    assert_eq!(code(&output), 1);
    assert!(said(&output).contains("has version 2"), "{}", said(&output));
    assert_eq!(fs::read_to_string(&manifest).unwrap(), newer);
    assert_eq!(place.metrics("step").len(), 4, "nothing was touched");

    fs::write(&manifest, &whole[..whole.len() / 2]).unwrap();
    let output = place.run(&again);
    assert_eq!(code(&output), 0, "{}", said(&output));
    let warning = "warning: passing over a checkpoint that is not whole";
    assert!(said(&output).contains(warning), "{}", said(&output));
    assert!(
        text(&output).contains("resume    step 2"),
        "{}",
        text(&output)
    );
    assert_eq!(place.metrics("step"), [1.0, 2.0, 3.0, 4.0]);
}
