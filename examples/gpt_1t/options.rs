//! The command line and the configuration file.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn_frontier::models::gpt::GptConfig;
use burn_frontier::optim::schedule::Decay;
use burn_frontier::pipeline::schedule::Kind;
use burn_frontier::utf8;
use burn_frontier::{Precision, Recompute};
use clap::{Parser, ValueEnum};
use serde::de::{DeserializeOwned, IntoDeserializer, value};
use serde::{Deserialize, Serialize};

/// What 0 means, for every flag, and how a run ends.
const AFTER_HELP: &str = "\
0 is a value where a flag says what it stands for (none, never, all), and for --seed; every other number is above 0. The
same holds in the file of --config.

Exit codes:
  0        all is done
  1        an error; earlier checkpoints are whole
  2        a flag that is not understood
  3        trained and saved, but a part of what comes behind (sample, plots, export) is missing; --resume makes it
  128 + N  ended by signal N behind a checkpoint: 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP

SIGUSR1 shows what the ranks did last; RUST_LOG=debug shows more of what the library says.";

/// Trains a GPT on text, split over tensor-parallel, pipeline and data-parallel ranks (threads of this process), and shows
/// what it does. With no argument: a small model on the Rust sources and documents of this machine, in a few minutes.
///
/// Every layout gives the loss curve of one rank; try --tp 1 --pp 1 and compare.
#[derive(Debug, Clone, Default, Parser, Serialize, Deserialize)]
#[command(name = "gpt_1t", version, after_help = AFTER_HELP)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Options {
    /// Model: tiny, gpt2-124m, 22b, 175b or 1t [default: tiny]
    #[arg(long, help_heading = "Model and data")]
    pub model: Option<String>,
    /// Text to learn: a file or folder (text, JSONL), or the prefix of a Megatron PREFIX.bin/.idx pair [default: text found here]
    #[arg(long, value_name = "PATH", help_heading = "Model and data")]
    pub data: Option<PathBuf>,
    /// With --data: the field of a JSONL line that holds the text [default: text]
    #[arg(long, value_name = "NAME", help_heading = "Model and data")]
    pub key: Option<String>,
    /// A Hugging Face tokenizer.json [default: bytes]
    #[arg(long, value_name = "FILE", help_heading = "Model and data")]
    pub tokenizer: Option<PathBuf>,
    /// Layers [default: the model's]
    #[arg(long, value_name = "N", help_heading = "Model and data")]
    pub layers: Option<usize>,
    /// Width of the residual stream; the feed-forward block is four times as wide [default: the model's]
    #[arg(long, value_name = "N", help_heading = "Model and data")]
    pub hidden: Option<usize>,
    /// Attention heads [default: the model's]
    #[arg(long, value_name = "N", help_heading = "Model and data")]
    pub heads: Option<usize>,
    /// With --plan: tokens of the vocabulary [default: the tokenizer's, or 50257]
    #[arg(
        long,
        value_name = "N",
        requires = "plan",
        help_heading = "Model and data"
    )]
    pub vocabulary: Option<usize>,
    /// Tokens a sample; with --import at most the file's positions [default: the model's]
    #[arg(long, value_name = "N", help_heading = "Model and data")]
    pub sequence: Option<usize>,
    /// Probability of dropout; 0 for none [default: 0, or the file's with --import]
    #[arg(
        long,
        value_name = "P",
        allow_negative_numbers = true,
        help_heading = "Model and data"
    )]
    pub dropout: Option<f64>,
    /// Form of the model: gpt2 (learned positions, GELU, layer norm, tied head) or llama (rotary, SwiGLU, RMS norm, untied head, no biases) [default: gpt2]
    #[arg(long, hide_possible_values = true, help_heading = "Model and data")]
    pub form: Option<Form>,
    /// Key and value heads, fewer than the heads for grouped-query attention [default: the heads]
    #[arg(long, value_name = "N", help_heading = "Model and data")]
    pub kv_heads: Option<usize>,
    /// Start from a Hugging Face GPT-2 (a folder or a .safetensors file): the model, and a tokenizer.json beside it, are the file's
    #[arg(long, value_name = "PATH", help_heading = "Model and data")]
    pub import: Option<PathBuf>,
    /// Write the trained model as a Hugging Face GPT-2 folder; overwrites nothing
    #[arg(long, value_name = "FOLDER", help_heading = "Model and data")]
    pub export: Option<PathBuf>,

    /// Tensor-parallel ranks: each layer is split over so many [default: 2]
    #[arg(long, value_name = "N", help_heading = "Layout")]
    pub tp: Option<usize>,
    /// Pipeline stages: the layers are split over so many [default: 2]
    #[arg(long, value_name = "N", help_heading = "Layout")]
    pub pp: Option<usize>,
    /// Data-parallel replicas: the batch is split over so many [default: 1]
    #[arg(long, value_name = "N", help_heading = "Layout")]
    pub dp: Option<usize>,
    /// ZeRO stage: 0 (every replica keeps the optimiser's state) or 1 (it is split over the replicas) [default: 1]
    #[arg(long, value_name = "STAGE", help_heading = "Layout")]
    pub zero: Option<u8>,
    /// Split activations along the sequence between tensor-parallel regions
    #[arg(long, help_heading = "Layout")]
    pub sequence_parallel: bool,
    /// Pipeline schedule: 1f1b, gpipe, interleaved (two chunks a stage) or interleaved:N [default: 1f1b]
    #[arg(long, help_heading = "Layout")]
    pub schedule: Option<Kind>,
    /// Activations computed again instead of kept: none, selective (attention) or full (every layer) [default: none]
    #[arg(long, help_heading = "Layout")]
    pub recompute: Option<Recompute>,
    /// Reduce gradients only after the backward pass instead of beside it
    #[arg(long, help_heading = "Layout")]
    pub no_overlap: bool,

    /// Say what the job needs and how fast it is, without running it; writes plan.html and plan.json
    #[arg(long, help_heading = "Plan")]
    #[serde(skip)]
    pub plan: bool,
    /// Machine to plan for: frontier, h200, a100, a100-ib4, a100-ib8, laptop, or a file that `cargo xtask measure` wrote [default: laptop]
    #[arg(long, value_name = "NAME", requires = "plan", help_heading = "Plan")]
    #[serde(skip)]
    pub machine: Option<String>,
    /// Nodes to plan for; what is not given of layout, batch and switches is searched
    #[arg(long, value_name = "N", requires = "plan", help_heading = "Plan")]
    #[serde(skip)]
    pub nodes: Option<usize>,
    /// Also say what context parallelism, ZeRO 2 and 3 and zero-bubble schedules would bring: not in this runtime yet
    #[arg(long, requires = "plan", help_heading = "Plan")]
    #[serde(skip)]
    pub what_if: bool,
    /// Time one real tensor-parallel slice of a layer on --device, and plan from it
    #[arg(long, requires = "plan", help_heading = "Plan")]
    #[serde(skip)]
    pub shard_bench: bool,

    /// Samples that go through the pipeline together [default: 4]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub micro_batch: Option<u64>,
    /// Samples a step, over all replicas [default: 8]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub global_batch: Option<u64>,
    /// Optimiser steps, those before a --resume included [default: 2400]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub steps: Option<u64>,
    /// Highest learning rate; with --resume, what remains of the schedule is scaled to it [default: 0.003]
    #[arg(
        long,
        value_name = "RATE",
        allow_negative_numbers = true,
        help_heading = "Training"
    )]
    pub learning_rate: Option<f64>,
    /// Fall of the learning rate: cosine, linear or wsd [default: cosine]
    #[arg(long, value_parser = named::<Decay>, help_heading = "Training")]
    pub decay: Option<Decay>,
    /// Steps over which the learning rate rises and falls; with --resume, stretches the schedule [default: --steps, or as before a --resume]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub decay_steps: Option<u64>,
    /// Weight decay of matrices and embeddings; 0 for none [default: 0.1]
    #[arg(
        long,
        value_name = "RATE",
        allow_negative_numbers = true,
        help_heading = "Training"
    )]
    pub weight_decay: Option<f64>,
    /// Gradients are scaled down to this global norm; 0 for no clipping [default: 1]
    #[arg(
        long,
        value_name = "NORM",
        allow_negative_numbers = true,
        help_heading = "Training"
    )]
    pub clip: Option<f64>,
    /// Parameters and activations: fp32, or bf16 or fp16 (with a dynamic loss scale) and fp32 master weights [default: fp32]
    #[arg(long, help_heading = "Training")]
    pub precision: Option<Precision>,
    /// Seed of the first weights, the sample order and dropout [default: 1]
    #[arg(long, help_heading = "Training")]
    pub seed: Option<u64>,

    /// Continue from the newest whole checkpoint in --out
    #[arg(long, help_heading = "Run")]
    pub resume: bool,
    /// Folder for everything the run writes [default: runs/gpt_1t]
    #[arg(long, value_name = "FOLDER", help_heading = "Run")]
    pub out: Option<PathBuf>,
    /// Steps between checkpoints; 0 for the last step's only [default: 200]
    #[arg(long, value_name = "N", help_heading = "Run")]
    pub save_every: Option<u64>,
    /// Checkpoints kept; 0 for all [default: 2]
    #[arg(long, value_name = "N", help_heading = "Run")]
    pub keep: Option<usize>,
    /// Steps between validations; 0 for the last step's only [default: 100]
    #[arg(long, value_name = "N", help_heading = "Run")]
    pub validate_every: Option<u64>,
    /// Peak of one rank's processor in TFLOP/s, to show MFU and HFU
    #[arg(
        long,
        value_name = "TFLOPS",
        allow_negative_numbers = true,
        help_heading = "Run"
    )]
    pub peak: Option<f64>,
    /// Device: auto, cpu, wgpu, cuda or rocm; cuda:1 is one GPU of several [default: auto]
    #[arg(long, help_heading = "Run")]
    pub device: Option<String>,
    /// Time the plans of a GPU's kernels, and keep the fastest of each shape in this folder; no result changes [default: off]
    #[arg(long, value_name = "FOLDER", help_heading = "Run")]
    pub autotune: Option<PathBuf>,
    /// Fail where this library's kernels refuse what a GPU is to compute; else Burn's own compute it, after a warning
    #[arg(long, help_heading = "Run")]
    pub require_kernels: bool,
    /// Seconds after which a rank that waits for another gives up; 0 for never [default: 600]
    #[arg(long, value_name = "SECONDS", help_heading = "Run")]
    pub timeout: Option<u64>,
    /// A TOML file with the same names as these flags; flags win
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
}

