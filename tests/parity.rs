//! Every layout gives one rank's answer.

#[path = "parity/by_hand.rs"]
mod by_hand;
mod harness;

use burn::tensor::DType;
use burn_frontier::Layout;
use burn_frontier::Recompute::{self, Full, None as Keep, Selective};
use burn_frontier::models::gpt::GptConfig;
use burn_frontier::pipeline::schedule::Kind::{
    self, GPipe, Interleaved, OneForwardOneBackward as OneFOneB,
};
use harness::{Run, assert_agrees};

/// A vocabulary that no padding divides evenly, and dropout.
fn config() -> GptConfig {
    GptConfig::new(4, 32, 4, 61, 16).with_dropout(0.1)
}

const TWO_CHUNKS: Kind = Interleaved { chunks: 2 };

/// tp, pp, dp, ZeRO stage, sequence parallel, schedule, recompute, global batch, micro-batch.
type Row = (usize, usize, usize, u8, bool, Kind, Recompute, u64, u64);

/// A selection in which every value of every switch meets several of the others.
const LAYOUTS: [Row; 28] = [
    (1, 1, 1, 0, false, GPipe, Keep, 8, 2),
    (1, 1, 1, 1, false, TWO_CHUNKS, Full, 8, 2),
    (1, 1, 2, 0, false, OneFOneB, Selective, 8, 2),
    (1, 1, 2, 1, false, OneFOneB, Full, 8, 4),
    (1, 2, 1, 0, false, OneFOneB, Keep, 8, 2),
    (1, 2, 1, 1, false, TWO_CHUNKS, Selective, 8, 2),
    (1, 2, 2, 0, false, GPipe, Full, 8, 1),
    (1, 2, 2, 1, false, TWO_CHUNKS, Keep, 8, 2),
    (1, 4, 1, 0, false, OneFOneB, Selective, 8, 1),
    (1, 4, 1, 1, false, GPipe, Full, 8, 2),
    (1, 4, 2, 0, false, OneFOneB, Keep, 8, 1),
    (1, 4, 2, 1, false, OneFOneB, Selective, 8, 2),
    (2, 1, 1, 0, false, OneFOneB, Keep, 8, 8),
    (2, 1, 1, 1, true, GPipe, Selective, 8, 2),
    (2, 1, 2, 0, true, TWO_CHUNKS, Keep, 8, 2),
    (2, 1, 2, 1, false, OneFOneB, Full, 8, 2),
    (2, 2, 1, 0, true, OneFOneB, Full, 8, 2),
    (2, 2, 1, 1, false, TWO_CHUNKS, Keep, 8, 2),
    (2, 2, 2, 0, false, OneFOneB, Selective, 8, 2),
    (2, 2, 2, 1, true, TWO_CHUNKS, Full, 8, 2),
    (2, 4, 1, 0, true, GPipe, Keep, 8, 2),
    (2, 4, 2, 1, true, OneFOneB, Selective, 8, 1),
    (4, 1, 1, 0, true, OneFOneB, Full, 8, 4),
    (4, 1, 2, 1, false, GPipe, Keep, 8, 2),
    (4, 2, 1, 0, false, TWO_CHUNKS, Selective, 8, 2),
    (4, 2, 2, 1, true, OneFOneB, Keep, 8, 2),
    (4, 4, 1, 0, true, OneFOneB, Keep, 8, 2),
    (4, 4, 2, 1, true, OneFOneB, Full, 8, 1),
];

fn run(row: &Row) -> Run {
    let &(tp, pp, dp, zero, sequence_parallel, kind, recompute, global_batch, micro_batch) = row;
    Run {
        layout: Layout { tp, pp, dp },
        kind,
        zero,
        overlap: zero == 1,
        sequence_parallel,
        recompute,
        global_batch,
        micro_batch,
        ..Run::single(config())
    }
}

fn check(rows: &[Row]) {
    let one = Run::single(config()).train().unwrap();
    assert!(
        one.losses[19] < 0.9 * one.losses[0],
        "the model learns: {:?}",
        one.losses
    );
    for row in rows {
        let outcome = run(row).train().unwrap_or_else(|e| panic!("{row:?}: {e}"));
        assert_agrees(&outcome, &one, &format!("{row:?}"));
    }
}

#[test]
fn tp1_layouts_give_the_answer_of_one_rank() {
    check(&LAYOUTS[..12]);
}

#[test]
fn tp2_layouts_give_the_answer_of_one_rank() {
    check(&LAYOUTS[12..22]);
}

#[test]
fn tp4_layouts_give_the_answer_of_one_rank() {
    check(&LAYOUTS[22..]);
}

#[test]
fn a_batch_that_nothing_divides_gives_the_answer_of_one_rank() {
    let one = Run {
        global_batch: 7,
        ..Run::single(config())
    }
    .train()
    .unwrap();
    for (tp, pp, dp, micro_batch) in [(1, 1, 1, 2), (1, 2, 2, 2), (2, 2, 2, 3), (1, 1, 4, 1)] {
        let row = (tp, pp, dp, 1, tp > 1, OneFOneB, Keep, 7, micro_batch);
        assert_agrees(&run(&row).train().unwrap(), &one, &format!("{row:?}"));
    }
}

