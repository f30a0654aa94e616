//! Event files, decoded here without the code under test.

use std::fs;
use std::path::{Path, PathBuf};

use burn_frontier::observe::tensorboard::EventWriter;

use crate::record;

/// Bit-by-bit CRC-32C, masked: the definition, not the crate under test.
fn masked_crc(data: &[u8]) -> u32 {
    let mut crc = !0_u32;
    for &byte in data {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    (!crc).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The events of a file, after checking both checksums of each.
fn events(path: &Path) -> Vec<Vec<u8>> {
    let bytes = fs::read(path).unwrap();
    let (mut rest, mut events) = (bytes.as_slice(), Vec::new());
    let word = |at: &[u8]| u32::from_le_bytes(at[..4].try_into().unwrap());
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        assert_eq!(
            word(&rest[8..]),
            masked_crc(&rest[..8]),
            "checksum of a length"
        );
        let data = &rest[12..12 + length];
        assert_eq!(
            word(&rest[12 + length..]),
            masked_crc(data),
            "checksum of data"
        );
        events.push(data.to_vec());
        rest = &rest[16 + length..];
    }
    events
}

/// A message's fields: number and raw content (varints as eight bytes).
fn fields(mut message: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(message: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = message[0];
            *message = &message[1..];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    }
    let mut found = Vec::new();
    while !message.is_empty() {
        let tag = varint(&mut message);
        let length = match tag & 7 {
            0 => {
                found.push((tag >> 3, varint(&mut message).to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            2 => varint(&mut message) as usize,
            5 => 4,
            other => panic!("wire type {other}"),
        };
        found.push((tag >> 3, message[..length].to_vec()));
        message = &message[length..];
    }
    found
}

/// The only field of a number.
fn field(message: &[u8], number: u64) -> Option<Vec<u8>> {
    let found: Vec<_> = fields(message)
        .into_iter()
        .filter(|f| f.0 == number)
        .collect();
    assert!(
        found.len() <= 1,
        "field {number} comes {} times",
        found.len()
    );
    Some(found.into_iter().next()?.1)
}

/// Step, tag and value of every scalar.
fn scalars(events: &[Vec<u8>]) -> Vec<(u64, String, f32)> {
    let number = |bytes: Vec<u8>| u64::from_le_bytes(bytes.try_into().unwrap());
    let mut found = Vec::new();
    for event in events {
        let Some(summary) = field(event, 5) else {
            continue;
        };
        for (_, value) in fields(&summary) {
            let tag = String::from_utf8(field(&value, 1).unwrap()).unwrap();
            let scalar = f32::from_le_bytes(field(&value, 2).unwrap().try_into().unwrap());
            found.push((number(field(event, 2).unwrap()), tag, scalar));
        }
    }
    found
}

fn event_files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = (fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
}

#[test]
fn event_files_hold_the_scalars_in_checked_frames() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = EventWriter::create(folder.path(), None).unwrap();
    writer.scalars(1, &[("a", 0.5), ("b/c", -3.25)]).unwrap();
    writer.scalars(300, &[("a", 1e30)]).unwrap();
    let files = event_files(folder.path());
    assert!(files[0].to_str().unwrap().contains("tfevents"));
    let events = events(&files[0]);
    assert_eq!(field(&events[0], 3).unwrap(), b"brain.Event:2");
    let wall_time = f64::from_le_bytes(field(&events[1], 1).unwrap().try_into().unwrap());
    assert!(wall_time > 1.7e9, "{wall_time}");
    assert_eq!(
        scalars(&events),
        [
            (1, "a".to_string(), 0.5),
            (1, "b/c".to_string(), -3.25),
            (300, "a".to_string(), 1e30)
        ]
    );
}

#[test]
fn a_resumed_run_writes_a_new_event_file_that_begins_a_session() {
    let folder = tempfile::tempdir().unwrap();
    EventWriter::create(folder.path(), None)
        .unwrap()
        .record(&record(8))
        .unwrap();
    EventWriter::create(folder.path(), Some(6))
        .unwrap()
        .record(&record(7))
        .unwrap();
    let files = event_files(folder.path());
    assert_eq!(files.len(), 2);
    let events = events(&files[1]);
    assert_eq!(field(&events[1], 2).unwrap(), 7_u64.to_le_bytes());
    // SessionLog { status: START }
    assert_eq!(field(&events[1], 7).unwrap(), [8, 1]);
    let scalars = scalars(&events);
    let value = |tag: &str| scalars.iter().find(|s| s.1 == tag).map(|s| s.2);
    assert_eq!(value("speed/hfu"), Some(0.3125));
    assert_eq!(value("loss/train"), Some(record(7).loss as f32));
    assert_eq!(value("loss/validation"), None);
}
