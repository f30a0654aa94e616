//! A writer that is stopped anywhere.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn_frontier::checkpoint::Checkpoint;
use burn_frontier::error::Error;
use burn_frontier::mesh::Layout;

use crate::fixture::{listing, read_model, save_model, saved, text};

/// Saves with every rank stopped for good before the `n`-th durable operation; whether it came that far.
fn killed_at(n: usize, folder: &Path, step: u64, keep: usize) -> bool {
    let count = AtomicUsize::new(0);
    let stop = |point: &str| match count.fetch_add(1, Ordering::SeqCst) >= n {
        true => Err(Error::config(format!("killed before: {point}"), "none")),
        false => Ok(()),
    };
    save_model(
        folder,
        (step, 2),
        Layout {
            dp: 2,
            ..Layout::single()
        },
        keep,
        &stop,
    );
    count.into_inner() > n
}

#[test]
fn a_kill_at_any_point_leaves_a_whole_checkpoint() {
    // Of no checkpoint, of an earlier step, of the same step, of a replacement that was itself stopped midway.
    for (scenario, before, keep) in [
        ("first", None, 0),
        ("next", Some(10), 1),
        ("replace", Some(20), 2),
        ("stopped", Some(20), 1),
    ] {
        let mut n = 0;
        loop {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path();
            if let Some(step) = before {
                let outcomes = save_model(path, (step, 1), Layout::single(), 0, &|_| Ok(()));
                let whole = outcomes[0].as_ref().unwrap();
                if scenario == "stopped" {
                    fs::rename(whole, path.join("step-00000020.old")).unwrap();
                    fs::create_dir(path.join("step-00000020.tmp")).unwrap();
                }
            }
            let stopped = killed_at(n, path, 20, keep);
            for name in listing(path).iter().filter(|name| !name.ends_with(".tmp")) {
                Checkpoint::open(&path.join(name)).expect("what has its name is whole");
            }
            match Checkpoint::newest(path).unwrap() {
                Some(checkpoint) => {
                    let fill = read_model(&checkpoint, 2).unwrap();
                    assert!(fill == 2 || stopped && before.is_some(), "{scenario} {n}");
                }
                None => assert!(
                    before.is_none() && stopped,
                    "{scenario} {n}: nothing is left"
                ),
            }
            saved(path, 30, 1);
            assert_eq!(
                listing(path),
                ["step-00000030"],
                "{scenario} {n}: nothing lies about"
            );
            if !stopped {
                break;
            }
            n += 1;
        }
        assert!(n > 20, "{scenario}: only {n} points");
    }
}

#[test]
fn one_failed_write_is_an_error_on_every_rank_and_leaves_no_trace() {
    let (mut n, mut failures, mut visible) = (0, 0, 0);
    loop {
        let folder = tempfile::tempdir().unwrap();
        saved(folder.path(), 10, 0);
        let count = AtomicUsize::new(0);
        let once = |point: &str| match count.fetch_add(1, Ordering::SeqCst) == n {
            true => Err(Error::config(format!("no space left: {point}"), "none")),
            false => Ok(()),
        };
        let outcomes = save_model(
            folder.path(),
            (20, 2),
            Layout {
                tp: 2,
                ..Layout::single()
            },
            0,
            &once,
        );
        let newest = Checkpoint::newest(folder.path()).unwrap().unwrap();
        let fill = read_model(&newest, 1).unwrap();
        assert!(fill == 2 || outcomes[0].is_err(), "{n}: {outcomes:?}");
        // The last failure there is: the new name is not known to be durable.
        visible += usize::from(fill == 2 && outcomes[0].is_err());
        assert_eq!(
            outcomes[0].is_ok(),
            outcomes[1].is_ok(),
            "{n}: {outcomes:?}"
        );
        if outcomes[0].is_err() {
            failures += 1;
            let temporary: Vec<_> = listing(folder.path())
                .into_iter()
                .filter(|name| name.contains('.'))
                .collect();
            assert!(temporary.is_empty(), "{n}: {temporary:?}");
            for outcome in outcomes {
                let error = text(outcome);
                assert!(error.contains("no space left"), "{error}");
            }
        }
        if count.into_inner() <= n {
            break;
        }
        n += 1;
    }
    assert!(failures > 20, "only {failures} of {n} points failed");
    assert!(visible <= 1, "{visible} failed saves left a new checkpoint");
}
