//! What is shown without a terminal.

use std::io::Write;
use std::sync::{Arc, Mutex};

use burn_frontier::observe::metrics::StepRecord;
use burn_frontier::observe::progress::{Progress, describe};

use crate::record;

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_run_without_a_terminal_prints_about_twenty_lines_with_first_and_last() {
    for (total, done) in [(10, 0), (1000, 0), (1000, 637), (1_000_000, 999_990)] {
        let sink = Sink::default();
        let mut progress = Progress::plain(total, done, Box::new(sink.clone()));
        for step in done + 1..=total {
            let quiet = StepRecord {
                validation_loss: None,
                ..record(step)
            };
            progress.update(&quiet);
        }
        progress.note("saved");
        progress.finish();
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<_> = text.lines().collect();
        let expected = (total - done).min(20) as usize;
        assert!((expected..=expected + 3).contains(&lines.len()), "{text}");
        assert!(
            lines[0].starts_with(&format!("step {}/{total} ", done + 1)),
            "{text}"
        );
        let last = lines[lines.len() - 2];
        assert!(
            last.starts_with(&format!("step {total}/{total} ")),
            "{text}"
        );
        for part in [
            "loss 5.",
            "grad norm 1.500",
            "512/rank",
            "MFU 25.0 %",
            "HFU 31.2 %",
            "left ",
        ] {
            assert!(last.contains(part), "{part} is not in {last}");
        }
        assert_eq!(lines[lines.len() - 1], "saved");
    }
}

#[test]
fn a_model_without_tokens_is_told_in_samples() {
    let pictures = StepRecord {
        tokens: None,
        tokens_per_second: None,
        tokens_per_second_per_rank: None,
        ..record(1)
    };
    let line = describe(&pictures);
    assert!(
        line.contains("16.00 samples/s") && !line.contains("token"),
        "{line}"
    );
    let json = serde_json::to_string(&pictures).unwrap();
    assert!(!json.contains("token"), "{json}");
    assert_eq!(serde_json::from_str::<StepRecord>(&json).unwrap(), pictures);
}

/// A pipe whose reader has left.
struct Closed(Arc<Mutex<usize>>);

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        *self.0.lock().unwrap() += 1;
        Err(std::io::ErrorKind::BrokenPipe.into())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_output_that_is_gone_does_not_end_the_run() {
    let writes = Arc::new(Mutex::new(0));
    let mut progress = Progress::plain(3, 0, Box::new(Closed(writes.clone())));
    (1..=3).for_each(|step| progress.update(&record(step)));
    progress.note("saved");
    progress.finish();
    assert_eq!(*writes.lock().unwrap(), 4);
}
