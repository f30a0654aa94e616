//! Errors instead of hangs: on every rank, soon, and naming the ranks and their operations.

use std::sync::Arc;
use std::time::Duration;

use burn_frontier::comm::local::{LocalOptions, run, single};
use burn_frontier::comm::record::{Call, Operation, Record, compare, dump};
use burn_frontier::comm::{Buffer, Communicator, Reduction};
use burn_frontier::{Error, Result};
use half::bf16;

use super::{f32s, patient};

fn impatient() -> LocalOptions {
    LocalOptions {
        timeout: Duration::from_millis(200),
        ..LocalOptions::default()
    }
}

/// Runs a body that must fail everywhere: returns the error of [`run`] and what each rank's body met. The bodies' own errors
/// do not decide what [`run`] returns, because they come later.
fn failing(
    world: usize,
    options: &LocalOptions,
    body: impl Fn(Arc<dyn Communicator>) -> Result<()> + Sync,
) -> (String, Vec<Option<String>>) {
    let met = std::sync::Mutex::new(vec![None; world]);
    let error = run(world, options, |c| {
        let rank = c.rank();
        let result = body(c);
        if let Err(error) = &result {
            met.lock().unwrap()[rank] = Some(error.to_string());
        }
        result
    });
    (error.unwrap_err().to_string(), met.into_inner().unwrap())
}

fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
}

/// Both ranks of a world of two must meet the same error, which says all of `parts`: not that of a time-out.
fn both_ranks_meet(body: impl Fn(Arc<dyn Communicator>) -> Result<()> + Sync, parts: &[&str]) {
    let (first, met) = failing(2, &patient(), body);
    assert_contains(&first, parts);
    for (rank, met) in met.into_iter().enumerate() {
        let error = met.unwrap_or_else(|| panic!("rank {rank} met no error"));
        assert_eq!(error, first, "rank {rank}");
    }
}

#[test]
fn bytes_move_and_have_a_maximum_but_no_sum() {
    let body = |c: Arc<dyn Communicator>| {
        let rank = c.rank() as u8;
        assert_eq!(
            c.all_gather(Buffer::U8(vec![rank]))?,
            Buffer::U8(vec![0, 1])
        );
        let flags = Buffer::U8(vec![rank, 3 - rank]);
        assert_eq!(c.all_reduce(flags, Reduction::Max)?, Buffer::U8(vec![1, 3]));
        c.all_reduce(Buffer::U8(vec![rank]), Reduction::Sum)
            .map(drop)
    };
    both_ranks_meet(
        body,
        &["all_reduce #3", "u8 x 1", "cannot be summed", "i64"],
    );
    let alone = single()
        .reduce_scatter(Buffer::U8(vec![1]))
        .unwrap_err()
        .to_string();
    assert_contains(&alone, &["cannot be summed"]);
}

#[test]
fn a_sub_group_that_makes_no_sense_is_refused() {
    let refused = |ranks: &'static [usize]| {
        let body = move |c: Arc<dyn Communicator>| c.subgroup("tp", ranks).map(drop);
        run(1, &patient(), body).unwrap_err().to_string()
    };
    assert_contains(&refused(&[0, 1]), &["`tp` of `world`", "no rank 1"]);
    assert_contains(&refused(&[0, 0]), &["rank 0 twice"]);
    assert_contains(&refused(&[]), &["no member"]);
}

#[test]
fn a_world_without_ranks_is_refused() {
    let error = run(0, &patient(), |_| Ok(())).unwrap_err().to_string();
    assert_contains(&error, &["0 ranks", "at least 1"]);
}

#[test]
fn without_a_limit_a_rank_waits_until_the_other_comes() {
    let options = LocalOptions {
        timeout: Duration::MAX,
        ..LocalOptions::default()
    };
    let waited = run(2, &options, |c| {
        if c.rank() == 1 {
            std::thread::sleep(Duration::from_millis(50));
        }
        c.barrier()
    });
    waited.unwrap();
}

