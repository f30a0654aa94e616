//! Pipeline schedules: the orders are those of the papers, they run to their end, and bad ones are refused.

use burn_frontier::pipeline::check::{Costs, Report, check};
use burn_frontier::pipeline::schedule::{Instruction, Kind, Payload, Schedule};

const TWO_CHUNKS: Kind = Kind::Interleaved { chunks: 2 };

fn schedule(kind: Kind, stages: usize, micro_batches: usize) -> Schedule {
    Schedule::new(kind, stages, micro_batches).unwrap()
}

fn timed(schedule: &Schedule, forward: f64, backward: f64) -> Report {
    check(schedule, &Costs::uniform(schedule, forward, backward)).unwrap()
}

/// Every schedule of at most 8 stages, 16 micro-batches and 4 chunks.
fn all_schedules() -> Vec<Schedule> {
    let kinds = [
        Kind::GPipe,
        Kind::OneForwardOneBackward,
        TWO_CHUNKS,
        Kind::Interleaved { chunks: 3 },
        Kind::Interleaved { chunks: 4 },
    ];
    let mut all = Vec::new();
    for kind in kinds {
        for stages in 1..=8 {
            let multiple = if kind.chunks() > 1 { stages } else { 1 };
            let counts = (1..=16).filter(|count| count % multiple == 0);
            all.extend(counts.map(|count| schedule(kind, stages, count)));
        }
    }
    all
}

fn refusal(schedule: &Schedule) -> String {
    check(schedule, &Costs::uniform(schedule, 1.0, 1.0))
        .unwrap_err()
        .to_string()
}

fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-9 * b.abs().max(1.0)
}

fn receive(what: Payload, micro_batch: usize) -> Instruction {
    Instruction::Receive {
        what,
        micro_batch,
        chunk: 0,
    }
}

fn send(what: Payload, micro_batch: usize) -> Instruction {
    Instruction::Send {
        what,
        micro_batch,
        chunk: 0,
    }
}

fn forward(micro_batch: usize) -> Instruction {
    Instruction::Forward {
        micro_batch,
        chunk: 0,
    }
}

fn backward(micro_batch: usize) -> Instruction {
    Instruction::Backward {
        micro_batch,
        chunk: 0,
    }
}

fn position(order: &[Instruction], wanted: Instruction) -> usize {
    order
        .iter()
        .position(|&instruction| instruction == wanted)
        .unwrap()
}

#[test]
fn gpipe_runs_all_forward_passes_then_all_backward_passes() {
    let expected = "\
stage 0: F0 F1 F2 F3 B0 B1 B2 B3
stage 1: F0 F1 F2 F3 B0 B1 B2 B3
stage 2: F0 F1 F2 F3 B0 B1 B2 B3";
    assert_eq!(schedule(Kind::GPipe, 3, 4).to_string(), expected);
}

#[test]
fn one_forward_one_backward_has_the_order_of_the_paper() {
    let expected = "\
stage 0: F0 F1 F2 F3 B0 F4 B1 F5 B2 F6 B3 F7 B4 B5 B6 B7
stage 1: F0 F1 F2 B0 F3 B1 F4 B2 F5 B3 F6 B4 F7 B5 B6 B7
stage 2: F0 F1 B0 F2 B1 F3 B2 F4 B3 F5 B4 F6 B5 F7 B6 B7
stage 3: F0 B0 F1 B1 F2 B2 F3 B3 F4 B4 F5 B5 F6 B6 F7 B7";
    assert_eq!(
        schedule(Kind::OneForwardOneBackward, 4, 8).to_string(),
        expected
    );
}

#[test]
fn interleaved_with_2_stages_has_the_order_of_megatron() {
    let expected = "\
stage 0: F0.0 F1.0 F0.1 F1.1 F2.0 B0.1 F3.0 B1.1 F2.1 B0.0 F3.1 B1.0 B2.1 B3.1 B2.0 B3.0
stage 1: F0.0 F1.0 F0.1 B0.1 F1.1 B1.1 F2.0 B0.0 F3.0 B1.0 F2.1 B2.1 F3.1 B3.1 B2.0 B3.0";
    assert_eq!(schedule(TWO_CHUNKS, 2, 4).to_string(), expected);
}