/// Form of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    Gpt2,
    Llama,
}

/// The value that has this name in files.
fn named<T: DeserializeOwned>(name: &str) -> Result<T, value::Error> {
    T::deserialize(name.into_deserializer())
}

impl Options {
    /// Reads the command line, and the configuration file behind it: --config, or the one of the run that --resume continues.
    pub fn read() -> Result<Self> {
        let line = Self::parse();
        if line.resume && line.import.is_some() {
            bail!("--import begins a run, and --resume goes on with one; leave one of them out");
        }
        let before = line.out().join("config.toml");
        let path = match &line.config {
            Some(path) => path.clone(),
            None if line.resume && before.exists() => before,
            None => return Ok(line),
        };
        let text = utf8::read(&path).context("the configuration")?;
        let mut merged: toml::Table = toml::from_str(&text)
            .with_context(|| format!("{} is not a configuration", path.display()))?;
        for (name, value) in toml::Table::try_from(&line)? {
            // A switch that is off was not given.
            if value != toml::Value::Boolean(false) {
                merged.insert(name, value);
            }
        }
        if line.resume {
            merged.remove("import"); // What is imported is in the checkpoint.
        }
        let merged: Self = merged.try_into().with_context(|| {
            format!(
                "{} is not a configuration of gpt_1t (see --help)",
                path.display()
            )
        })?;
        // A configuration holds a run, not a question about it.
        Ok(Self {
            plan: line.plan,
            machine: line.machine,
            nodes: line.nodes,
            what_if: line.what_if,
            shard_bench: line.shard_bench,
            config: line.config,
            ..merged
        })
    }

