//! What a checkpoint promises: any layout reads what any layout saved, a stopped writer harms nothing, and damage is
//! found.

use std::fs;

use burn_frontier::checkpoint::{Checkpoint, Piece, TensorSource, save};
use burn_frontier::comm::Buffer;
use burn_frontier::comm::local::{LocalOptions, run};
use burn_frontier::mesh::Layout;
use burn_frontier::placement::Block;
use proptest::prelude::*;

use fixture::{listing, model, read_model, save_model, saved, state, text};

#[path = "checkpoint/damage.rs"]
mod damage;
#[path = "checkpoint/fixture.rs"]
mod fixture;
#[path = "checkpoint/hugging_face.rs"]
mod hugging_face;
#[path = "checkpoint/imports.rs"]
mod imports;
#[path = "checkpoint/kill.rs"]
mod kill;
#[path = "checkpoint/misuse.rs"]
mod misuse;
mod numbers;

#[test]
fn every_layout_reads_what_every_layout_saved() {
    for (tp, dp) in [(1, 1), (2, 2), (4, 1), (1, 3)] {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout {
            tp,
            dp,
            ..Layout::single()
        };
        for outcome in save_model(folder.path(), (100, 1), layout, 0, &|_| Ok(())) {
            assert_eq!(outcome.unwrap(), folder.path().join("step-00000100"));
        }
        let checkpoint = Checkpoint::newest(folder.path()).unwrap().unwrap();
        assert_eq!(checkpoint.step(), 100);
        assert_eq!(checkpoint.names().count(), model().len());
        assert_eq!(checkpoint.shape("embedding"), Some(&[37, 4][..]));
        for ranks in [1, 2, 4] {
            assert_eq!(read_model(&checkpoint, ranks).unwrap(), 1);
        }
    }
}

#[test]
fn the_state_comes_back_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(&saved(folder.path(), 3, 0)).unwrap();
    let found: serde_json::Value = checkpoint.state().unwrap();
    assert_eq!(found, state(3), "serde_json needs `float_roundtrip`");
    let error = text(checkpoint.state::<Vec<u8>>());
    assert!(
        error.contains("the state is not what is expected"),
        "{error}"
    );
}

/// A pair of indices below `end`.
fn pair(end: usize) -> [std::ops::Range<usize>; 2] {
    [0..end, 0..end]
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(24)
    })]

    #[test]
    fn any_box_is_read_from_any_boxes(
        (rows, columns, cut) in (1..9usize, 1..9usize, 0..9usize),
        (cuts, from, len, at) in (pair(9), pair(9), pair(9), pair(3)),
    ) {
        let shape = [rows, columns];
        // Two bands of rows, each cut somewhere else.
        let cut = cut.min(rows);
        let [left, right] = cuts.map(|cut| cut.min(columns));
        let mut blocks = vec![
            block([0, 0], [0, 0], [cut, left]),
            block([0, left], [0, left], [cut, columns - left]),
            block([cut, 0], [cut, 0], [rows - cut, right]),
            block([cut, right], [cut, right], [rows - cut, columns - right]),
        ];
        blocks.retain(|block| block.count() > 0);
        let checkpoint = matrix(shape, blocks);

        let from = [from[0].min(rows - 1), from[1].min(columns - 1)];
        let len = [(len[0] + 1).min(rows - from[0]), (len[1] + 1).min(columns - from[1])];
        let [height, width] = [at[0] + len[0] + 1, at[1] + len[1]];
        let found = checkpoint.0.read("w", &shape, &[block(from, at, len)], &[height, width]);
        let mut expected = vec![0.0; height * width];
        for i in 0..len[0] {
            for j in 0..len[1] {
                let element = (from[0] + i) * columns + from[1] + j;
                expected[(at[0] + i) * width + at[1] + j] = element as f32 + 1.0;
            }
        }
        prop_assert_eq!(found.unwrap(), Buffer::F32(expected));
    }
}

fn block(global: [usize; 2], local: [usize; 2], len: [usize; 2]) -> Block {
    Block {
        global: global.into(),
        local: local.into(),
        len: len.into(),
    }
}

/// A checkpoint of the matrix 1, 2, 3, … saved in these blocks, and the folder it lies in.
fn matrix(shape: [usize; 2], blocks: Vec<Block>) -> (Checkpoint, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let elements = 1..=shape[0] * shape[1];
    let piece = Piece {
        name: "w".into(),
        shape: shape.into(),
        blocks,
        local_shape: shape.into(),
        data: Buffer::F32(elements.map(|i| i as f32).collect()),
    };
    let state = serde_json::Value::Null;
    let paths = run(1, &LocalOptions::default(), |comm| {
        save(folder.path(), 1, &state, [Ok(piece.clone())], &*comm, 0)
    });
    (Checkpoint::open(&paths.unwrap()[0]).unwrap(), folder)
}

#[test]
fn the_newest_stay_and_never_the_one_just_saved_goes() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("notes.txt"), "mine").unwrap();
    for step in [10, 20, 30] {
        saved(folder.path(), step, 0);
    }
    saved(folder.path(), 40, 3);
    assert_eq!(
        listing(folder.path()),
        [
            "notes.txt",
            "step-00000020",
            "step-00000030",
            "step-00000040"
        ]
    );
    // A run that goes on from an earlier step.
    saved(folder.path(), 25, 2);
    assert_eq!(
        listing(folder.path()),
        ["notes.txt", "step-00000025", "step-00000040"]
    );
    saved(folder.path(), 25, 1);
    assert_eq!(listing(folder.path()), ["notes.txt", "step-00000025"]);
}

#[test]
fn what_another_run_left_unfinished_does_not_matter() {
    let folder = tempfile::tempdir().unwrap();
    let whole = saved(folder.path(), 10, 0);
    for name in ["step-00000020.tmp", "step-00000030.tmp"] {
        let left = folder.path().join(name);
        fs::create_dir(&left).unwrap();
        for file in listing(&whole) {
            fs::copy(whole.join(&file), left.join(&file)).unwrap();
        }
    }
    assert_eq!(
        Checkpoint::newest(folder.path()).unwrap().unwrap().step(),
        10
    );
    let checkpoint = Checkpoint::open(&saved(folder.path(), 20, 0)).unwrap();
    assert_eq!(read_model(&checkpoint, 2).unwrap(), 20);
}
