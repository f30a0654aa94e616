//! What a checkpoint says beside its tensors, and whether a run may go on from it.

use anyhow::{Context, Result, bail};
use burn_frontier::Error;
use burn_frontier::checkpoint::Checkpoint;
use burn_frontier::data::Tokenizer;
use burn_frontier::models::gpt::GptConfig;
use burn_frontier::optim::scaler::LossScaler;
use burn_frontier::optim::schedule::LearningRate;
use burn_frontier::train::Progress;
use serde::{Deserialize, Serialize};

use crate::Job;
use crate::corpus::Corpus;
use crate::options::Options;
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
    /// Checkpoints of earlier versions do not have it.
    #[serde(default)]
    pub update: Option<Update>,
}

/// How a step changes the parameters. It belongs to the run, so a resumed one keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Update {
    pub rate: LearningRate,
    pub weight_decay: f64,
    pub clip: Option<f64>,
}

impl Update {
    fn of(settings: &Settings) -> Self {
        Self {
            rate: settings.rate,
            weight_decay: settings.weight_decay,
            clip: settings.clip,
        }
    }
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
    } else if saved.precision != format!("{:?}", settings.precision.dtype()) {
        "--precision"
    } else if saved.seed != settings.seed {
        "--seed"
    } else if saved.global_batch != settings.global_batch {
        "--global-batch"
    } else {
        return Ok(());
    };
    bail!(
        "{differs} is not that of {}; leave it as it was, or start a new run without --resume",
        checkpoint.path().display()
    )
}

/// Makes the settings those of the run that `checkpoint` is of, but for what the flags change from here on. Gives the
/// changes in words.
pub fn carry_on(
    checkpoint: &Checkpoint,
    options: &Options,
    settings: &mut Settings,
) -> Result<Vec<String>> {
    let saved: Saved = checkpoint.state()?;
    let mut changes = Vec::new();
    let before = match saved.update {
        Some(update) => update,
        None => {
            changes.push("the checkpoint does not hold the learning rate's schedule: it is that of the flags in config.toml".into());
            let run = Options::of_run(&settings.out)?.settings();
            Update::of(&run.context("the flags of the run before")?)
        }
    };
    let (mut now, asked) = (before, Update::of(settings));
    if options.learning_rate.is_some() && asked.rate.peak != before.rate.peak {
        now.rate.minimum *= asked.rate.peak / before.rate.peak;
        now.rate.peak = asked.rate.peak;
    }
    if options.decay.is_some() {
        now.rate.decay = asked.rate.decay;
    }
    if options.decay_steps.is_some() {
        now.rate.total = asked.rate.total;
    }
    if options.weight_decay.is_some() {
        now.weight_decay = asked.weight_decay;
    }
    if options.clip.is_some() {
        now.clip = asked.clip;
    }
    let next = checkpoint.step() + 1;
    if now.rate != before.rate {
        changes.push(format!(
            "step {next} has learning rate {:.2e} instead of {:.2e}: the schedule is another one from here on (peak {:.2e}, {} over {} steps)",
            now.rate.at(next),
            before.rate.at(next),
            now.rate.peak,
            format!("{:?}", now.rate.decay).to_lowercase(),
            now.rate.total
        ));
    }
    if now.weight_decay != before.weight_decay {
        changes.push(format!(
            "weight decay is {} instead of {} from step {next} on",
            now.weight_decay, before.weight_decay
        ));
    }
    if now.clip != before.clip {
        let [now, before] = [now.clip, before.clip].map(|clip| clip.unwrap_or(0.0));
        changes.push(format!(
            "gradients are clipped to {now} instead of {before} from step {next} on (0: not)"
        ));
    }
    (settings.rate, settings.weight_decay, settings.clip) = (now.rate, now.weight_decay, now.clip);
    // What is done is not undone by a smaller --steps.
    settings.steps = settings.steps.max(checkpoint.step());
    Ok(changes)
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
    bail!(
        "the text has changed since {}: {what}; put it back as it was, or start a new run without --resume",
        checkpoint.path().display()
    )
}

impl Saved {
    /// How far the run had come at `step`.
    pub fn progress(&self, step: u64) -> Progress {
        Progress {
            steps: step,
            seed: self.seed,
            updates: vec![self.optimizer_steps],
            scaler: self.scaler,
        }
    }
}

pub fn state(job: &Job, progress: &Progress) -> burn_frontier::Result<serde_json::Value> {
    let saved = Saved {
        model: job.model.clone(),
        sequence: Some(job.sequence),
        tokenizer: job.tokenizer.fingerprint().to_string(),
        tokens: job.corpus.tokens,
        text: Some(job.corpus.fingerprint.clone()),
        precision: format!("{:?}", job.settings.precision.dtype()),
        seed: job.settings.seed,
        samples: progress.steps * job.settings.global_batch,
        optimizer_steps: progress.updates.iter().sum(),
        global_batch: job.settings.global_batch,
        scaler: progress.scaler,
        update: Some(Update::of(&job.settings)),
    };
    serde_json::to_value(saved).map_err(|e| Error::Internal(e.to_string()))
}

#[cfg(test)]
mod tests {
    use burn_frontier::data::{Dataset, SamplerConfig};
    use burn_frontier::{checkpoint, comm::local};

    use super::*;

    fn corpus(tokens: &[u32]) -> Corpus {
        let dataset = Dataset::from_documents([Ok(tokens.to_vec())]).unwrap();
        let config = SamplerConfig {
            sequence: 2,
            vocabulary: 9,
            seed: 1,
        };
        Corpus {
            train: config.init(&dataset).unwrap(),
            validation: config.init(&dataset).unwrap(),
            unigram: 1.0,
            tokens: dataset.tokens(),
            fingerprint: dataset.fingerprint(),
            summary: String::new(),
        }
    }

    #[test]
    fn text_that_has_changed_since_the_checkpoint_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = checkpoint::save(
            folder.path(),
            1,
            &serde_json::Value::Null,
            [],
            &*local::single(),
            0,
        )
        .unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let before = corpus(&[1, 2, 3, 4]);
        let mut saved = Saved {
            model: GptConfig::new(1, 8, 1, 9, 2),
            sequence: None,
            tokenizer: String::new(),
            tokens: before.tokens,
            text: Some(before.fingerprint.clone()),
            precision: String::new(),
            seed: 1,
            samples: 1,
            optimizer_steps: 1,
            global_batch: 1,
            update: None,
            scaler: LossScaler::off(),
        };
        let noticed = |saved: &Saved, tokens: &[u32]| {
            same_text(saved, &checkpoint, &corpus(tokens)).map_err(|e| e.to_string())
        };
        noticed(&saved, &[1, 2, 3, 4]).unwrap();
        let longer = noticed(&saved, &[1, 2, 3, 4, 5]).unwrap_err();
        assert!(
            longer.contains("5 tokens to learn where it had 4"),
            "{longer}"
        );
        let other = noticed(&saved, &[1, 2, 3, 5]).unwrap_err();
        assert!(other.contains("but other ones"), "{other}");
        // Checkpoints of earlier versions know the number only.
        saved.text = None;
        noticed(&saved, &[1, 2, 3, 5]).unwrap();
    }
}
