//! One record a step, and the file that keeps them: `metrics.jsonl`, one JSON object a line.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Error, Result};

/// What one optimizer step did.
///
/// JSON has no NaN and no infinity: they are written as `null`, and a `null` loss or norm is read as NaN.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Number of the step, counted from 1 across resumed runs.
    pub step: u64,
    /// Samples consumed by all replicas since the start.
    pub samples: u64,
    /// Target tokens consumed by all replicas since the start, where samples have tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Mean training loss of the step, in nats where it is a cross entropy.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// Global L2 norm of the gradient before clipping.
    #[serde(deserialize_with = "null_is_nan")]
    pub gradient_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Steps skipped since the start because a gradient overflowed, this one included.
    pub skipped: u64,
    /// Wall-clock seconds of the step.
    pub seconds: f64,
    /// Samples per second of the whole job. Records of older versions lack it, which is read as NaN.
    #[serde(default = "unknown", deserialize_with = "null_is_nan")]
    pub samples_per_second: f64,
    /// Tokens per second of the whole job, where samples have tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
    /// Tokens per second of one rank, where samples have tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_second_per_rank: Option<f64>,
    /// Model FLOPs utilization, `0..=1`; see [`flops`](super::flops). None when the peak is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mfu: Option<f64>,
    /// Hardware FLOPs utilization, `0..=1`; see [`flops`](super::flops). None when the peak is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hfu: Option<f64>,
    /// Most memory that the run has held so far, in bytes, where it is known: on the processor what the process had
    /// resident ([`peak_resident_bytes`](crate::device::memory::peak_resident_bytes)); on GPUs what the allocator of the fullest one had reserved after a step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
    /// Bytes that this rank passed to its communicators in this step.
    pub communicated_bytes: u64,
    /// Dynamic loss scale, with fp16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f64>,
    /// Mean loss on held-out data after this step, when it was evaluated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
}

fn unknown() -> f64 {
    f64::NAN
}

fn null_is_nan<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

/// An open `metrics.jsonl`. Every appended line is handed to the operating system before `append` returns, so that a
/// reader follows the run and a killed process loses nothing.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Starts an empty file, replacing the one of an earlier run.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let file = File::create(&path).map_err(|e| Error::io("create", &path, e))?;
        Ok(Self { path, file })
    }

    /// Continues the file of a run that was resumed from a checkpoint of `step`: drops the records of later steps, which
    /// will be done again, and a line that was torn when the run was killed. A missing file is started.
    ///
    /// The shorter file is written beside the old one and renamed over it: a kill at any moment leaves one of them whole.
    ///
    /// # Errors
    /// The file cannot be read or written, or a line other than the last is no record.
    pub fn resume(path: impl AsRef<Path>, step: u64) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let mut kept = Vec::new();
        if path.exists() {
            for (line, record) in read_lines::<StepOnly>(&path)? {
                if record.step <= step {
                    kept.extend_from_slice(&line);
                    kept.push(b'\n');
                }
            }
        }
        replace(&path, &kept)?;
        let file = OpenOptions::new()
            .append(true)
            .open(&path)
            .map_err(|e| Error::io("open", &path, e))?;
        Ok(Self { path, file })
    }

    /// Appends one line.
    ///
    /// # Errors
    /// The disk is full or gone.
    pub fn append(&mut self, record: &StepRecord) -> Result<()> {
        let mut line = serde_json::to_vec(record)
            .map_err(|e| Error::Internal(format!("a step record is no JSON: {e}")))?;
        line.push(b'\n');
        self.file
            .write_all(&line)
            .and_then(|()| self.file.flush())
            .map_err(|e| Error::io("append to", &self.path, e))
    }
}

/// All records of a `metrics.jsonl`, in file order. A last line that was torn by a kill is left out.
///
/// # Errors
/// The file cannot be read, or a line other than the last is no record.
pub fn read_metrics(path: impl AsRef<Path>) -> Result<Vec<StepRecord>> {
    let lines = read_lines(path.as_ref())?;
    Ok(lines.into_iter().map(|(_, record)| record).collect())
}

/// The part of a record that [`MetricsLog::resume`] needs, so that it keeps lines of other versions as they are.
#[derive(Deserialize)]
struct StepOnly {
    step: u64,
}

/// The file's lines as they are, each with what it says.
fn read_lines<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Vec<(Vec<u8>, T)>> {
    let bytes = fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let mut lines = Vec::new();
    for (number, line) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
        let torn = !line.ends_with(b"\n");
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        match serde_json::from_slice(line) {
            Ok(record) => lines.push((line.to_vec(), record)),
            Err(_) if torn => {}
            Err(e) => {
                return Err(Error::format(
                    path,
                    format!("line {} should be a step record, but {e}", number + 1),
                    "remove that line, or move the file away to start a new one",
                ));
            }
        }
    }
    Ok(lines)
}

/// Replaces a file's content so that a kill leaves either the old or the new content.
fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    let partial = PathBuf::from(name);
    let mut file = File::create(&partial).map_err(|e| Error::io("create", &partial, e))?;
    file.write_all(content)
        .and_then(|()| file.sync_all())
        .map_err(|e| Error::io("write", &partial, e))?;
    fs::rename(&partial, path).map_err(|e| Error::io("rename", &partial, e))
}
