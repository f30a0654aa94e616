//! Progress, metrics, events and plot in one.

use burn_frontier::observe::metrics::{StepRecord, read_metrics};
use burn_frontier::observe::run_log::RunLog;

use crate::record;

#[test]
fn a_run_that_goes_on_has_every_step_once_and_draws_them_all() {
    let folder = tempfile::tempdir().unwrap();
    for steps in [0..3, 2..5] {
        let mut log = RunLog::new(folder.path(), steps.clone(), 0).unwrap();
        for step in steps {
            let record = StepRecord {
                samples: 8 * (step + 1),
                ..record(step + 1)
            };
            log.step(record).unwrap();
        }
        log.finish("both").unwrap();
    }
    let records = read_metrics(folder.path().join("metrics.jsonl")).unwrap();
    let steps: Vec<_> = records.iter().map(|r| (r.step, r.samples)).collect();
    assert_eq!(steps, [(1, 8), (2, 16), (3, 24), (4, 32), (5, 40)]);
    for record in records {
        // Both are of the step alone, whatever was done before it.
        let samples = record.samples_per_second * record.seconds;
        assert!((samples - 8.0).abs() < 1e-9, "{record:?}");
    }
    let plot = std::fs::read_to_string(folder.path().join("loss.svg")).unwrap();
    assert!(plot.contains("both"));
    let events = std::fs::read_dir(folder.path().join("tensorboard")).unwrap();
    assert_eq!(events.count(), 2);
}

#[test]
fn other_ranks_than_the_first_write_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = RunLog::new(folder.path(), 0..1, 1).unwrap();
    log.step(record(1)).unwrap();
    log.finish("none").unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