    /// The flags of the run in a folder, as it was last started.
    pub fn of_run(out: &Path) -> Result<Self> {
        let path = out.join("config.toml");
        let text = utf8::read(&path).context("the configuration")?;
        toml::from_str(&text).with_context(|| format!("{} is not a configuration", path.display()))
    }

    /// Refuses numbers with which nothing can be computed.
    pub fn check_numbers(&self) -> Result<()> {
        let positive = |x: f64| x > 0.0;
        let not_negative = |x: f64| x >= 0.0;
        type Check<'a> = (&'a str, Option<f64>, fn(f64) -> bool, &'a str);
        let checks: [Check<'_>; 5] = [
            (
                "--learning-rate",
                self.learning_rate,
                positive,
                "a positive number such as 0.001, or leave it out",
            ),
            (
                "--weight-decay",
                self.weight_decay,
                not_negative,
                "0 or a positive number such as 0.1",
            ),
            (
                "--clip",
                self.clip,
                not_negative,
                "0 for no clipping, or a positive number such as 1",
            ),
            (
                "--dropout",
                self.dropout,
                |x| (0.0..1.0).contains(&x),
                "0 or a number below 1 such as 0.1",
            ),
            (
                "--peak",
                self.peak,
                positive,
                "the processor's TFLOP/s, or leave it out",
            ),
        ];
        for (flag, value, allowed, remedy) in checks {
            if let Some(value) = value.filter(|&value| !(value.is_finite() && allowed(value))) {
                bail!("{flag} {value} cannot work; use {remedy}");
            }
        }
        self.refuse_zeros()
    }

