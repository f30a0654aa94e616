//! Steps on demand, for benches/step_vs_torch.py, which does each in turn with its own.

use std::io::{BufRead, stdin};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use burn_frontier::checkpoint::Checkpoint;
use burn_frontier::comm::Communicator;
use burn_frontier::models::gpt::GptConfig;
use burn_frontier::models::gpt::names;
use burn_frontier::{Error, Result};

use super::{Options, Stack, batch};

/// Writes the first weights below `folder` as Hugging Face's GPT-2 and says so; then does a step for each line that comes, and
/// answers with its seconds and its loss.
pub fn answer(
    options: &Options,
    config: &GptConfig,
    folder: &Path,
    world: Arc<dyn Communicator>,
) -> Result<()> {
    let batch = batch(config, options.batch)?;
    let mut stack = Stack::new(config, options, world)?;
    let saved = stack.state.save(&folder.join("checkpoints"), 1)?;
    names::export(&Checkpoint::open(&saved)?, config, &folder.join("model"))?;
    say!("ready");
    for line in stdin().lock().lines() {
        line.map_err(|e| Error::io("read", "standard input", e))?;
        let times = stack.step(&batch)?;
        let time: Duration = times.iter().map(|(_, time)| *time).sum();
        say!("{} {}", time.as_secs_f64(), stack.loss);
    }
    Ok(())
}
