//! The planner: accuracy on published runs, agreement with the simulator and the model's parameters, and what no plan may say.

#[path = "plan/agreement.rs"]
mod agreement;
#[path = "plan/fit.rs"]
mod fit;
#[path = "plan/frontier.rs"]
mod frontier;
#[path = "plan/outline.rs"]
mod outline;
#[path = "plan/properties.rs"]
mod properties;
#[path = "plan/replay.rs"]
mod replay;
#[path = "plan/report.rs"]
mod report;
#[path = "plan/search.rs"]
mod search;
#[path = "plan/what_if.rs"]
mod what_if;
#[path = "plan/zero_bubble.rs"]
mod zero_bubble;

use burn_frontier::Layout;
use burn_frontier::models::gpt::GptConfig;
use burn_frontier::plan::Job;

/// A published kind of job: GPT with dropout, fp16, ZeRO 1, full recompute, reduction after the backward pass.
pub fn job(
    shape: (usize, usize, usize),
    layout: (usize, usize, usize),
    batch: (u64, u64),
) -> Job<GptConfig> {
    let (layers, hidden, heads) = shape;
    let (tp, pp, dp) = layout;
    let model = GptConfig::new(layers, hidden, heads, 50257, 2048).with_dropout(0.1);
    let (global_batch, micro_batch) = batch;
    Job {
        global_batch,
        micro_batch,
        overlap: false,
        ..Job::new(model, Layout { tp, pp, dp })
    }
}
