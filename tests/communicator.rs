//! What every user of `comm::local` relies on: right and reproducible results, and errors instead of hangs.

#[path = "communicator/failures.rs"]
mod failures;

use std::sync::Arc;
use std::time::Duration;

use burn_frontier::Result;
use burn_frontier::comm::local::{LocalOptions, run, single};
use burn_frontier::comm::{Buffer, Communicator, Reduction, Traffic};
use half::{bf16, f16};
use rayon::prelude::*;

/// Sizes on both sides of the limit from which ranks share the work of an all-reduce; all divide by 1, 2, 3 and 4.
const COUNTS: [usize; 4] = [0, 12, 4092, 4 * 3 * 1000];

/// More time than any test may take: a test that needs it fails.
fn patient() -> LocalOptions {
    LocalOptions {
        timeout: Duration::from_secs(60),
        ..LocalOptions::default()
    }
}

/// SplitMix64: `state` is the seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// A seed that differs from run to run; the name of the test and the seed are printed.
fn seed(test: &str) -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = now.unwrap().as_nanos() as u64;
    println!("{test}: seed {seed}");
    seed
}

/// Element `i` of rank `rank`: a small multiple of 1/4, of either sign, so that sums of a few are exact in bf16.
fn value(rank: usize, i: usize) -> f64 {
    ((rank * 7 + i * 3) % 11) as f64 / 4.0 - 1.0
}

const DTYPES: [&str; 5] = ["f32", "f64", "f16", "bf16", "i64"];

/// Numbers as a buffer of a type; i64 gets four times as much, to be whole.
fn buffer(dtype: &str, values: &[f64]) -> Buffer {
    let values = values.iter();
    match dtype {
        "f32" => Buffer::F32(values.map(|&v| v as f32).collect()),
        "f64" => Buffer::F64(values.copied().collect()),
        "f16" => Buffer::F16(values.map(|&v| f16::from_f64(v)).collect()),
        "bf16" => Buffer::BF16(values.map(|&v| bf16::from_f64(v)).collect()),
        "i64" => Buffer::I64(values.map(|&v| (v * 4.0) as i64).collect()),
        other => panic!("no values of type {other}"),
    }
}

fn values(rank: usize, count: usize) -> Vec<f64> {
    (0..count).map(|i| value(rank, i)).collect()
}

fn f32s(values: &[f32]) -> Buffer {
    Buffer::F32(values.to_vec())
}

/// Calls `check(communicator, dtype, count)` on all ranks of worlds of 1 to 4 for all types and counts.
fn everywhere(check: impl Fn(&dyn Communicator, &str, usize) -> Result<()> + Sync) {
    for world in 1..=4 {
        let body = |c: Arc<dyn Communicator>| {
            for dtype in DTYPES {
                for count in COUNTS {
                    check(&*c, dtype, count)?;
                }
            }
            Ok(())
        };
        run(world, &patient(), body).unwrap();
    }
}

#[test]
fn all_reduce_gives_every_rank_the_sum_and_the_maximum() {
    everywhere(|c, dtype, count| {
        let column = |i| (0..c.size()).map(move |rank| value(rank, i));
        let sum: Vec<f64> = (0..count).map(|i| column(i).sum()).collect();
        let max: Vec<f64> = (0..count)
            .map(|i| column(i).fold(f64::MIN, f64::max))
            .collect();
        let mine = buffer(dtype, &values(c.rank(), count));
        let got = c.all_reduce(mine.clone(), Reduction::Sum)?;
        assert_eq!(got, buffer(dtype, &sum));
        assert_eq!(c.all_reduce(mine, Reduction::Max)?, buffer(dtype, &max));
        Ok(())
    });
}

#[test]
fn ranks_compute_on_their_share_of_the_threads_and_on_their_own_first() {
    let all = rayon::current_num_threads();
    for world in [1, 2, 3, 2 * all] {
        let pool = |_: Arc<dyn Communicator>| {
            let own = std::thread::current().id();
            let here = rayon::iter::repeat_n((), 4).all(|()| std::thread::current().id() == own);
            let share = rayon::current_num_threads();
            assert_eq!(rayon::current_thread_index(), Some(0));
            assert!(here || share > 1);
            Ok(share)
        };
        let shares = run(world, &patient(), pool).unwrap();
        assert_eq!(shares, vec![all.div_ceil(world); world]);
    }
}