#[test]
fn interleaved_with_4_stages_has_the_order_of_megatron() {
    let expected = [
        // Warm-up of 10, 8, 6 and 4 forward passes; then forward and backward in turn; then backward passes.
        concat!(
            "stage 0: F0.0 F1.0 F2.0 F3.0 F0.1 F1.1 F2.1 F3.1 F4.0 F5.0 ",
            "F6.0 B0.1 F7.0 B1.1 F4.1 B2.1 F5.1 B3.1 F6.1 B0.0 F7.1 B1.0 ",
            "B2.0 B3.0 B4.1 B5.1 B6.1 B7.1 B4.0 B5.0 B6.0 B7.0"
        ),
        concat!(
            "stage 1: F0.0 F1.0 F2.0 F3.0 F0.1 F1.1 F2.1 F3.1 ",
            "F4.0 B0.1 F5.0 B1.1 F6.0 B2.1 F7.0 B3.1 F4.1 B0.0 F5.1 B1.0 F6.1 B2.0 F7.1 B3.0 ",
            "B4.1 B5.1 B6.1 B7.1 B4.0 B5.0 B6.0 B7.0"
        ),
        concat!(
            "stage 2: F0.0 F1.0 F2.0 F3.0 F0.1 F1.1 ",
            "F2.1 B0.1 F3.1 B1.1 F4.0 B2.1 F5.0 B3.1 F6.0 B0.0 F7.0 B1.0 F4.1 B2.0 F5.1 B3.0 ",
            "F6.1 B4.1 F7.1 B5.1 B6.1 B7.1 B4.0 B5.0 B6.0 B7.0"
        ),
        concat!(
            "stage 3: F0.0 F1.0 F2.0 F3.0 ",
            "F0.1 B0.1 F1.1 B1.1 F2.1 B2.1 F3.1 B3.1 F4.0 B0.0 F5.0 B1.0 F6.0 B2.0 F7.0 B3.0 ",
            "F4.1 B4.1 F5.1 B5.1 F6.1 B6.1 F7.1 B7.1 B4.0 B5.0 B6.0 B7.0"
        ),
    ];
    assert_eq!(schedule(TWO_CHUNKS, 4, 8).to_string(), expected.join("\n"));
}

#[test]
fn communication_surrounds_the_passes_and_the_reduction_precedes_the_step() {
    use Payload::{Activation, Gradient};
    let schedule = schedule(Kind::OneForwardOneBackward, 3, 2);
    let expected = [
        receive(Activation, 0),
        forward(0),
        send(Activation, 0),
        receive(Activation, 1),
        forward(1),
        send(Activation, 1),
        receive(Gradient, 0),
        backward(0),
        send(Gradient, 0),
        receive(Gradient, 1),
        backward(1),
        send(Gradient, 1),
        Instruction::Reduce { chunk: 0 },
        Instruction::Step,
    ];
    assert_eq!(schedule.orders[1], expected);
    let to = schedule.message(1, &send(Activation, 0)).unwrap();
    assert_eq!((to.from, to.to, to.part), (1, 2, 2));
    assert_eq!(schedule.message(0, &receive(Activation, 0)), None);
}

#[test]
fn one_stage_communicates_nothing() {
    for kind in [Kind::OneForwardOneBackward, TWO_CHUNKS] {
        let schedule = schedule(kind, 1, 4);
        let talks =
            |i: &Instruction| matches!(i, Instruction::Send { .. } | Instruction::Receive { .. });
        assert!(!schedule.orders[0].iter().any(talks), "{schedule}");
    }
}