#[test]
fn a_modern_gpt_gives_the_answer_of_one_rank() {
    // Rotary, SwiGLU, RMS norm, untied head, grouped-query attention, layers that do not divide over the stages.
    let modern = GptConfig::new(5, 32, 4, 61, 16).modern().with_kv_heads(2);
    let one = Run::single(modern.clone()).train().unwrap();
    for row in [
        (2, 1, 2, 1, true, OneFOneB, Selective, 8, 2),
        (2, 2, 1, 0, false, TWO_CHUNKS, Full, 8, 2),
        (1, 4, 1, 0, false, OneFOneB, Keep, 8, 2),
    ] {
        let outcome = Run {
            config: modern.clone(),
            ..run(&row)
        }
        .train()
        .unwrap();
        assert_agrees(&outcome, &one, &format!("{row:?}"));
    }
}

/// In f64, where nothing but the order of sums differs.
fn check_exactly(one: &Run, rows: &[Row]) {
    let one = Run {
        dtype: DType::F64,
        steps: 4,
        ..one.clone()
    };
    let expected = one.train().unwrap();
    for row in rows {
        let what = format!("{row:?}");
        let outcome = Run {
            config: one.config.clone(),
            dtype: one.dtype,
            steps: one.steps,
            length: one.length,
            counts: one.counts,
            ..run(row)
        }
        .train()
        .unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_agrees(&outcome, &expected, &what);
        for (a, b) in outcome.losses.iter().zip(&expected.losses) {
            assert!((a - b).abs() <= 1e-10 * b.abs(), "{what}: {a} {b}");
        }
    }
}

#[test]
fn samples_shorter_than_the_model_give_the_answer_of_one_rank() {
    let rows = [
        (2, 1, 1, 0, true, OneFOneB, Keep, 8, 4),
        (2, 2, 1, 1, true, OneFOneB, Full, 8, 2),
        (2, 2, 2, 1, true, TWO_CHUNKS, Selective, 8, 2),
        (4, 1, 1, 0, true, GPipe, Keep, 8, 8),
        (2, 2, 1, 0, false, OneFOneB, Keep, 8, 2),
    ];
    let rotary = GptConfig::new(4, 32, 4, 61, 16).modern().with_dropout(0.1);
    for config in [config(), rotary] {
        for length in [12, 4] {
            let one = Run {
                length,
                ..Run::single(config.clone())
            };
            check_exactly(&one, &rows);
        }
    }
}

#[test]
fn targets_that_do_not_count_give_the_answer_of_one_rank() {
    // No target of sample 3 counts, which is a micro-batch of its own below; of the others more or fewer.
    let counts = |sample: u64, place: usize| {
        sample % 8 != 3 && !(place as u64 * 7 + sample).is_multiple_of(sample % 5 + 2)
    };
    let one = Run {
        counts,
        ..Run::single(config())
    };
    let rows = [
        (1, 1, 1, 0, false, OneFOneB, Keep, 8, 3),
        (1, 1, 4, 1, false, OneFOneB, Keep, 8, 1),
        (1, 2, 2, 0, false, GPipe, Keep, 8, 1),
        (2, 2, 1, 1, true, TWO_CHUNKS, Full, 8, 1),
        (2, 1, 2, 1, true, OneFOneB, Selective, 8, 3),
    ];
    check_exactly(&one, &rows);
    let all = Run::single(config()).train().unwrap();
    let masked = Run { steps: 1, ..one }.train().unwrap();
    assert!(masked.losses[0] != all.losses[0]);
}

#[test]
fn running_a_layout_again_is_bit_identical() {
    for row in [&LAYOUTS[19], &LAYOUTS[26]] {
        assert_eq!(
            run(row).train().unwrap(),
            run(row).train().unwrap(),
            "{row:?}"
        );
    }
}

#[test]
fn overlap_and_recompute_do_not_change_a_bit() {
    let row = (2, 2, 2, 1, true, OneFOneB, Keep, 8, 2);
    let base = Run {
        overlap: false,
        ..run(&row)
    }
    .train()
    .unwrap();
    let overlapped = Run {
        overlap: true,
        ..run(&row)
    }
    .train()
    .unwrap();
    assert_eq!(overlapped, base);
    for recompute in [Selective, Full] {
        let outcome = Run {
            recompute,
            ..run(&row)
        }
        .train()
        .unwrap();
        assert_eq!(outcome, base, "{recompute:?}");
    }
}

#[test]
fn a_checkpoint_of_one_layout_continues_in_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let save = Some(folder.path().to_path_buf());
    let one = Run::single(config()).train().unwrap();
    let first = (2, 2, 1, 0, true, OneFOneB, Keep, 8, 2);
    Run {
        steps: 10,
        save: save.clone(),
        ..run(&first)
    }
    .train()
    .unwrap();
    for row in [
        (1, 1, 1, 0, false, OneFOneB, Keep, 8, 8),
        (4, 1, 2, 1, false, GPipe, Full, 8, 2),
        (1, 4, 2, 1, false, OneFOneB, Selective, 8, 1),
        (2, 2, 2, 1, true, TWO_CHUNKS, Keep, 8, 2),
    ] {
        let mut rest = Run {
            resume: save.clone(),
            ..run(&row)
        }
        .train()
        .unwrap();
        rest.losses.splice(..0, one.losses[..10].iter().copied());
        rest.norms.splice(..0, one.norms[..10].iter().copied());
        assert_agrees(&rest, &one, &format!("continued under {row:?}"));
    }
}