#[test]
fn all_reduce_copes_with_counts_that_do_not_divide() {
    let body = |c: Arc<dyn Communicator>| {
        for count in [1, 4097, 10_007] {
            let got = c.all_reduce(buffer("f32", &values(c.rank(), count)), Reduction::Sum)?;
            let sum: Vec<f64> = (0..count)
                .map(|i| (0..3).map(|rank| value(rank, i)).sum())
                .collect();
            assert_eq!(got, buffer("f32", &sum));
        }
        Ok(())
    };
    run(3, &patient(), body).unwrap();
}

#[test]
fn reduce_scatter_gives_each_rank_its_piece_of_the_sum() {
    everywhere(|c, dtype, count| {
        let piece = count / c.size();
        let mine = c.rank() * piece..(c.rank() + 1) * piece;
        let sum: Vec<f64> = mine
            .map(|i| (0..c.size()).map(|rank| value(rank, i)).sum())
            .collect();
        let got = c.reduce_scatter(buffer(dtype, &values(c.rank(), count)))?;
        assert_eq!(got, buffer(dtype, &sum));
        Ok(())
    });
}

#[test]
fn all_gather_joins_pieces_of_different_lengths_in_rank_order() {
    everywhere(|c, dtype, count| {
        let all: Vec<f64> = (0..c.size())
            .flat_map(|rank| values(rank, count + rank))
            .collect();
        let got = c.all_gather(buffer(dtype, &values(c.rank(), count + c.rank())))?;
        assert_eq!(got, buffer(dtype, &all));
        Ok(())
    });
}

#[test]
fn all_to_all_exchanges_pieces_in_rank_order() {
    everywhere(|c, dtype, count| {
        let piece = count / c.size();
        let mine = c.rank() * piece..(c.rank() + 1) * piece;
        let expected: Vec<f64> = (0..c.size())
            .flat_map(|from| mine.clone().map(move |i| value(from, i)))
            .collect();
        let got = c.all_to_all(buffer(dtype, &values(c.rank(), count)))?;
        assert_eq!(got, buffer(dtype, &expected));
        Ok(())
    });
}

#[test]
fn broadcast_gives_every_rank_the_elements_of_the_root() {
    everywhere(|c, dtype, count| {
        for root in 0..c.size() {
            let given = if c.rank() == root {
                values(root, count)
            } else {
                vec![]
            };
            let got = c.broadcast(buffer(dtype, &given), root)?;
            assert_eq!(got, buffer(dtype, &values(root, count)));
        }
        Ok(())
    });
}

#[test]
fn messages_arrive_in_order_whether_or_not_the_receiver_waits_already() {
    everywhere(|c, dtype, count| {
        let (next, previous) = (
            (c.rank() + 1) % c.size(),
            (c.rank() + c.size() - 1) % c.size(),
        );
        for more in 0..3 {
            c.send(buffer(dtype, &values(c.rank(), count + more)), next)?;
        }
        for more in 0..3 {
            let got = c.recv(previous)?;
            assert_eq!(got, buffer(dtype, &values(previous, count + more)));
        }
        Ok(())
    });
}

#[test]
fn a_barrier_holds_everyone_until_the_last_has_come() {
    let come = std::sync::atomic::AtomicUsize::new(0);
    let body = |c: Arc<dyn Communicator>| {
        std::thread::sleep(Duration::from_millis(20 * c.rank() as u64));
        come.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        c.barrier()?;
        Ok(come.load(std::sync::atomic::Ordering::SeqCst))
    };
    assert_eq!(run(4, &patient(), body).unwrap(), [4; 4]);
}

#[test]
fn half_types_are_summed_in_f32_and_rounded_once_and_i64_wraps() {
    let body = |c: Arc<dyn Communicator>| {
        // 256 + 1 + 1 is 258 in f32; in bf16, 256 + 1 rounds to 256, twice. Likewise 2048 in f16.
        let mine = if c.rank() == 0 { 256.0 } else { 1.0 };
        let sum = c.all_reduce(
            Buffer::BF16(vec![bf16::from_f32(mine); 5000]),
            Reduction::Sum,
        )?;
        assert_eq!(sum, Buffer::BF16(vec![bf16::from_f32(258.0); 5000]));
        let mine = if c.rank() == 0 { 2048.0 } else { 1.0 };
        let sum = c.reduce_scatter(Buffer::F16(vec![f16::from_f32(mine); 3]))?;
        assert_eq!(sum, Buffer::F16(vec![f16::from_f32(2050.0)]));
        let sum = c.all_reduce(Buffer::I64(vec![i64::MAX]), Reduction::Sum)?;
        assert_eq!(sum, Buffer::I64(vec![i64::MAX.wrapping_mul(3)]));
        Ok(())
    };
    run(3, &patient(), body).unwrap();
}

