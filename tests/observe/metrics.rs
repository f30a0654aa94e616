//! Step records and the file that keeps them.

use std::fs;
use std::path::PathBuf;

use burn_frontier::device::memory::peak_resident_bytes;
use burn_frontier::observe::metrics::{MetricsLog, StepRecord, read_metrics};

use crate::record;

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    (folder, path)
}

#[test]
fn a_line_is_readable_as_soon_as_it_is_appended() {
    let (_folder, path) = folder();
    let mut log = MetricsLog::create(&path).unwrap();
    for step in 1..=3 {
        log.append(&record(step)).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap().lines().count() as u64,
            step
        );
        assert_eq!(read_metrics(&path).unwrap().last(), Some(&record(step)));
    }
}

#[test]
fn a_resumed_run_has_every_step_once() {
    let (folder, path) = folder();
    let mut log = MetricsLog::create(&path).unwrap();
    (1..=10).for_each(|step| log.append(&record(step)).unwrap());
    drop(log);
    let before = fs::read_to_string(&path).unwrap();
    let mut log = MetricsLog::resume(&path, 6).unwrap();
    (7..=12).for_each(|step| log.append(&record(step)).unwrap());
    let steps: Vec<u64> = read_metrics(&path)
        .unwrap()
        .iter()
        .map(|r| r.step)
        .collect();
    assert_eq!(steps, (1..=12).collect::<Vec<_>>());
    let after = fs::read_to_string(&path).unwrap();
    assert!(before.lines().zip(after.lines()).all(|(a, b)| a == b));
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().count(),
        1,
        "a temporary file stayed"
    );
}

#[test]
fn a_line_torn_by_a_kill_is_dropped_but_damage_elsewhere_is_an_error() {
    let (_folder, path) = folder();
    let mut log = MetricsLog::create(&path).unwrap();
    (1..=3).for_each(|step| log.append(&record(step)).unwrap());
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 9]).unwrap();
    assert_eq!(read_metrics(&path).unwrap().len(), 2);
    MetricsLog::resume(&path, 3)
        .unwrap()
        .append(&record(3))
        .unwrap();
    assert_eq!(fs::read(&path).unwrap(), whole);

    fs::write(&path, [b"not a record\n", whole.as_slice()].concat()).unwrap();
    let error = MetricsLog::resume(&path, 3).unwrap_err().to_string();
    assert!(error.contains("line 1"), "{error}");
}

#[test]
fn a_run_without_metrics_resumes_with_an_empty_file() {
    let (_folder, path) = folder();
    MetricsLog::resume(&path, 6).unwrap();
    assert!(read_metrics(&path).unwrap().is_empty());
}

#[test]
fn an_overflowed_loss_comes_back_as_nan() {
    let (_folder, path) = folder();
    let overflowed = StepRecord {
        loss: f64::NAN,
        gradient_norm: f64::INFINITY,
        skipped: 1,
        ..record(1)
    };
    MetricsLog::create(&path)
        .unwrap()
        .append(&overflowed)
        .unwrap();
    let read = &read_metrics(&path).unwrap()[0];
    assert!(read.loss.is_nan() && read.gradient_norm.is_nan() && read.skipped == 1);
}

#[test]
#[cfg(target_os = "linux")]
fn peak_memory_grows_with_what_is_touched() {
    let before = peak_resident_bytes().unwrap();
    let touched = std::hint::black_box(vec![1_u8; 64 << 20]);
    let after = peak_resident_bytes().unwrap();
    assert!(after >= before && after >= touched.len() as u64);
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_an_error_that_names_the_file() {
    let mut log = MetricsLog::create("/dev/full").unwrap();
    let error = log.append(&record(1)).unwrap_err().to_string();
    assert!(
        error.starts_with("cannot append to /dev/full: No space left"),
        "{error}"
    );
}
