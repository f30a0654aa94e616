//! What a checkpoint says beside its tensors, and whether a run may go on from it.

use anyhow::Result;
use burn_frontier::Error;
use burn_frontier::checkpoint::Checkpoint;
use burn_frontier::data::Tokenizer;
use burn_frontier::models::gpt::GptConfig;
use burn_frontier::optim::scaler::LossScaler;
use serde::{Deserialize, Serialize};

use crate::Job;
use crate::corpus::Corpus;
use crate::settings::Settings;

/// What a checkpoint says beside its tensors.
#[derive(Debug, Serialize, Deserialize)]
pub struct Saved {
    pub model: GptConfig,
    /// Tokens a sample; checkpoints of earlier versions, in which they were the model's positions, do not have it.
    #[serde(default)]
    pub sequence: Option<usize>,
    pub tokenizer: String,
    pub tokens: u64,
    /// Fingerprint of the tokens; none in checkpoints from before there was one.
    #[serde(default)]
    pub text: Option<String>,
    pub precision: String,
    pub seed: u64,
    pub samples: u64,
    pub optimizer_steps: u64,
    pub global_batch: u64,
    pub scaler: LossScaler,
}

/// Refuses to continue a run as another one: the samples would no longer be those that follow.
pub fn same_run(
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
    corpus: &Corpus,
    settings: &Settings,
) -> Result<()> {
    let saved: Saved = checkpoint.state()?;
    same_text(&saved, checkpoint, corpus)?;
    let differs = if saved.tokenizer != tokenizer.fingerprint() {
        "the tokenizer"
    } else if saved.precision != format!("{:?}", settings.dtype) {
        "--precision"
    } else if saved.seed != settings.seed {
        "--seed"
    } else if saved.global_batch != settings.global_batch {
        "--global-batch"
    } else if checkpoint.step() >= settings.steps {
        anyhow::bail!(
            "the run in {} has done its {} steps already; use a larger --steps to train on",
            settings.out.display(),
            checkpoint.step()
        );
    } else {
        return Ok(());
    };
    anyhow::bail!(
        "{differs} is not that of {}; leave it as it was, or start a new run without --resume",
        checkpoint.path().display()
    )
}

/// Refuses text that has changed since: a token too many moves all samples, and other tokens are another run.
fn same_text(saved: &Saved, checkpoint: &Checkpoint, corpus: &Corpus) -> Result<()> {
    let what = match &saved.text {
        _ if saved.tokens != corpus.tokens => format!(
            "{} tokens to learn where it had {}",
            corpus.tokens, saved.tokens
        ),
        Some(text) if *text != corpus.fingerprint => "as many tokens, but other ones".into(),
        Some(_) => return Ok(()),
        None => {
            tracing::warn!(
                "{} does not say which text it learned, only how many tokens: it is taken to be the same",
                checkpoint.path().display()
            );
            return Ok(());
        }
    };
    anyhow::bail!(
        "the text has changed since {}: {what}; put it back as it was, or start a new run without --resume",
        checkpoint.path().display()
    )
}

pub fn state(
    job: &Job,
    step: u64,
    optimizer_steps: u64,
    scaler: LossScaler,
) -> burn_frontier::Result<serde_json::Value> {
    let saved = Saved {
        model: job.model.clone(),
        sequence: Some(job.sequence),
        tokenizer: job.tokenizer.fingerprint().to_string(),
        tokens: job.corpus.tokens,
        text: Some(job.corpus.fingerprint.clone()),
        precision: format!("{:?}", job.settings.dtype),
        seed: job.settings.seed,
        samples: step * job.settings.global_batch,
        optimizer_steps,
        global_batch: job.settings.global_batch,
        scaler,
    };
    serde_json::to_value(saved).map_err(|e| Error::Internal(e.to_string()))
}
