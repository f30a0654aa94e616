//! The flags of gpt_1t.

use burn_frontier::plan::Job;

/// The switches of a job as flags of gpt_1t.
pub fn flags<M>(job: &Job<M>) -> String {
    let layout = job.layout;
    let mut text = format!(
        "--tp {} --pp {} --dp {} --micro-batch {} --schedule {} --zero {} --recompute {}",
        layout.tp, layout.pp, layout.dp, job.micro_batch, job.schedule, job.zero, job.recompute
    );
    if job.sequence_parallel {
        text += " --sequence-parallel";
    }
    text
}
