//! What the run shows of itself is right: operation counts, step records, event files, traces and plots.

use burn_frontier::Layout;
use burn_frontier::mesh::Coordinate;
use burn_frontier::observe::metrics::StepRecord;
use burn_frontier::observe::trace::{Category, Span};

#[path = "observe/flops.rs"]
mod flops;
#[path = "observe/metrics.rs"]
mod metrics;
#[path = "observe/plot.rs"]
mod plot;
#[path = "observe/progress.rs"]
mod progress;
#[path = "observe/run_log.rs"]
mod run_log;
#[path = "observe/tensorboard.rs"]
mod tensorboard;
#[path = "observe/trace.rs"]
mod trace;

/// A record with every speed.
fn record(step: u64) -> StepRecord {
    StepRecord {
        step,
        samples: 4 * step,
        tokens: Some(512 * step),
        loss: 5.0 + 5.0 / step as f64,
        gradient_norm: 1.5,
        learning_rate: 3e-4,
        seconds: 0.25,
        samples_per_second: 16.0,
        tokens_per_second: Some(2048.0),
        tokens_per_second_per_rank: Some(512.0),
        mfu: Some(0.25),
        hfu: Some(0.3125),
        validation_loss: step.is_multiple_of(4).then_some(6.0),
        ..StepRecord::default()
    }
}

/// GPipe on `stages` equal stages: forward 1 ms, backward 2 ms, nothing else.
fn gpipe(layout: &Layout, stages: usize, micro_batches: usize) -> Vec<Span> {
    let mut spans = Vec::new();
    for stage in 0..stages {
        let at = Coordinate {
            tp: 0,
            pp: stage,
            dp: 0,
        };
        let mut push = |category, micro_batch, start_us: f64, length: f64| {
            spans.push(Span {
                rank: layout.rank(at),
                stage,
                category,
                micro_batch: Some(micro_batch),
                chunk: 0,
                start_us,
                end_us: start_us + length,
            });
        };
        let turn = 1e3 * (micro_batches + stages - 1) as f64;
        for m in 0..micro_batches {
            push(Category::Forward, m, 1e3 * (stage + m) as f64, 1e3);
            let wait = (stages - 1 - stage + m) as f64;
            push(Category::Backward, m, turn + 2e3 * wait, 2e3);
        }
    }
    spans
}
