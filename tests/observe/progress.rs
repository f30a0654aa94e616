//! What is shown without a terminal.

use std::io::Write;
use std::sync::{Arc, Mutex};

use burn_frontier::observe::metrics::StepRecord;
use burn_frontier::observe::progress::Progress;

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
            progress.update(&quiet).unwrap();
        }
        progress.note("saved").unwrap();
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
