//! Time of an operation: warm-up, batches between two waits for the device, median and spread.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use burn::tensor::Device;

use crate::case::Timed;

/// A batch lasts about so long: a wait for a GPU takes tens of microseconds.
const BATCH: Duration = Duration::from_millis(5);
/// What the runs of a batch may hold in memory together.
const HELD: f64 = (1u64 << 30) as f64;
/// Readings at least, however long they take.
const LEAST: usize = 3;

/// The time of one run.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Median.
    pub seconds: f64,
    /// Interquartile range over median.
    pub spread: f64,
    /// Runs that were timed.
    pub runs: usize,
}

pub struct Clock {
    device: Device,
    /// How long an operation is repeated.
    budget: Duration,
}

impl Clock {
    pub fn new(device: Device, budget: Duration) -> Self {
        Self { device, budget }
    }

    /// Repeats what `prepare` gives. A run's tensors are `bytes` large together, about.
    pub fn time(&self, bytes: f64, prepare: &mut dyn FnMut() -> Result<Timed>) -> Result<Timing> {
        let once = self.warm_up(prepare)?;
        let wanted = (BATCH.as_secs_f64() / once).ceil();
        let batch = wanted.min(HELD / bytes).clamp(1.0, 100.0) as usize;
        let mut readings = Vec::new();
        let (start, mut timed) = (Instant::now(), Duration::ZERO);
        // What is made ready untimed, a forward pass for each backward pass, shall not take much longer.
        let enough = |timed| timed >= self.budget || start.elapsed() >= 4 * self.budget;
        while readings.len() < LEAST || !enough(timed) {
            let time = self.batch(batch, prepare)?;
            timed += time;
            readings.push(time.as_secs_f64() / batch as f64);
        }
        readings.sort_by(f64::total_cmp);
        let quantile = |q: f64| readings[(q * (readings.len() - 1) as f64).round() as usize];
        let seconds = quantile(0.5);
        Ok(Timing {
            seconds,
            spread: (quantile(0.75) - quantile(0.25)) / seconds,
            runs: readings.len() * batch,
        })
    }

    /// The first runs compile kernels and try out their variants. Gives the time of the last one in seconds.
    fn warm_up(&self, prepare: &mut dyn FnMut() -> Result<Timed>) -> Result<f64> {
        self.batch(1, prepare)?;
        let start = Instant::now();
        loop {
            let last = self.batch(1, prepare)?;
            if start.elapsed() >= self.budget / 5 {
                return Ok(last.as_secs_f64().max(1e-9));
            }
        }
    }

    fn batch(&self, runs: usize, prepare: &mut dyn FnMut() -> Result<Timed>) -> Result<Duration> {
        let runs: Vec<Timed> = (0..runs).map(|_| prepare()).collect::<Result<_>>()?;
        self.wait()?;
        let start = Instant::now();
        runs.into_iter().try_for_each(|run| run())?;
        self.wait()?;
        Ok(start.elapsed())
    }

    fn wait(&self) -> Result<()> {
        self.device
            .sync()
            .context("the device failed at its work; try a smaller --shape")
    }
}
