//! What a run shows of its steps and leaves of them, in one.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::metrics::{MetricsLog, StepRecord, read_metrics};
use super::plot::write_loss_plot;
use super::progress::{Progress, Screen};
use super::tensorboard::EventWriter;
use crate::error::{Error, Result};

/// Progress on the terminal; in the folder of the run `metrics.jsonl`, events in `tensorboard`, and at the end `loss.svg`.
/// Rank 0 shows and writes; every other rank has one too, which does nothing.
#[derive(Debug)]
pub struct RunLog(Option<Outputs>);

#[derive(Debug)]
struct Outputs {
    folder: PathBuf,
    progress: Progress,
    metrics: MetricsLog,
    board: EventWriter,
    /// When the step began.
    began: Instant,
    /// Samples consumed before it.
    samples: u64,
}

impl RunLog {
    /// Of a run in `folder` that does `steps`, counted from 0: with `200..500` it goes on after 200 steps, and records of later
    /// ones are dropped.
    ///
    /// # Errors
    /// Files that cannot be written, or metrics that are none.
    pub fn new(folder: impl AsRef<Path>, steps: Range<u64>, rank: usize) -> Result<Self> {
        if rank > 0 {
            return Ok(Self(None));
        }
        let folder = folder.as_ref().to_path_buf();
        let path = folder.join("metrics.jsonl");
        std::fs::create_dir_all(&folder).map_err(|e| Error::io("make the folder", &folder, e))?;
        let resumed = (steps.start > 0).then_some(steps.start);
        let metrics = MetricsLog::resume(&path, steps.start)?;
        let board = EventWriter::create(folder.join("tensorboard"), resumed)?;
        let last = read_metrics(&path)?.pop();
        let mut progress = Progress::new(steps.end, steps.start, &Screen::default())?;
        if let Some(step) = resumed {
            progress.note(&format!("goes on after step {step}"));
        }
        Ok(Self(Some(Outputs {
            samples: last.map_or(0, |record| record.samples),
            folder,
            progress,
            metrics,
            board,
            began: Instant::now(),
        })))
    }

    /// Shows and writes a step, with the seconds since the one before, and the samples per second.
    ///
    /// # Errors
    /// The disk is full or gone.
    pub fn step(&mut self, mut record: StepRecord) -> Result<()> {
        let Some(outputs) = &mut self.0 else {
            return Ok(());
        };
        record.seconds = outputs.began.elapsed().as_secs_f64();
        let samples = record.samples.saturating_sub(outputs.samples);
        record.samples_per_second = samples as f64 / record.seconds;
        (outputs.began, outputs.samples) = (Instant::now(), record.samples);
        outputs.metrics.append(&record)?;
        outputs.board.record(&record)?;
        outputs.progress.update(&record);
        Ok(())
    }

    /// Draws the losses of all steps, of earlier runs in the folder too.
    ///
    /// # Errors
    /// No step has a finite loss, or the plot cannot be written.
    pub fn finish(self, title: &str) -> Result<()> {
        let Some(outputs) = self.0 else {
            return Ok(());
        };
        let records = read_metrics(outputs.folder.join("metrics.jsonl"))?;
        let plot = outputs.folder.join("loss.svg");
        write_loss_plot(plot, title, &records, None)?;
        outputs.progress.finish();
        Ok(())
    }
}
