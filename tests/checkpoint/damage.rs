//! Files that are damaged, missing, or of others.

use std::fs;

use burn_frontier::checkpoint::Checkpoint;
use burn_frontier::mesh::Layout;

use crate::fixture::{listing, read_model, save_model, saved, text};

#[test]
fn any_flipped_byte_of_a_shard_is_found_when_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = saved(folder.path(), 10, 0);
    let shards = listing(&path)
        .into_iter()
        .filter(|name| name.ends_with("safetensors"));
    for shard in shards.map(|name| path.join(name)) {
        let whole = fs::read(&shard).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << (at % 8);
            fs::write(&shard, damaged).unwrap();
            let outcome = Checkpoint::open(&path).and_then(|checkpoint| read_model(&checkpoint, 2));
            assert!(outcome.is_err(), "byte {at} of {}", shard.display());
        }
        fs::write(&shard, whole).unwrap();
    }
    read_model(&Checkpoint::open(&path).unwrap(), 2).unwrap();
}

#[test]
fn a_damaged_newest_checkpoint_gives_way_to_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let older = saved(folder.path(), 10, 0);
    let path = saved(folder.path(), 20, 0);
    let newest = || Checkpoint::newest(folder.path()).unwrap().unwrap().step();
    let manifest = path.join("manifest.json");
    let whole = fs::read(&manifest).unwrap();
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << (at % 8);
        fs::write(&manifest, damaged).unwrap();
        assert_eq!(newest(), 10, "byte {at}");
    }
    for length in [0, 1, 20, whole.len() / 2, whole.len() - 1] {
        fs::write(&manifest, &whole[..length]).unwrap();
        assert_eq!(newest(), 10, "{length} bytes");
    }
    fs::write(&manifest, &whole).unwrap();
    assert_eq!(newest(), 20);
    let shard = path.join("rank00001-0000.safetensors");
    let content = fs::read(&shard).unwrap();
    fs::write(&shard, &content[..content.len() - 1]).unwrap();
    assert_eq!(newest(), 10, "a truncated shard");
    fs::remove_file(&shard).unwrap();
    assert_eq!(newest(), 10, "a missing shard");
    let error = text(Checkpoint::open(&path));
    assert!(error.contains("rank00001-0000.safetensors"), "{error}");

    fs::remove_file(older.join("manifest.json")).unwrap();
    let error = text(Checkpoint::newest(folder.path()));
    assert!(
        error.contains("rank00001-0000"),
        "no silent start from nothing: {error}"
    );
    assert!(
        Checkpoint::newest(&folder.path().join("none"))
            .unwrap()
            .is_none()
    );
}

/// A manifest with the checksum that belongs to it.
fn sealed(manifest: &str) -> String {
    let rest = &manifest[r#"{"checksum":"01234567"#.len()..];
    format!(
        r#"{{"checksum":"{:08x}{rest}"#,
        crc32fast::hash(rest.as_bytes())
    )
}

#[test]
fn hostile_manifests_are_refused_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = saved(folder.path(), 10, 0);
    let manifest = path.join("manifest.json");
    let whole = fs::read_to_string(&manifest).unwrap();
    assert_eq!(sealed(&whole), whole);
    let huge = usize::MAX.to_string();
    for (from, to, reason) in [
        (
            "burn-frontier checkpoint",
            "another program",
            "has format \"another program\"",
        ),
        ("\"version\":1", "\"version\":2", "has version 2"),
        ("\"version\":1", "\"version\":-1", "invalid value"),
        (
            "rank00000-0000.safetensors",
            "../../etc/passwd",
            "no name of a file beside it",
        ),
        (
            "rank00000-0000.safetensors",
            "/etc/passwd",
            "no name of a file beside it",
        ),
        (
            "rank00000-0000.safetensors",
            "rank00001-0000.safetensors",
            "listed twice",
        ),
        (
            "rank00000-0000.safetensors",
            "rank00007-0000.safetensors",
            "rank00007",
        ),
        (
            "\"shape\":[37,4]",
            &format!("\"shape\":[{huge},{huge}]"),
            "too large",
        ),
        (
            "\"shape\":[37,4]",
            &format!("\"shape\":[{huge}]"),
            "too large",
        ),
        (
            "\"shape\":[37,4]",
            "\"shape\":[1000000000,4]",
            "elements are held",
        ),
        ("\"shape\":[37,4]", "\"shape\":[37]", "not within [37]"),
        (
            "\"start\":[0,0]",
            &format!("\"start\":[{huge},0]"),
            "not within",
        ),
        ("\"len\":[5]", "\"len\":[0]", "is empty"),
        ("\"shard\":1", "\"shard\":9", "there is no shard 9"),
        ("\"dtype\":\"F32\"", "\"dtype\":\"F31\"", "unknown variant"),
    ] {
        assert!(whole.contains(from), "{from}");
        fs::write(&manifest, sealed(&whole.replacen(from, to, 1))).unwrap();
        let error = text(Checkpoint::open(&path));
        assert!(error.contains(reason), "{from} -> {to}: {error}");
        assert!(Checkpoint::newest(folder.path()).is_err());
    }
    fs::write(
        &manifest,
        r#"{"metadata":{"total_size":1},"weight_map":{}}"#,
    )
    .unwrap();
    let error = text(Checkpoint::open(&path));
    assert!(
        error.contains("as a manifest of this library does"),
        "{error}"
    );
}

#[test]
fn a_checkpoint_of_a_newer_version_is_neither_passed_over_nor_replaced() {
    for newer in [20, 10] {
        let folder = tempfile::tempdir().unwrap();
        for step in [10, 20] {
            saved(folder.path(), step, 0);
        }
        let path = folder.path().join(format!("step-000000{newer}"));
        let manifest = path.join("manifest.json");
        let whole = fs::read_to_string(&manifest).unwrap();
        let content = sealed(&whole.replacen("\"version\":1", "\"version\":2", 1));
        fs::write(&manifest, &content).unwrap();
        fs::create_dir(folder.path().join("step-00000030.tmp")).unwrap();
        let before = listing(folder.path());

        let error = text(Checkpoint::newest(folder.path()));
        assert!(error.contains("has version 2"), "{error}");
        assert!(
            error.contains("the version of burn-frontier that wrote it"),
            "{error}"
        );
        let layout = Layout {
            tp: 2,
            ..Layout::single()
        };
        for step in [20, 30] {
            for outcome in save_model(folder.path(), (step, 1), layout, 1, &|_| Ok(())) {
                let error = text(outcome);
                assert!(error.contains("has version 2"), "{error}");
            }
        }
        assert_eq!(listing(folder.path()), before, "nothing was touched");
        assert_eq!(fs::read_to_string(&manifest).unwrap(), content);
    }
}