#[test]
fn every_generated_schedule_runs_to_its_end() {
    for schedule in all_schedules() {
        let mut costs = Costs::uniform(&schedule, 1.0, 2.0);
        costs.send = 0.25;
        let report = check(&schedule, &costs).unwrap_or_else(|error| panic!("{error}\n{schedule}"));
        let work = 3.0 * (schedule.micro_batches * schedule.kind.chunks()) as f64;
        assert!(
            report.busy.iter().all(|&busy| close(busy, work)),
            "{schedule}"
        );
        assert!(report.makespan >= work, "{schedule}");
        let instructions: usize = schedule.orders.iter().map(Vec::len).sum();
        assert_eq!(report.timeline.len(), instructions);
    }
}

#[test]
fn the_bubble_is_that_of_the_paper_and_chunks_divide_it() {
    for schedule in all_schedules() {
        let (stages, micro_batches) = (schedule.stages as f64, schedule.micro_batches as f64);
        let report = timed(&schedule, 1.0, 2.0);
        let bubble = (stages - 1.0) / schedule.kind.chunks() as f64;
        let expected = bubble / (micro_batches + bubble);
        assert!(
            close(report.bubble_fraction(), expected),
            "{} instead of {expected}\n{schedule}",
            report.bubble_fraction()
        );
    }
}

#[test]
fn activations_alive_are_bounded_as_the_papers_say() {
    for schedule in all_schedules() {
        let (stages, micro_batches) = (schedule.stages, schedule.micro_batches);
        let peak = timed(&schedule, 1.0, 1.0).peak_activations;
        for (stage, peak) in peak.into_iter().enumerate() {
            let expected = match schedule.kind {
                Kind::GPipe => micro_batches,
                Kind::OneForwardOneBackward => (stages - stage).min(micro_batches),
                Kind::Interleaved { chunks } => {
                    let warm_up = 2 * (stages - stage - 1) + (chunks - 1) * stages;
                    (warm_up + 1).min(micro_batches * chunks)
                }
            };
            assert_eq!(peak, expected, "stage {stage}\n{schedule}");
        }
    }
}

#[test]
fn messages_take_time_and_share_their_link() {
    let one = schedule(Kind::GPipe, 2, 1);
    let mut costs = Costs::uniform(&one, 1.0, 2.0);
    costs.send = 0.5;
    assert!(close(
        check(&one, &costs).unwrap().makespan,
        1.0 + 0.5 + 1.0 + 2.0 + 0.5 + 2.0
    ));
    // Three activations of 10 follow each other on the link; then one gradient of 10 comes back.
    let three = schedule(Kind::GPipe, 2, 3);
    costs.send = 10.0;
    let report = check(&three, &costs).unwrap();
    let arrivals: Vec<_> = report
        .timeline
        .iter()
        .filter(|e| e.stage == 0 && matches!(e.instruction, Instruction::Send { .. }))
        .map(|e| (e.start, e.end))
        .collect();
    assert_eq!(arrivals, [(1.0, 11.0), (11.0, 21.0), (21.0, 31.0)]);
    // The last gradient leaves its link after three transits that begin with the first backward pass.
    assert!(close(report.makespan, 31.0 + 1.0 + 2.0 + 30.0 + 2.0));
}

#[test]
fn overlapped_reductions_hide_behind_passes_and_the_step_waits_for_all_of_them() {
    let schedule = schedule(TWO_CHUNKS, 2, 2);
    let mut costs = Costs::uniform(&schedule, 1.0, 1.0);
    costs.reduce = vec![1.5; 4];
    costs.step = vec![0.5, 0.25];
    let passes = timed(&schedule, 1.0, 1.0).makespan;
    let overlapped = check(&schedule, &costs).unwrap();
    // Of two reductions on a stage only the part after its last pass shows.
    assert!(
        overlapped.makespan < passes + 2.0 * 1.5,
        "{}",
        overlapped.makespan
    );
    costs.overlap_reduce = false;
    let exposed = check(&schedule, &costs).unwrap();
    assert!(exposed.makespan > overlapped.makespan);
    assert!(
        close(exposed.busy[0], 8.0 + 2.0 * 1.5 + 0.5),
        "{:?}",
        exposed.busy
    );
    for report in [overlapped, exposed] {
        let steps = report
            .timeline
            .iter()
            .filter(|e| e.instruction == Instruction::Step);
        let starts: Vec<_> = steps.map(|e| e.start).collect();
        let reduced = report
            .timeline
            .iter()
            .filter(|e| matches!(e.instruction, Instruction::Reduce { .. }))
            .map(|e| e.end)
            .fold(0.0, f64::max);
        assert_eq!(starts, [reduced; 2]);
        assert_eq!(report.makespan, reduced + 0.5);
    }
}

