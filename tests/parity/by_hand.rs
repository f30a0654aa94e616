//! Schedules made by hand: any order that the checker proves is run, and has one rank's answer.

use burn::tensor::Device;
use burn_frontier::Layout;
use burn_frontier::comm::groups::Groups;
use burn_frontier::comm::local::{self, LocalOptions};
use burn_frontier::parameter::ParameterContext;
use burn_frontier::pipeline::schedule::{Instruction, Kind, Payload, Schedule};

use crate::config;
use crate::harness::{Run, assert_agrees};

/// GPipe whose backward passes come last in, first out: no kind has this order.
fn last_in_first_out(stages: usize, micro_batches: usize) -> Schedule {
    let order = |stage: usize| {
        let mut order = Vec::new();
        let mut passes = |what, from: bool, to: bool, k: usize| {
            let (micro_batch, chunk) = (k, 0);
            let pass = match what {
                Payload::Activation => Instruction::Forward { micro_batch, chunk },
                Payload::Gradient => Instruction::Backward { micro_batch, chunk },
            };
            order.extend(from.then_some(Instruction::Receive {
                what,
                micro_batch,
                chunk,
            }));
            order.push(pass);
            order.extend(to.then_some(Instruction::Send {
                what,
                micro_batch,
                chunk,
            }));
        };
        let (before, behind) = (stage > 0, stage + 1 < stages);
        (0..micro_batches).for_each(|k| passes(Payload::Activation, before, behind, k));
        (0..micro_batches)
            .rev()
            .for_each(|k| passes(Payload::Gradient, behind, before, k));
        order.extend([Instruction::Reduce { chunk: 0 }, Instruction::Step]);
        order
    };
    Schedule {
        kind: Kind::GPipe,
        stages,
        micro_batches,
        orders: (0..stages).map(order).collect(),
    }
}

#[test]
fn a_schedule_made_by_hand_has_one_ranks_answer() {
    let one = Run {
        steps: 8,
        ..Run::single(config())
    };
    let answer = one.train().unwrap();
    for (pp, dp, zero, overlap) in [(1, 1, 0, false), (2, 1, 0, true), (4, 2, 1, true)] {
        let run = Run {
            layout: Layout {
                pp,
                dp,
                ..Layout::single()
            },
            kind: Kind::GPipe,
            schedule: Some(last_in_first_out(pp, 4 / dp)),
            micro_batch: 2,
            zero,
            overlap,
            ..one.clone()
        };
        assert_agrees(&run.train().unwrap(), &answer, &format!("pp {pp}, dp {dp}"));
    }
}

/// Two stages that are given `schedule`, in steps of four micro-batches.
fn two_stages(schedule: Schedule) -> Run {
    Run {
        layout: Layout {
            pp: 2,
            ..Layout::single()
        },
        kind: Kind::GPipe,
        schedule: Some(schedule),
        micro_batch: 2,
        steps: 1,
        ..Run::single(config())
    }
}

#[test]
fn a_schedule_that_cannot_run_is_refused_before_anything_runs() {
    let good = || last_in_first_out(2, 4);
    let mut early = good();
    early.orders[1].swap(0, 1);
    let mut stuck = good();
    // Stage 0 wants a gradient before it has sent all that the last stage begins with.
    stuck.orders[0] = Schedule::new(Kind::OneForwardOneBackward, 2, 4)
        .unwrap()
        .orders[0]
        .clone();
    let mut lost = good();
    lost.orders[0].retain(|i| *i != Instruction::Reduce { chunk: 0 });
    for (schedule, part) in [
        (
            early,
            "stage 1, instruction 0: `forward of micro-batch 0 on chunk 0` needs",
        ),
        (stuck, "received as"),
        (lost, "which the list lacks"),
        (
            last_in_first_out(3, 4),
            "a schedule of 3 stages of 1 chunks for a pipeline of 2",
        ),
        (
            last_in_first_out(2, 3),
            "4 micro-batches under a schedule of 3",
        ),
    ] {
        let error = two_stages(schedule).train().unwrap_err().to_string();
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
    two_stages(good()).train().unwrap();
}

#[test]
fn ranks_with_different_schedules_are_told() {
    let run = two_stages(last_in_first_out(2, 4));
    let error = local::run(2, &LocalOptions::default(), |world| {
        let groups = Groups::new(run.layout, world)?;
        let context = ParameterContext::new(1, &groups, Device::flex());
        let pipeline = run.config.init(run.kind, &groups, &context)?;
        // Both are whole, and each rank's own list is the same in length.
        let mine = match groups.at.pp {
            0 => last_in_first_out(2, 4),
            _ => Schedule::new(Kind::GPipe, 2, 4)?,
        };
        pipeline.with_schedule(mine).map(drop)
    });
    let error = error.unwrap_err().to_string();
    assert!(error.contains("different schedules"), "{error}");
}