#[test]
fn different_operations_are_an_error_on_both_ranks() {
    let body = |c: Arc<dyn Communicator>| {
        c.barrier()?;
        match c.rank() {
            0 => c.all_reduce(f32s(&[1.0; 10]), Reduction::Sum).map(drop),
            _ => c.all_gather(f32s(&[1.0; 10])).map(drop),
        }
    };
    let zero = "rank 0 called all_reduce #2 in group `world` (f32 x 10, sum)";
    both_ranks_meet(
        body,
        &[
            zero,
            "rank 1 called all_gather #2 in group `world` (f32 x 10)",
        ],
    );
}

#[test]
fn different_counts_are_an_error_on_both_ranks() {
    let body = |c: Arc<dyn Communicator>| {
        let mine = vec![bf16::ONE; 10 + c.rank()];
        c.reduce_scatter(Buffer::BF16(mine)).map(drop)
    };
    both_ranks_meet(
        body,
        &[
            "rank 0 called reduce_scatter #1",
            "bf16 x 10,",
            "bf16 x 11,",
        ],
    );
}

#[test]
fn different_types_are_an_error_on_both_ranks() {
    let body = |c: Arc<dyn Communicator>| match c.rank() {
        0 => c.all_gather(f32s(&[1.0])).map(drop),
        _ => c.all_gather(Buffer::F64(vec![1.0, 2.0])).map(drop),
    };
    both_ranks_meet(
        body,
        &["rank 0 called", "rank 1 called", "(f32 x 1)", "(f64 x 2)"],
    );
}

#[test]
fn different_roots_and_reductions_are_errors_on_both_ranks() {
    let roots = |c: Arc<dyn Communicator>| c.broadcast(f32s(&[1.0]), c.rank()).map(drop);
    let parts = [
        "rank 0 called broadcast #1 from rank 0",
        "rank 1 called broadcast #1 from rank 1",
    ];
    both_ranks_meet(roots, &parts);
    let reductions = |c: Arc<dyn Communicator>| {
        let reduction = [Reduction::Sum, Reduction::Max][c.rank()];
        c.all_reduce(f32s(&[1.0]), reduction).map(drop)
    };
    both_ranks_meet(reductions, &["(f32 x 1, sum)", "(f32 x 1, max)"]);
}

#[test]
fn counts_that_do_not_divide_and_roots_that_do_not_exist_are_errors_on_both_ranks() {
    let body = |c: Arc<dyn Communicator>| c.all_to_all(f32s(&[1.0; 3])).map(drop);
    both_ranks_meet(
        body,
        &[
            "all_to_all #1",
            "3 elements are not 2 equal pieces",
            "multiple of 2",
        ],
    );
    let body = |c: Arc<dyn Communicator>| c.broadcast(f32s(&[]), 2).map(drop);
    both_ranks_meet(body, &["broadcast", "no rank 2", "0..2"]);
    let body = |c: Arc<dyn Communicator>| match c.rank() {
        0 => c.send(f32s(&[]), 2),
        _ => c.recv(0).map(drop),
    };
    both_ranks_meet(body, &["send", "no rank 2"]);
}

#[test]
fn a_mismatch_in_a_sub_group_names_world_ranks_and_reaches_the_whole_world() {
    let (first, met) = failing(4, &patient(), |c| {
        if c.rank() < 2 {
            return c.barrier();
        }
        let pair = c.subgroup("pair", &[2, 3])?;
        pair.all_gather(f32s(&[1.0]))?;
        match pair.rank() {
            0 => pair.barrier(),
            _ => pair.all_gather(f32s(&[1.0])).map(drop),
        }
    });
    let barrier = "rank 2 called barrier #2 in group `pair`";
    assert_contains(
        &first,
        &[barrier, "rank 3 called all_gather #2 in group `pair`"],
    );
    for met in met {
        let error = met.expect("an error on every rank");
        assert_eq!(error, first);
    }
}

#[test]
fn a_panic_is_the_error_of_every_rank_with_its_message() {
    let (first, met) = failing(3, &patient(), |c| {
        if c.rank() == 1 {
            let what = "forty-two";
            panic!("the answer is {what}");
        }
        c.all_reduce(f32s(&[1.0]), Reduction::Sum).map(drop)
    });
    assert_contains(&first, &["rank 1: panicked: the answer is forty-two"]);
    for rank in [0, 2] {
        let error = met[rank].clone().expect("an error on every rank");
        assert_eq!(error, first);
    }
}