#[test]
fn a_nan_on_any_rank_is_the_maximum() {
    let body = |c: Arc<dyn Communicator>| {
        let mut mine = [0.0f32; 3];
        mine[c.rank()] = f32::NAN;
        let max = c.all_reduce(f32s(&mine), Reduction::Max)?.into_f32()?;
        assert!(max.iter().all(|v| v.is_nan()), "{max:?}");
        Ok(())
    };
    run(3, &patient(), body).unwrap();
}

#[test]
fn ill_conditioned_sums_are_bitwise_equal_whatever_the_timing() {
    let seed = seed("ill_conditioned_sums_are_bitwise_equal_whatever_the_timing");
    for count in [64, 6000] {
        let ill = |rank: usize, i: usize| {
            let mut random = Random(seed ^ ((rank * 1_000_003 + i) as u64));
            let exponent = (random.next() % 60) as i32 - 30;
            (random.next() as f64 / 2f64.powi(63) - 1.0) as f32 * 2f32.powi(exponent)
        };
        let in_rank_order: Vec<u32> = (0..count)
            .map(|i| {
                (1..4)
                    .fold(ill(0, i), |sum, rank| sum + ill(rank, i))
                    .to_bits()
            })
            .collect();
        let reversed = (0..count).map(|i| {
            (0..3)
                .rev()
                .fold(ill(3, i), |sum, rank| sum + ill(rank, i))
                .to_bits()
        });
        assert!(
            in_rank_order.iter().copied().ne(reversed),
            "the sums are not ill-conditioned"
        );
        for round in 0..50 {
            let body = |c: Arc<dyn Communicator>| {
                let mut random = Random(seed ^ (round * 100 + c.rank() as u64));
                std::thread::sleep(Duration::from_micros(random.next() % 1000));
                let mine: Vec<f32> = (0..count).map(|i| ill(c.rank(), i)).collect();
                let sum = c.all_reduce(f32s(&mine), Reduction::Sum)?.into_f32()?;
                std::thread::sleep(Duration::from_micros(random.next() % 1000));
                let piece = c.reduce_scatter(f32s(&mine))?.into_f32()?;
                let at = c.rank() * count / 4;
                assert_eq!(piece, sum[at..at + count / 4]);
                Ok(sum.into_iter().map(f32::to_bits).collect::<Vec<_>>())
            };
            for sum in run(4, &patient(), body).unwrap() {
                assert_eq!(sum, in_rank_order);
            }
        }
    }
}

#[test]
fn sub_groups_have_their_own_ranks_order_and_results() {
    let body = |c: Arc<dyn Communicator>| {
        let (row, column) = (c.rank() / 2, c.rank() % 2);
        let tp = c.subgroup("tp", &[2 * row, 2 * row + 1])?;
        // Listed backwards: the group's order is that of the list.
        let dp = c.subgroup("dp", &[2 + column, column])?;
        assert_eq!((tp.rank(), tp.size(), tp.label()), (column, 2, "tp"));
        assert_eq!(
            (dp.rank(), dp.members()),
            (1 - row, &[2 + column, column][..])
        );
        let me = Buffer::I64(vec![c.rank() as i64]);
        let (low, high) = (2 * row as i64, 2 * row as i64 + 1);
        assert_eq!(tp.all_gather(me.clone())?, Buffer::I64(vec![low, high]));
        let (low, high) = (column as i64, 2 + column as i64);
        assert_eq!(dp.all_gather(me.clone())?, Buffer::I64(vec![high, low]));
        // A group of a group: only the rank asks that is in it.
        let alone = tp.subgroup("alone", &[tp.rank()])?;
        assert_eq!(alone.members(), [c.rank()]);
        assert_eq!(alone.all_reduce(me.clone(), Reduction::Sum)?, me);
        Ok(())
    };
    run(4, &patient(), body).unwrap();
}

#[test]
fn sub_groups_with_equal_names_are_independent() {
    let body = |c: Arc<dyn Communicator>| {
        let (one, two) = (c.subgroup("tp", &[0, 1])?, c.subgroup("tp", &[0, 1])?);
        let overlap = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                (0..200).try_for_each(|i| {
                    let sum = two.all_reduce(Buffer::I64(vec![i]), Reduction::Sum)?;
                    assert_eq!(sum, Buffer::I64(vec![2 * i]));
                    Ok(())
                })
            });
            for _ in 0..100 {
                assert_eq!(one.all_gather(f32s(&[1.0]))?.len(), 2);
            }
            thread.join().unwrap()
        });
        one.send(f32s(&[1.0]), 1 - c.rank())?;
        two.send(f32s(&[2.0]), 1 - c.rank())?;
        assert_eq!(two.recv(1 - c.rank())?, f32s(&[2.0]));
        assert_eq!(one.recv(1 - c.rank())?, f32s(&[1.0]));
        overlap
    };
    run(2, &patient(), body).unwrap();
}

