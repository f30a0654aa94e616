//! Signals, and readers that leave.
#![cfg(unix)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::program::{Place, code, metrics, said};

/// Waits until something holds; ends the program and the test if that takes a minute.
fn wait_until(child: &mut Child, what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        if start.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("after a minute: {what}");
        }
        sleep(Duration::from_millis(20));
    }
}

fn send(child: &Child, signal: &str) {
    let status = Command::new("kill")
        .args(["-s", signal, &child.id().to_string()])
        .status();
    assert!(status.unwrap().success());
}

#[test]
fn a_batch_systems_signals_end_a_run_with_a_checkpoint_from_which_it_goes_on_unchanged() {
    let place = Place::new();
    let mut code_of = Vec::new();
    for signal in ["TERM", "HUP"] {
        let flags: &[&str] = match signal {
            "TERM" => &["--tp", "2", "--steps", "100000", "--out", "run"],
            _ => &["--resume", "--out", "run"],
        };
        let before = place.metrics("loss").len();
        let mut command = match signal {
            "TERM" => place.small_command(flags),
            _ => place.command(flags),
        };
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        wait_until(&mut child, "no steps", || {
            place.metrics("loss").len() > before + 5
        });
        if signal == "TERM" {
            send(&child, "USR1");
            let dump = place.out().join("flight-recorder.txt");
            wait_until(&mut child, "no dump", || {
                fs::read_to_string(&dump).is_ok_and(|text| text.contains("rank 1: "))
            });
            let steps = place.metrics("loss").len();
            wait_until(&mut child, "no further step", || {
                place.metrics("loss").len() > steps
            });
        }
        send(&child, signal);
        let output = child.wait_with_output().unwrap();
        code_of.push(code(&output));
        assert!(
            said(&output).contains(&format!("SIG{signal}: the run saves a checkpoint")),
            "{}",
            said(&output)
        );
        assert_eq!(
            said(&output).contains("flight recorder, also in"),
            signal == "TERM"
        );
        let steps = place.metrics("loss").len();
        assert_eq!(
            place.checkpoints().last(),
            Some(&(steps as u64)),
            "every step is saved"
        );
    }
    assert_eq!(code_of, [143, 129]);

    let steps = place.metrics("loss").len() + 5;
    let steps = steps.to_string();
    assert_eq!(
        code(&place.run(&["--resume", "--steps", &steps, "--out", "run"])),
        0
    );
    // Never interrupted.
    let flags = [
        "--tp",
        "2",
        "--steps",
        &steps,
        "--decay-steps",
        "100000",
        "--out",
        "whole",
    ];
    assert_eq!(code(&place.small(&flags)), 0);
    assert_eq!(
        place.metrics("loss"),
        metrics(&place.path().join("whole"), "loss")
    );
}

#[test]
fn a_closed_standard_output_ends_nothing_and_is_said_once() {
    let place = Place::new();
    let mut command = place.small_command(&["--steps", "30", "--out", "run"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert!(line.starts_with("device"), "{line}");
    let output = child.wait_with_output().unwrap();
    assert_eq!(code(&output), 0, "{}", said(&output));
    assert_eq!(
        said(&output).matches("warning:").count(),
        1,
        "{}",
        said(&output)
    );
    assert!(
        said(&output).contains("training goes on"),
        "{}",
        said(&output)
    );
    assert_eq!(place.metrics("step").len(), 30);
    assert!(place.out().join("loss.svg").exists());
    assert_eq!(place.checkpoints(), [30]);
}

#[test]
fn closed_outputs_both_are_survived_too() {
    let place = Place::new();
    let program = place.small_command(&["--steps", "5", "--out", "run"]);
    let words: Vec<String> = std::iter::once(program.get_program())
        .chain(program.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    let script = format!("({} 2>&1; echo $? > code) | head -n 1", words.join(" "));
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &script])
        .current_dir(place.path())
        .env_remove("CARGO");
    assert!(shell.output().unwrap().status.success());
    let code = fs::read_to_string(place.path().join("code")).unwrap();
    assert_eq!(code.trim(), "0");
    assert_eq!(place.metrics("step").len(), 5);
}