#[test]
fn the_error_of_a_body_stops_all_ranks_and_is_what_run_returns() {
    let (first, met) = failing(3, &patient(), |c| match c.rank() {
        2 => Err(Error::config("no such model", "choose another")),
        _ => c.recv(2).map(drop),
    });
    assert_eq!(first, "no such model; choose another");
    assert!(met.iter().flatten().all(|error| *error == first));
}

#[test]
fn a_rank_that_returns_while_others_wait_for_it_is_named() {
    let body = |c: Arc<dyn Communicator>| {
        c.all_gather(f32s(&[1.0]))?;
        match c.rank() {
            0 => c.all_reduce(f32s(&[1.0]), Reduction::Sum).map(drop),
            _ => {
                // Rank 0 sleeps already when this rank returns.
                std::thread::sleep(Duration::from_millis(50));
                Ok(())
            }
        }
    };
    let error = run(2, &patient(), body).unwrap_err().to_string();
    let expected = "rank 1 has finished while rank 0 waits in all_reduce #2 in group `world`";
    assert_contains(&error, &[expected, "last operation: all_gather #1"]);
}

#[test]
fn what_a_rank_sent_before_it_returned_arrives_and_no_more() {
    let body = |c: Arc<dyn Communicator>| {
        if c.rank() == 1 {
            return c.send(f32s(&[5.0]), 0);
        }
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(c.recv(1)?, f32s(&[5.0]));
        c.recv(1).map(drop)
    };
    let error = run(2, &patient(), body).unwrap_err().to_string();
    let expected = "rank 1 has finished while rank 0 waits in recv #2 from rank 1";
    assert_contains(
        &error,
        &[expected, "send #1 to rank 0 in group `world` (f32 x 1)"],
    );
}

#[test]
fn recv_from_a_panicked_rank_is_an_error() {
    let (first, met) = failing(2, &patient(), |c| {
        assert!(c.rank() == 0, "gone");
        c.recv(1).map(drop)
    });
    assert_contains(&first, &["rank 1: panicked: gone"]);
    assert_eq!(met[0].as_deref(), Some(&*first));
}

#[test]
fn a_slow_rank_is_named_with_its_last_operation_after_the_time_out() {
    let (first, met) = failing(3, &impatient(), |c| {
        c.broadcast(f32s(&[1.0; 7]), 2)?;
        if c.rank() == 1 {
            std::thread::sleep(Duration::from_millis(500));
        }
        c.all_reduce(f32s(&[1.0]), Reduction::Sum).map(drop)
    });
    let waiting =
        "all_reduce #2 in group `world` (f32 x 1, sum) took longer than 200ms: ranks [0, 2] wait";
    let missing =
        "rank 1 is missing (last operation: broadcast #1 from rank 2 in group `world` (f32 x 7)";
    assert_contains(
        &first,
        &[waiting, missing, "done in", "LocalOptions::timeout"],
    );
    for met in met {
        let error = met.expect("an error on every rank");
        assert_eq!(error, first);
    }
}

#[test]
fn a_message_that_does_not_come_is_an_error_after_the_time_out() {
    let (first, met) = failing(2, &impatient(), |c| match c.rank() {
        0 => c.recv(1).map(drop),
        _ => {
            std::thread::sleep(Duration::from_millis(400));
            c.barrier()
        }
    });
    let waiting = "recv #1 from rank 1 in group `world` took longer than 200ms: ranks [0] wait";
    assert_contains(
        &first,
        &[waiting, "rank 1 is missing (no operation recorded)"],
    );
    assert_eq!(met[1].as_deref(), Some(&*first));
}

#[test]
fn a_sub_group_that_a_member_has_not_made_is_named_after_the_time_out() {
    let (first, _) = failing(2, &impatient(), |c| {
        // Different lists make different groups.
        let ranks: &[usize] = if c.rank() == 0 { &[0, 1] } else { &[1, 0] };
        c.subgroup("tp", ranks)?.barrier()
    });
    assert_contains(
        &first,
        &["barrier #1 in group `tp`", "has not made this sub-group of"],
    );
}