#[test]
fn traffic_counts_calls_and_bytes_by_label_and_operation() {
    let body = |c: Arc<dyn Communicator>| {
        let ones = [c.subgroup("tp", &[0, 1])?, c.subgroup("tp", &[0, 1])?];
        for tp in &ones {
            tp.all_reduce(Buffer::BF16(vec![bf16::ONE; 10]), Reduction::Sum)?;
        }
        c.subgroup("alone", &[c.rank()])?
            .all_gather(Buffer::F64(vec![1.0]))?;
        c.broadcast(f32s(if c.rank() == 1 { &[1.0; 6] } else { &[] }), 1)?;
        c.barrier()?;
        match c.rank() {
            0 => c.send(Buffer::U8(vec![1; 5]), 1)?,
            _ => assert_eq!(ones[0].traffic(), c.traffic()),
        }
        if c.rank() == 1 {
            c.recv(0)?;
        }
        Ok(c.traffic())
    };
    let expected = |last: &'static str| {
        let count = |group: &str, operation, calls, bytes| Traffic {
            group: group.into(),
            operation,
            calls,
            bytes,
        };
        vec![
            count("alone", "all_gather", 1, 8),
            count("tp", "all_reduce", 2, 40),
            count("world", "broadcast", 1, 24),
            count("world", "barrier", 1, 0),
            count("world", last, 1, 5),
        ]
    };
    assert_eq!(
        run(2, &patient(), body).unwrap(),
        [expected("send"), expected("recv")]
    );
}

#[test]
fn a_world_of_one_needs_no_thread_and_copies_nothing() {
    let c = single();
    assert_eq!(
        (c.rank(), c.size(), c.members(), c.label()),
        (0, 1, &[0][..], "world")
    );
    let data = f32s(&[1.0; 100]);
    c.send(data.clone(), 0).unwrap();
    assert_eq!(c.recv(0).unwrap(), data);
    for _ in 0..10 {
        let place = |data: &Buffer| match data {
            Buffer::F32(v) => v.as_ptr(),
            _ => std::ptr::null(),
        };
        let mine = data.clone();
        let at = place(&mine);
        let got = c.all_reduce(mine, Reduction::Sum).unwrap();
        assert_eq!(place(&got), at, "the elements were copied");
    }
}

#[test]
fn ten_thousand_operations_in_groups_that_come_and_go() {
    let seed = seed("ten_thousand_operations_in_groups_that_come_and_go");
    let body = |c: Arc<dyn Communicator>| {
        // Equal on all ranks, so that all choose the same operations.
        let mut random = Random(seed);
        let rank = c.rank() as i64;
        let mut tp = c.subgroup("tp", &[2, 0, 1])?;
        for i in 0..10_000i64 {
            let group = if random.next().is_multiple_of(2) {
                &c
            } else {
                &tp
            };
            let next = (group.rank() + 1) % 3;
            match random.next() % 5 {
                0 => {
                    let count = if random.next().is_multiple_of(50) {
                        6000
                    } else {
                        3
                    };
                    let sum =
                        group.all_reduce(Buffer::I64(vec![rank + i; count]), Reduction::Sum)?;
                    assert_eq!(sum, Buffer::I64(vec![3 + 3 * i; count]));
                }
                1 => assert_eq!(group.all_gather(Buffer::I64(vec![i; c.rank()]))?.len(), 3),
                2 => group.barrier()?,
                3 => {
                    group.send(Buffer::I64(vec![i]), next)?;
                    assert_eq!(group.recv((group.rank() + 2) % 3)?, Buffer::I64(vec![i]));
                }
                _ => {
                    let sum = group.reduce_scatter(Buffer::I64(vec![i, i, i]))?;
                    assert_eq!(sum, Buffer::I64(vec![3 * i]));
                }
            }
            if i % 100 == 99 {
                tp = c.subgroup("tp", &[2, 0, 1])?;
            }
        }
        Ok(c.traffic().iter().map(|traffic| traffic.calls).sum::<u64>())
    };
    let calls = run(3, &patient(), body).unwrap();
    assert!(
        calls[0] >= 10_000 && calls.iter().all(|&n| n == calls[0]),
        "{calls:?}"
    );
}
