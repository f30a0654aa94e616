//! Pieces that make no tensor, and tensors that a model cannot use.

use burn_frontier::checkpoint::{Checkpoint, Piece, TensorSource, save};
use burn_frontier::comm::Buffer;
use burn_frontier::comm::local::{LocalOptions, run};
use burn_frontier::error::Error;
use burn_frontier::placement::Block;
use half::{bf16, f16};

use crate::fixture::{listing, saved, text};

#[test]
fn what_a_model_cannot_use_is_refused_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(&saved(folder.path(), 10, 0)).unwrap();
    let block = |global: usize, local: usize, len: usize| Block {
        global: vec![global],
        local: vec![local],
        len: vec![len],
    };
    for (name, shape, blocks, local_shape, reason) in [
        (
            "absent",
            vec![5],
            vec![block(0, 0, 5)],
            vec![5],
            "has no tensor `absent`",
        ),
        (
            "norm",
            vec![6],
            vec![block(0, 0, 5)],
            vec![5],
            "has shape [5], but [6] is expected",
        ),
        (
            "norm",
            vec![5, 1],
            vec![block(0, 0, 5)],
            vec![5],
            "has shape [5], but [5, 1] is expected",
        ),
        (
            "norm",
            vec![5],
            vec![block(3, 0, 3)],
            vec![5],
            "does not lie in",
        ),
        (
            "norm",
            vec![5],
            vec![block(0, 3, 3)],
            vec![5],
            "does not lie in",
        ),
        (
            "norm",
            vec![5],
            vec![block(usize::MAX, 0, 2)],
            vec![5],
            "does not lie in",
        ),
        (
            "norm",
            vec![5],
            vec![block(0, 0, 5)],
            vec![usize::MAX],
            "too large to count",
        ),
    ] {
        let error = text(checkpoint.read(name, &shape, &blocks, &local_shape));
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn contradicting_pieces_are_an_error_on_every_rank() {
    let piece = |range: std::ops::Range<usize>| Piece {
        name: "w".into(),
        shape: vec![4],
        blocks: vec![Block {
            global: vec![range.start],
            local: vec![range.start],
            len: vec![range.len()],
        }],
        local_shape: vec![4],
        data: Buffer::F32(vec![1.0; 4]),
    };
    let half = Piece {
        data: Buffer::F16(vec![f16::ONE; 4]),
        ..piece(2..4)
    };
    let longer = Piece {
        shape: vec![5],
        ..piece(2..4)
    };
    let short = Piece {
        data: Buffer::F32(vec![]),
        ..piece(2..4)
    };
    for (second, reason) in [
        (Ok(piece(1..4)), "overlap"),
        (Ok(piece(3..4)), "3 of 4 elements"),
        (Ok(half), "is F32 [4] on one rank and F16 [4] on another"),
        (Ok(longer), "is F32 [4] on one rank and F32 [5] on another"),
        (Ok(short), "has 0 elements"),
        (Ok(piece(2..5)), "does not lie in"),
        (Err(Error::config("device lost", "none")), "device lost"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let outcomes = run(3, &LocalOptions::default(), |comm| {
            let mine = match comm.rank() {
                0 => vec![Ok(piece(0..2))],
                1 => vec![second.clone()],
                _ => vec![],
            };
            Ok(save(
                folder.path(),
                1,
                &serde_json::Value::Null,
                mine,
                &*comm,
                0,
            ))
        });
        for outcome in outcomes.unwrap() {
            let error = text(outcome);
            assert!(error.contains(reason), "{error}");
        }
        assert!(listing(folder.path()).is_empty());
    }
}

#[test]
fn a_float_that_is_not_finite_is_never_saved_and_named_on_every_rank() {
    let folder = tempfile::tempdir().unwrap();
    saved(folder.path(), 10, 0);
    let before = listing(folder.path());
    for (data, value) in [
        (Buffer::F32(vec![1.0, f32::NAN, 1.0]), "NaN"),
        (Buffer::F64(vec![1.0, f64::INFINITY, 1.0]), "inf"),
        (
            Buffer::F16(vec![f16::ONE, f16::NEG_INFINITY, f16::ONE]),
            "-inf",
        ),
        (Buffer::BF16(vec![bf16::ONE, bf16::NAN, bf16::ONE]), "NaN"),
    ] {
        let outcomes = run(2, &LocalOptions::default(), |comm| {
            let mine = (comm.rank() == 1).then(|| Ok(row("w", data.clone(), 3)));
            let state = serde_json::Value::Null;
            Ok(save(folder.path(), 20, &state, mine, &*comm, 1))
        });
        for outcome in outcomes.unwrap() {
            let error = text(outcome);
            let expected =
                format!("step 20 is not saved: tensor `w` holds {value} (element 1 of [3])");
            assert!(error.contains(&expected), "{error}");
            assert!(error.contains("smaller learning rate"), "{error}");
        }
        assert_eq!(listing(folder.path()), before);
    }
    // Padding is not saved, so it may hold anything.
    let padded = row("w", Buffer::F32(vec![1.0, 1.0, f32::NAN]), 2);
    let outcomes = run(1, &LocalOptions::default(), |comm| {
        let state = serde_json::Value::Null;
        save(folder.path(), 20, &state, [Ok(padded.clone())], &*comm, 0)
    });
    assert_eq!(outcomes.unwrap(), [folder.path().join("step-00000020")]);
}

/// A vector of `len` elements, and what `data` has more as padding.
fn row(name: &str, data: Buffer, len: usize) -> Piece {
    Piece {
        name: name.into(),
        shape: vec![len],
        blocks: vec![Block {
            global: vec![0],
            local: vec![0],
            len: vec![len],
        }],
        local_shape: vec![data.len()],
        data,
    }
}
