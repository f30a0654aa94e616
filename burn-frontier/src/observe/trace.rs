//! When each rank did what: spans, and the Chrome trace that Perfetto (ui.perfetto.dev) and `chrome://tracing` show.

use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::mesh::Layout;

/// What a span of time was spent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// Forward pass of a micro-batch through a stage.
    Forward,
    /// Backward pass of a micro-batch; with a zero-bubble schedule the gradients of the inputs only.
    Backward,
    /// Weight gradients of a micro-batch, where the schedule splits them from the backward pass.
    BackwardWeight,
    /// Handing activations or gradients to a neighbour stage.
    Send,
    /// Waiting for and taking activations or gradients from a neighbour stage.
    Receive,
    /// Reducing gradients over replicas and tied embeddings.
    Reduce,
    /// Clipping and the optimizer.
    Step,
}

impl Category {
    /// Whether the stage computes on a micro-batch: what a pipeline is for.
    pub const fn is_compute(self) -> bool {
        matches!(self, Self::Forward | Self::Backward | Self::BackwardWeight)
    }
}

/// A stretch of time that one rank spent on one thing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Span {
    /// World rank.
    pub rank: usize,
    /// Pipeline stage of that rank.
    pub stage: usize,
    /// What it was spent on.
    pub category: Category,
    /// The micro-batch, if it was for one.
    pub micro_batch: Option<usize>,
    /// The stage's chunk of layers; 0 unless the schedule is interleaved.
    pub chunk: usize,
    /// Start, in microseconds after the recorder's origin.
    pub start_us: f64,
    /// End, in microseconds after the recorder's origin.
    pub end_us: f64,
}

impl Span {
    /// What a viewer writes on it: `F3` for the forward pass of micro-batch 3, `B3`, `W3`, `send 3`, `reduce`, …
    pub fn name(&self) -> String {
        let word = match self.category {
            Category::Forward => "F",
            Category::Backward => "B",
            Category::BackwardWeight => "W",
            Category::Send => "send",
            Category::Receive => "receive",
            Category::Reduce => "reduce",
            Category::Step => "step",
        };
        match self.micro_batch {
            Some(micro_batch) if self.category.is_compute() => format!("{word}{micro_batch}"),
            Some(micro_batch) => format!("{word} {micro_batch}"),
            None => word.to_string(),
        }
    }

    /// Length in microseconds.
    pub fn duration_us(&self) -> f64 {
        self.end_us - self.start_us
    }
}

/// Collects one rank's spans: two clock readings and a push each. A recorder that is off keeps nothing.
#[derive(Debug)]
pub struct SpanRecorder {
    origin: Instant,
    rank: usize,
    stage: usize,
    enabled: bool,
    spans: Vec<Span>,
}

impl SpanRecorder {
    /// A recorder for world rank `rank`. Ranks that are threads share one `origin`, so that their spans line up.
    pub const fn new(origin: Instant, rank: usize, stage: usize, enabled: bool) -> Self {
        Self {
            origin,
            rank,
            stage,
            enabled,
            spans: Vec::new(),
        }
    }

    /// Keeps a span that began at `start` and ends now.
    pub fn record(
        &mut self,
        category: Category,
        micro_batch: Option<usize>,
        chunk: usize,
        start: Instant,
    ) {
        if !self.enabled {
            return;
        }
        let microseconds =
            |at: Instant| at.saturating_duration_since(self.origin).as_secs_f64() * 1e6;
        let (start_us, end_us) = (microseconds(start), microseconds(Instant::now()));
        self.spans.push(Span {
            rank: self.rank,
            stage: self.stage,
            category,
            micro_batch,
            chunk,
            start_us,
            end_us,
        });
    }

    /// Hands over what was collected so far, and continues empty.
    pub fn take(&mut self) -> Vec<Span> {
        std::mem::take(&mut self.spans)
    }
}

/// The share of the stages' time that is not spent on forward and backward passes, `0..1`, from the first start of one
/// to the last end of one on any rank. None without forward or backward spans.
///
/// Give it the spans of one step. With equal costs, 1F1B and GPipe give `(pp - 1) / (m + pp - 1)`, where `m` is the
/// number of micro-batches; papers that divide by the useful time instead quote `(pp - 1) / m`.
pub fn bubble_fraction(spans: &[Span]) -> Option<f64> {
    let compute = || spans.iter().filter(|span| span.category.is_compute());
    let start = compute().map(|span| span.start_us).min_by(f64::total_cmp)?;
    let end = compute().map(|span| span.end_us).max_by(f64::total_cmp)?;
    let ranks: std::collections::BTreeSet<usize> = spans.iter().map(|span| span.rank).collect();
    let busy: f64 = compute().map(Span::duration_us).sum();
    let whole = (end - start) * ranks.len() as f64;
    (whole > 0.0).then(|| (1.0 - busy / whole).max(0.0))
}

/// Writes spans as a Chrome trace (JSON, "Trace Event Format"): a process for each pipeline, a thread for each of its
/// stages, a complete event for each span, in order of time.
///
/// # Errors
/// A span of a rank outside `layout`, or a file that cannot be written.
pub fn write_chrome_trace(path: impl AsRef<Path>, layout: &Layout, spans: &[Span]) -> Result<()> {
    let path = path.as_ref();
    if let Some(span) = spans.iter().find(|span| span.rank >= layout.world()) {
        return Err(Error::config(
            format!(
                "a span of rank {} in a layout of {layout}, which has ranks below {}",
                span.rank,
                layout.world()
            ),
            "give the layout that the spans were recorded in",
        ));
    }
    let mut ordered: Vec<&Span> = spans.iter().collect();
    ordered.sort_by(|a, b| (a.start_us.total_cmp(&b.start_us)).then(b.end_us.total_cmp(&a.end_us)));
    let mut ranks: Vec<usize> = spans.iter().map(|span| span.rank).collect();
    ranks.sort_unstable();
    ranks.dedup();
    let events: Vec<Value> = (ranks.into_iter())
        .flat_map(|rank| track_names(layout, rank))
        .chain(ordered.into_iter().map(|span| event(layout, span)))
        .collect();
    let trace = json!({ "traceEvents": events, "displayTimeUnit": "ms" });
    std::fs::write(path, trace.to_string()).map_err(|e| Error::io("write", path, e))
}

/// The pipeline that a rank belongs to: one for each replica and tensor-parallel index.
const fn pipeline(layout: &Layout, rank: usize) -> usize {
    let at = layout.coordinate(rank);
    at.tp + layout.tp * at.dp
}

/// The metadata events that name a rank's process and thread.
fn track_names(layout: &Layout, rank: usize) -> [Value; 2] {
    let at = layout.coordinate(rank);
    let name = |kind: &str, name: String| {
        json!({
            "ph": "M", "name": kind, "pid": pipeline(layout, rank), "tid": at.pp, "args": { "name": name }
        })
    };
    [
        name(
            "process_name",
            format!("replica {}, tensor rank {}", at.dp, at.tp),
        ),
        name("thread_name", format!("stage {} (rank {rank})", at.pp)),
    ]
}

/// A span as a complete event.
fn event(layout: &Layout, span: &Span) -> Value {
    json!({
        "ph": "X",
        "name": span.name(),
        "cat": span.category,
        "pid": pipeline(layout, span.rank),
        "tid": span.stage,
        "ts": span.start_us,
        "dur": span.duration_us(),
        "args": { "rank": span.rank, "micro_batch": span.micro_batch, "chunk": span.chunk },
    })
}
