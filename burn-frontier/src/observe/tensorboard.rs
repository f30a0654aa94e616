//! TensorBoard event files with scalars, written without TensorFlow or a protobuf compiler.
//!
//! The file is a sequence of TFRecords, each a serialised `tensorflow.Event` (`tensorflow/core/util/event.proto` and
//! `tensorflow/core/framework/summary.proto`). Only the fields used here are encoded.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::metrics::StepRecord;
use crate::error::{Error, Result};

/// Field numbers of the messages that are written.
mod field {
    /// `Event.wall_time`, double, seconds since 1970.
    pub const WALL_TIME: u64 = 1;
    /// `Event.step`, int64.
    pub const STEP: u64 = 2;
    /// `Event.file_version`, string.
    pub const FILE_VERSION: u64 = 3;
    /// `Event.summary`, message.
    pub const SUMMARY: u64 = 5;
    /// `Event.session_log`, message.
    pub const SESSION_LOG: u64 = 7;
    /// `Summary.value`, repeated message.
    pub const VALUE: u64 = 1;
    /// `Summary.Value.tag`, string.
    pub const TAG: u64 = 1;
    /// `Summary.Value.simple_value`, float.
    pub const SIMPLE_VALUE: u64 = 2;
    /// `SessionLog.status`, enum; 1 is START.
    pub const STATUS: u64 = 1;
}

/// An open event file. Every event is handed to the operating system at once, so that TensorBoard follows the run.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Starts a new event file in `folder`, which is created if missing. A run that continues after step `resumed` says
    /// so, and TensorBoard forgets what earlier files of the folder hold for later steps.
    ///
    /// # Errors
    /// The folder or the file cannot be created.
    pub fn create(folder: impl AsRef<Path>, resumed: Option<u64>) -> Result<Self> {
        let folder = folder.as_ref();
        fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        let (path, file) = new_file(folder)?;
        let mut writer = Self { path, file };
        let mut version = Message::event(0);
        version.bytes(field::FILE_VERSION, b"brain.Event:2");
        writer.write(&version)?;
        if let Some(step) = resumed {
            let mut start = Message::default();
            start.varint(field::STATUS, 1);
            let mut event = Message::event(step + 1);
            event.bytes(field::SESSION_LOG, &start.0);
            writer.write(&event)?;
        }
        Ok(writer)
    }

    /// Writes the values of one step, each under its tag; a `/` in a tag groups charts.
    ///
    /// # Errors
    /// The disk is full or gone.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        let mut summary = Message::default();
        for &(tag, value) in values {
            let mut entry = Message::default();
            entry.bytes(field::TAG, tag.as_bytes());
            entry.float(field::SIMPLE_VALUE, value as f32);
            summary.bytes(field::VALUE, &entry.0);
        }
        let mut event = Message::event(step);
        event.bytes(field::SUMMARY, &summary.0);
        self.write(&event)
    }

    /// Writes what a step record holds.
    ///
    /// # Errors
    /// The disk is full or gone.
    pub fn record(&mut self, record: &StepRecord) -> Result<()> {
        let mut values = vec![
            ("loss/train", record.loss),
            ("optimizer/gradient_norm", record.gradient_norm),
            ("optimizer/learning_rate", record.learning_rate),
            ("optimizer/skipped_steps", record.skipped as f64),
            ("speed/step_seconds", record.seconds),
            ("speed/samples_per_second", record.samples_per_second),
            ("speed/communicated_bytes", record.communicated_bytes as f64),
        ];
        let optional = [
            ("loss/validation", record.validation_loss),
            ("optimizer/loss_scale", record.loss_scale),
            ("speed/tokens_per_second", record.tokens_per_second),
            (
                "speed/tokens_per_second_per_rank",
                record.tokens_per_second_per_rank,
            ),
            ("speed/mfu", record.mfu),
            ("speed/hfu", record.hfu),
            (
                "memory/peak_bytes",
                record.peak_memory_bytes.map(|bytes| bytes as f64),
            ),
        ];
        values.extend(optional.iter().filter_map(|&(tag, v)| Some((tag, v?))));
        self.scalars(record.step, &values)
    }

    fn write(&mut self, event: &Message) -> Result<()> {
        self.file
            .write_all(&frame(&event.0))
            .and_then(|()| self.file.flush())
            .map_err(|e| Error::io("append to", &self.path, e))
    }
}

fn since_1970() -> Duration {
    // A clock before 1970 is as good as 1970 for a chart's axis.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// A file with a name that TensorBoard recognises and that sorts after those of earlier runs.
fn new_file(folder: &Path) -> Result<(PathBuf, File)> {
    let (seconds, process) = (since_1970().as_secs(), std::process::id());
    let mut attempt = 0_u32;
    loop {
        let name = format!("events.out.tfevents.{seconds:010}.burn-frontier.{process}.{attempt}");
        let path = folder.join(name);
        match OpenOptions::new().append(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => attempt += 1,
            Err(e) => return Err(Error::io("create", &path, e)),
        }
    }
}

/// A TFRecord: length, checksum of the length, data, checksum of the data, all little-endian.
fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend_from_slice(&length);
    record.extend_from_slice(&masked_crc(&length).to_le_bytes());
    record.extend_from_slice(data);
    record.extend_from_slice(&masked_crc(data).to_le_bytes());
    record
}

/// TFRecord's checksum: CRC-32C, rotated and shifted so that a checksum of data with checksums inside stays good.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

/// A protobuf message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    /// An `Event` of now.
    fn event(step: u64) -> Self {
        let mut event = Self::default();
        event.tag(field::WALL_TIME, 1);
        let now = since_1970().as_secs_f64();
        event.0.extend_from_slice(&now.to_le_bytes());
        event.varint(field::STEP, step);
        event
    }

    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// Field number and wire type: 0 varint, 1 eight bytes, 2 counted bytes, 5 four bytes.
    fn tag(&mut self, field: u64, wire: u64) {
        self.raw_varint(field << 3 | wire);
    }

    fn varint(&mut self, field: u64, value: u64) {
        self.tag(field, 0);
        self.raw_varint(value);
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.tag(field, 2);
        self.raw_varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.tag(field, 5);
        self.0.extend_from_slice(&value.to_le_bytes());
    }
}