#[test]
fn a_slow_part_sets_the_pace() {
    let schedule = schedule(Kind::OneForwardOneBackward, 4, 16);
    let mut costs = Costs::uniform(&schedule, 1.0, 2.0);
    costs.forward[3] = 2.0;
    let report = check(&schedule, &costs).unwrap();
    // The last stage works without a pause between the first activation and the last gradient.
    assert!(
        close(report.makespan, 3.0 + 16.0 * 4.0 + 6.0),
        "{}",
        report.makespan
    );
}

#[test]
fn a_deadlock_names_every_blocked_stage_and_what_it_waits_for() {
    use Payload::{Activation, Gradient};
    let mut schedule = schedule(Kind::GPipe, 2, 2);
    // Stage 0 wants the first gradient before it sends the activation that stage 1 wants before that gradient.
    schedule.orders[0] = vec![
        forward(0),
        send(Activation, 0),
        receive(Gradient, 0),
        backward(0),
        forward(1),
        send(Activation, 1),
        receive(Gradient, 1),
        backward(1),
        Instruction::Reduce { chunk: 0 },
        Instruction::Step,
    ];
    assert_contains(
        &refusal(&schedule),
        &[
            "deadlock",
            "stage 0 is blocked at instruction 2 (receive gradient of micro-batch 0 for chunk 0), waiting for stage 1",
            "stage 1 is blocked at instruction 2 (receive activation of micro-batch 1 for chunk 0), waiting for stage 0",
        ],
    );
}

#[test]
fn sends_in_another_order_than_their_receives_are_refused() {
    let mut schedule = schedule(Kind::GPipe, 2, 3);
    let first = position(&schedule.orders[0], send(Payload::Activation, 0));
    let second = position(&schedule.orders[0], send(Payload::Activation, 1));
    // Both after their passes, but in the wrong order.
    schedule.orders[0].insert(second + 1, send(Payload::Activation, 0));
    schedule.orders[0].remove(first);
    assert_contains(
        &refusal(&schedule),
        &[
            "message 0 from stage 0 to stage 1",
            "activation of micro-batch 1",
            "received as the activation of micro-batch 0",
        ],
    );
}

#[test]
fn a_lost_backward_pass_is_refused() {
    let mut schedule = schedule(Kind::OneForwardOneBackward, 2, 4);
    let at = position(&schedule.orders[0], backward(2));
    schedule.orders[0].remove(at);
    assert_contains(
        &refusal(&schedule),
        &[
            "stage 0",
            "needs `backward of micro-batch 2 on chunk 0` first, which the list lacks",
        ],
    );
}

#[test]
fn a_forward_pass_done_twice_is_refused() {
    let mut schedule = schedule(Kind::OneForwardOneBackward, 2, 4);
    let at = position(&schedule.orders[1], forward(1));
    schedule.orders[1].insert(at + 1, forward(1));
    assert_contains(
        &refusal(&schedule),
        &[
            "stage 1",
            "`forward of micro-batch 1 on chunk 0` is done a second time",
        ],
    );
}

#[test]
fn a_backward_pass_before_its_forward_pass_is_refused() {
    let mut schedule = schedule(Kind::OneForwardOneBackward, 1, 2);
    schedule.orders[0].swap(0, 1);
    assert_contains(&refusal(&schedule), &["instruction 0", "which comes later"]);
}