#[test]
fn the_first_error_stays_in_all_groups_of_the_world() {
    let (first, _) = failing(2, &patient(), |c| {
        let (tp, lonely) = (
            c.subgroup("tp", &[0, 1])?,
            c.subgroup("lonely", &[c.rank()])?,
        );
        if c.rank() == 1 {
            c.fail(Error::config("first", "stop"));
            c.fail(Error::config("second", "stop"));
        }
        let error = tp.barrier().unwrap_err();
        let later = [
            c.all_reduce(f32s(&[1.0]), Reduction::Sum).map(drop),
            c.send(f32s(&[1.0]), 0),
            c.recv(1 - c.rank()).map(drop),
            c.subgroup("more", &[c.rank()]).map(drop),
            lonely.barrier(),
        ];
        for result in later {
            assert_eq!(result.unwrap_err().to_string(), error.to_string());
        }
        assert_eq!(
            lonely.failure().map(|e| e.to_string()),
            Some(error.to_string())
        );
        // Even a rank that forgets about the error ends in a failed world.
        Ok(())
    });
    assert_eq!(first, "first; stop");
}

#[test]
fn two_threads_in_one_communicator_are_an_error_not_a_mix_up() {
    let (first, _) = failing(2, &patient(), |c| {
        if c.rank() == 1 {
            std::thread::sleep(Duration::from_millis(100));
            return c.barrier();
        }
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| c.barrier());
            let (mine, other) = (c.barrier(), thread.join().unwrap());
            mine.and(other)
        })
    });
    assert_contains(&first, &["another thread", "sub-group"]);
}

/// Collective `sequence` of `count` elements in group 7, after `sequence` seconds.
fn record(rank: usize, sequence: u64, operation: Operation, count: usize) -> Record {
    let call = Call {
        label: "tp".into(),
        sequence,
        operation,
        data: Some(("f32", count)),
        reduction: None,
        peer: None,
    };
    Record {
        rank,
        group: 7,
        call,
        started: Duration::from_secs(sequence),
        finished: None,
    }
}

#[test]
fn comparing_records_finds_the_first_call_where_two_ranks_part() {
    use Operation::{AllGather, AllToAll};
    // Rank 1's recorder has lost its first call already; counts of an all-gather may differ.
    let zero: Vec<_> = (1..=4).map(|n| record(0, n, AllGather, 1)).collect();
    let one: Vec<_> = (2..=4).map(|n| record(1, n, AllGather, 2)).collect();
    assert_eq!(compare(&zero, &one), None);
    assert_eq!(compare(&zero, &[]), None);
    let behind = compare(&zero, &one[..2]).unwrap();
    assert_contains(
        &behind,
        &[
            "rank 0 called all_gather #4 in group `tp`",
            "rank 1 has not",
        ],
    );
    let mut other = one.clone();
    other[1] = record(1, 3, AllToAll, 5);
    let parting = compare(&zero, &other).unwrap();
    assert_contains(
        &parting,
        &["rank 0 called all_gather #3", "rank 1 called all_to_all #3"],
    );
    let text = dump(&[zero, other]);
    assert_eq!(text.lines().count(), 4 + 3 + 1, "{text}");
    assert_contains(
        &text,
        &[
            "rank 1: all_to_all #3 in group `tp` (f32 x 5), begun at 3.000 s, not done",
            &parting,
        ],
    );
}

#[test]
fn the_flight_recorder_can_be_read_while_the_ranks_run() {
    let options = patient();
    assert_eq!(options.recorder.dump(), None, "no world runs");
    let recorder = options.recorder.clone();
    run(2, &options, |c| {
        c.all_reduce(f32s(&[1.0]), Reduction::Sum)?;
        let dump = recorder.dump().expect("a world runs");
        for rank in 0..2 {
            assert!(
                dump.contains(&format!("rank {rank}: all_reduce #1 in group `world`")),
                "{dump}"
            );
        }
        c.barrier()
    })
    .unwrap();
    assert_eq!(options.recorder.dump(), None, "the world has ended");
}