    /// Refuses 0 where it is neither "none" nor "never": the rule that --help states.
    fn refuse_zeros(&self) -> Result<()> {
        let counts = [
            ("layers", self.layers),
            ("hidden", self.hidden),
            ("heads", self.heads),
            ("kv-heads", self.kv_heads),
            ("vocabulary", self.vocabulary),
            ("sequence", self.sequence),
            ("tp", self.tp),
            ("pp", self.pp),
            ("dp", self.dp),
            ("nodes", self.nodes),
        ];
        let amounts = [
            ("micro-batch", self.micro_batch),
            ("global-batch", self.global_batch),
            ("steps", self.steps),
            ("decay-steps", self.decay_steps),
        ];
        let counts = counts.map(|(name, n)| (name, n == Some(0)));
        let amounts = amounts.map(|(name, n)| (name, n == Some(0)));
        if let Some((name, _)) = counts.iter().chain(&amounts).find(|(_, zero)| *zero) {
            bail!("--{name} 0 leaves nothing to do; use at least 1, or leave it out");
        }
        Ok(())
    }

    /// Folder of the run.
    pub fn out(&self) -> PathBuf {
        self.out
            .clone()
            .unwrap_or_else(|| PathBuf::from("runs/gpt_1t"))
    }

    /// The model, for a tokenizer of so many tokens.
    pub fn model(&self, vocabulary: Option<usize>) -> Result<GptConfig> {
        let preset = GptConfig::preset(self.model.as_deref().unwrap_or("tiny"), vocabulary)?;
        let mut config = GptConfig::new(
            self.layers.unwrap_or(preset.layers),
            self.hidden.unwrap_or(preset.hidden),
            self.heads.unwrap_or(preset.heads),
            self.vocabulary.unwrap_or(preset.vocabulary),
            self.sequence.unwrap_or(preset.sequence),
        );
        config.dropout = self.dropout.unwrap_or(0.0);
        config = match self.form.unwrap_or(Form::Gpt2) {
            Form::Gpt2 => config,
            Form::Llama => config.modern(),
        };
        if let Some(kv_heads) = self.kv_heads {
            config = config.with_kv_heads(kv_heads);
        }
        Ok(config)
    }
}
