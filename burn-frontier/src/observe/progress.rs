//! What a terminal shows of a run: a bar when somebody watches, plain lines when the output goes to a file.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{FormattedDuration, HumanBytes, MultiProgress, ProgressBar, ProgressStyle};

use super::metrics::StepRecord;
use crate::error::{Error, Result};

/// Plain lines a run prints, whatever its length.
const PLAIN_LINES: u64 = 20;

/// A terminal that bars and lines share. Clones are the same terminal.
#[derive(Debug, Clone, Default)]
pub struct Screen(MultiProgress);

impl Screen {
    /// Runs `write`, which writes to the terminal, with the bars out of the way: they are drawn again below.
    pub fn above<R>(&self, write: impl FnOnce() -> R) -> R {
        self.0.suspend(write)
    }
}

/// The progress of a training run. Held by the one rank that reports.
///
/// Output that is gone or full is no reason to end a training: it is said once, by a warning.
pub struct Progress {
    total: u64,
    done: u64,
    began: Instant,
    output: Output,
}

enum Output {
    Bar(ProgressBar),
    Plain {
        to: Box<dyn Write + Send>,
        every: u64,
        /// Whether it was said that nothing can be written.
        warned: bool,
    },
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Progress")
            .field("total", &self.total)
            .field("bar", &matches!(self.output, Output::Bar(_)))
            .finish_non_exhaustive()
    }
}

impl Progress {
    /// Progress of a run of `total` steps, of which `done` were done before it was resumed. A bar on standard error, on
    /// `screen`, if that and standard output are terminals, otherwise about 20 plain lines on standard output.
    ///
    /// # Errors
    /// The bar's template is wrong, which is a bug.
    pub fn new(total: u64, done: u64, screen: &Screen) -> Result<Self> {
        if !(io::stdout().is_terminal() && io::stderr().is_terminal()) {
            return Ok(Self::plain(total, done, Box::new(io::stdout())));
        }
        let style = ProgressStyle::with_template(
            "{bar:40.cyan/blue} {pos}/{len}  {elapsed_precise}, left {eta_precise}\n{wide_msg}",
        )
        .map_err(|e| Error::Internal(format!("progress template: {e}")))?;
        let bar = ProgressBar::new(total).with_style(style.progress_chars("━╸─"));
        let bar = screen.0.add(bar);
        bar.set_position(done);
        // The estimate must not count the steps of the earlier run.
        bar.reset_eta();
        Ok(Self::with_output(total, done, Output::Bar(bar)))
    }

    /// As [`Self::new`] without a terminal, with plain lines written to `to`.
    pub fn plain(total: u64, done: u64, to: Box<dyn Write + Send>) -> Self {
        let every = total.saturating_sub(done).div_ceil(PLAIN_LINES).max(1);
        let warned = false;
        Self::with_output(total, done, Output::Plain { to, every, warned })
    }

    fn with_output(total: u64, done: u64, output: Output) -> Self {
        Self {
            total,
            done,
            began: Instant::now(),
            output,
        }
    }

    /// Shows a step. Plain lines come for the first step of the run, every so many steps, for the last step, and
    /// whenever there is a validation loss.
    pub fn update(&mut self, record: &StepRecord) {
        let left = self.seconds_left(record.step);
        match &mut self.output {
            Output::Bar(bar) => {
                bar.set_position(record.step);
                bar.set_message(describe(record));
            }
            Output::Plain { to, every, warned } => {
                let due = record.step == self.done + 1
                    || record.step.is_multiple_of(*every)
                    || record.step == self.total
                    || record.validation_loss.is_some();
                if !due {
                    return;
                }
                let left = FormattedDuration(Duration::from_secs(left));
                let line = format!(
                    "step {}/{}  {}  left {left}",
                    record.step,
                    self.total,
                    describe(record)
                );
                write_line(to, &line, warned);
            }
        }
    }

    /// Prints a line of text without tearing the bar: a checkpoint was saved, a run was resumed.
    pub fn note(&mut self, line: &str) {
        match &mut self.output {
            Output::Bar(bar) => bar.println(line),
            Output::Plain { to, warned, .. } => write_line(to, line, warned),
        }
    }

    /// Leaves the bar as it stands and the cursor below it.
    pub fn finish(self) {
        if let Output::Bar(bar) = self.output {
            bar.abandon();
        }
    }

    /// Seconds until the last step, at the mean speed of this run.
    fn seconds_left(&self, step: u64) -> u64 {
        let here = step.saturating_sub(self.done).max(1) as f64;
        let rest = self.total.saturating_sub(step) as f64;
        (self.began.elapsed().as_secs_f64() / here * rest).round() as u64
    }
}

fn write_line(to: &mut dyn Write, line: &str, warned: &mut bool) {
    if let Err(reason) = writeln!(to, "{line}").and_then(|()| to.flush())
        && !std::mem::replace(warned, true)
    {
        tracing::warn!(
            "the progress can no longer be written ({reason}); training goes on without"
        );
    }
}

/// A record on one line, what matters most first: a narrow terminal cuts off its end.
pub fn describe(record: &StepRecord) -> String {
    let mut parts = vec![format!("loss {:.4}", record.loss)];
    if let Some(loss) = record.validation_loss {
        parts.push(format!("validation {loss:.4}"));
    }
    parts.push(format!("grad norm {:.3}", record.gradient_norm));
    parts.push(
        match (record.tokens_per_second, record.tokens_per_second_per_rank) {
            (Some(all), Some(each)) => format!("{} tokens/s ({}/rank)", short(all), short(each)),
            _ => format!("{} samples/s", short(record.samples_per_second)),
        },
    );
    for (name, share) in [("MFU", record.mfu), ("HFU", record.hfu)] {
        if let Some(share) = share {
            parts.push(format!("{name} {:.1} %", 100.0 * share));
        }
    }
    parts.push(format!("lr {:.2e}", record.learning_rate));
    if let Some(bytes) = record.peak_memory_bytes {
        parts.push(format!("peak {}", HumanBytes(bytes)));
    }
    if record.skipped > 0 {
        parts.push(format!("skipped {}", record.skipped));
    }
    parts.join("  ")
}

/// A rate with three significant digits or so: 7.49, 396, 12.3k, 1.20M.
fn short(rate: f64) -> String {
    match rate {
        r if r >= 1e6 => format!("{:.2}M", r / 1e6),
        r if r >= 1e4 => format!("{:.1}k", r / 1e3),
        r if r >= 100.0 => format!("{r:.0}"),
        r => format!("{r:.2}"),
    }
}