#[test]
fn a_reduction_before_the_last_backward_pass_is_refused() {
    let mut schedule = schedule(Kind::OneForwardOneBackward, 2, 4);
    let reduce = Instruction::Reduce { chunk: 0 };
    let at = position(&schedule.orders[0], reduce);
    schedule.orders[0].remove(at);
    let at = position(&schedule.orders[0], backward(3));
    schedule.orders[0].insert(at, reduce);
    assert_contains(
        &refusal(&schedule),
        &[
            "`reduce gradients of chunk 0`",
            "backward of micro-batch 3",
            "which comes later",
        ],
    );
}

#[test]
fn no_instruction_can_be_left_out_or_repeated() {
    for kind in [Kind::GPipe, Kind::OneForwardOneBackward, TWO_CHUNKS] {
        for stages in 1..=3 {
            let whole = schedule(kind, stages, stages);
            for stage in 0..stages {
                for at in 0..whole.orders[stage].len() {
                    let mut less = whole.clone();
                    let instruction = less.orders[stage].remove(at);
                    refusal(&less);
                    let mut more = whole.clone();
                    more.orders[stage].insert(at, instruction);
                    refusal(&more);
                }
            }
        }
    }
}

#[test]
fn lists_and_costs_of_another_size_are_refused() {
    let good = schedule(Kind::GPipe, 2, 2);
    let mut bad = good.clone();
    bad.orders.pop();
    assert_contains(&refusal(&bad), &["has 1 lists"]);
    let mut bad = good.clone();
    bad.orders[0][0] = forward(7);
    assert_contains(&refusal(&bad), &["stage 0, instruction 0", "micro-batch 7"]);
    let mut bad = good.clone();
    bad.orders[0].insert(0, receive(Payload::Activation, 0));
    assert_contains(&refusal(&bad), &["no other stage"]);
    let mut costs = Costs::uniform(&good, 1.0, 1.0);
    costs.backward[1] = f64::NAN;
    assert_contains(
        &check(&good, &costs).unwrap_err().to_string(),
        &["backward costs"],
    );
    let mut costs = Costs::uniform(&good, 1.0, 1.0);
    costs.step.pop();
    assert_contains(
        &check(&good, &costs).unwrap_err().to_string(),
        &["step costs", "give 2"],
    );
}

#[test]
fn sizes_that_cannot_run_say_what_would() {
    let error = |kind, stages, micro_batches| {
        Schedule::new(kind, stages, micro_batches)
            .unwrap_err()
            .to_string()
    };
    assert_contains(&error(TWO_CHUNKS, 4, 6), &["use 4 or 8 of them, or 1f1b"]);
    assert_contains(&error(TWO_CHUNKS, 4, 3), &["use 4 of them, or 1f1b"]);
    assert_contains(
        &error(Kind::Interleaved { chunks: 1 }, 4, 4),
        &["at least 2 chunks"],
    );
    assert_contains(&error(Kind::GPipe, 0, 4), &["at least one stage"]);
    assert_contains(&error(Kind::GPipe, usize::MAX, 4), &["smaller numbers"]);
    assert_contains(&error(Kind::GPipe, 4, 1 << 40), &["smaller numbers"]);
    let chunks = usize::MAX;
    assert_contains(
        &error(Kind::Interleaved { chunks }, 4, 4),
        &["smaller numbers"],
    );
}

#[test]
fn a_schedule_survives_serialisation() {
    let schedule = schedule(TWO_CHUNKS, 2, 4);
    let text = serde_json::to_string(&schedule).unwrap();
    assert_contains(&text, &["\"interleaved:2\""]);
    assert_eq!(serde_json::from_str::<Schedule>(&text).unwrap(), schedule);
}

#[test]
fn chunks_of_a_stage_are_a_whole_pipeline_apart() {
    let schedule = schedule(TWO_CHUNKS, 2, 2);
    let parts = [(0, 0), (1, 0), (0, 1), (1, 1)].map(|(stage, chunk)| schedule.part(stage, chunk));
    assert_eq!(parts, [0, 1, 2, 3]);
}
