//! The learning rate belongs to the run, not to how often it was interrupted.

use std::fs;

use burn_frontier::optim::schedule::{Decay, LearningRate};

use crate::program::{Place, code, said, text};

fn cosine(peak: f64, warmup: u64, total: u64) -> LearningRate {
    LearningRate {
        peak,
        minimum: peak / 10.0,
        warmup,
        total,
        decay: Decay::Cosine,
    }
}

/// Runs the run on to `steps`; what it printed.
fn resume(place: &Place, steps: &str, flags: &[&str]) -> String {
    let output = place.run(&[&["--resume", "--steps", steps, "--out", "run"], flags].concat());
    assert_eq!(code(&output), 0, "{}", said(&output));
    text(&output)
}

#[test]
fn a_resumed_run_keeps_its_schedule_until_a_flag_changes_it() {
    let place = Place::new();
    let output = place.small(&["--steps", "20", "--out", "run"]);
    assert_eq!(code(&output), 0, "{}", said(&output));
    let mut expected: Vec<f64> = (1..=20).map(|step| cosine(3e-3, 2, 20).at(step)).collect();

    // More steps: the rate stays where it ended, and the flags that the folder keeps say so.
    assert!(!resume(&place, "24", &[]).contains("changed"));
    expected.extend([expected[19]; 4]);
    let config = fs::read_to_string(place.out().join("config.toml")).unwrap();
    assert!(
        config.contains("steps = 24") && config.contains("decay-steps = 20"),
        "{config}"
    );

    // A longer schedule, which is said.
    let printed = resume(&place, "28", &["--decay-steps", "28"]);
    let longer = cosine(3e-3, 2, 28);
    let jump = format!(
        "step 25 has learning rate {:.2e} instead of 3.00e-4",
        longer.at(25)
    );
    assert!(printed.contains(&jump), "{printed}");
    expected.extend((25..=28).map(|step| longer.at(step)));

    // It is kept in turn; a new peak scales it.
    let printed = resume(
        &place,
        "30",
        &[
            "--learning-rate",
            "1e-3",
            "--weight-decay",
            "0.2",
            "--clip",
            "0",
        ],
    );
    for change in [
        "step 29 has learning rate 1.00e-4 instead of 3.00e-4",
        "weight decay is 0.2 instead of 0.1 from step 29 on",
        "clipped to 0 instead of 1 from step 29 on",
    ] {
        assert!(printed.contains(change), "{change}: {printed}");
    }
    expected.extend([1e-4; 2]);
    assert!(!resume(&place, "31", &[]).contains("changed"), "said once");
    expected.push(1e-4);

    let rates = place.metrics("learning_rate");
    assert_eq!(rates.len(), expected.len());
    for (step, (rate, expected)) in rates.iter().zip(&expected).enumerate() {
        assert!(
            (rate - expected).abs() < 1e-12,
            "step {}: {rate}, not {expected}",
            step + 1
        );
    }
}

#[test]
fn what_cannot_change_within_a_run_is_refused() {
    let place = Place::new();
    assert_eq!(code(&place.small(&["--steps", "1", "--out", "run"])), 0);
    for [flag, value, word] in [
        ["--seed", "7", "--seed"],
        ["--precision", "bf16", "--precision"],
        ["--global-batch", "4", "--global-batch"],
        [
            "--dropout",
            "0.1",
            "--dropout 0.1, but the run in run has dropout 0",
        ],
        ["--import", "text.rs", "--import"],
    ] {
        let output = place.run(&["--resume", "--steps", "2", "--out", "run", flag, value]);
        assert_eq!(code(&output), 1, "{flag}");
        assert!(said(&output).contains(word), "{}", said(&output));
    }
    assert_eq!(place.metrics("step"), [1.0], "nothing was touched");
}
