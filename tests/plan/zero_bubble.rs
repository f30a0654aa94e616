//! ZB-H1 as data: a proper order, the published bubble, and never a longer step than 1F1B's.

use burn_frontier::pipeline::schedule::Kind;
use burn_frontier::plan::makespan::{self, PassCosts};
use burn_frontier::plan::zero_bubble::{Costs, Work, execute, order};
use proptest::prelude::*;

/// Equal stages.
fn costs(stages: usize, forward: f64, input: f64, weight: f64, send: f64) -> Costs {
    Costs {
        forward: vec![forward; stages],
        input: vec![input; stages],
        weight: vec![weight; stages],
        send,
    }
}

fn makespan(stages: usize, micro_batches: usize, costs: &Costs) -> f64 {
    execute(stages, micro_batches, costs).unwrap().makespan
}

proptest! {
    #[test]
    fn every_stage_does_everything_in_order_and_holds_as_many_as_there_are_stages(
        stages in 1usize..9,
        micro_batches in 1usize..30,
    ) {
        for stage in 0..stages {
            let order = order(stages, stage, micro_batches);
            prop_assert_eq!(order.len(), 3 * micro_batches);
            let (mut forward, mut input, mut weight) = (0, 0, 0);
            for work in order {
                match work {
                    Work::Forward(k) => { prop_assert_eq!(k, forward); forward += 1; }
                    Work::Input(k) => { prop_assert_eq!(k, input); input += 1; }
                    Work::Weight(k) => { prop_assert_eq!(k, weight); weight += 1; }
                }
                prop_assert!(weight <= input && input <= forward);
                prop_assert!(forward - weight <= stages);
            }
            prop_assert_eq!((forward, input, weight), (micro_batches, micro_batches, micro_batches));
        }
    }

    /// arXiv 2401.10241, table 1: (p - 1)(t_F + t_B - t_W), where gradients of weights are the shortest pass.
    #[test]
    fn the_bubble_is_that_of_the_formula(
        stages in 1usize..17,
        rounds in 1usize..20,
        left in 0usize..16,
        weight in 0.1f64..1.0,
        (forward, input) in (0.0f64..2.0, 0.0f64..2.0),
    ) {
        let (forward, input) = (weight + forward, weight + input);
        let micro_batches = rounds * stages + left % stages;
        let span = makespan(stages, micro_batches, &costs(stages, forward, input, weight, 0.0));
        let bubble = span - micro_batches as f64 * (forward + input + weight);
        let formula = (stages - 1) as f64 * (forward + input - weight);
        prop_assert!((bubble - formula).abs() < 1e-9 * span, "{bubble} {formula}");
    }

    #[test]
    fn the_step_is_not_longer_than_that_of_1f1b(
        stages in 1usize..9,
        micro_batches in 1usize..60,
        (forward, input, weight) in (0.1f64..3.0, 0.1f64..3.0, 0.1f64..3.0),
        send in 0.0f64..0.5,
    ) {
        let split = makespan(stages, micro_batches, &costs(stages, forward, input, weight, send));
        let whole = PassCosts { forward: vec![forward; stages], backward: vec![input + weight; stages], send };
        let whole = makespan::makespan(Kind::OneForwardOneBackward, stages, micro_batches, &whole).unwrap();
        prop_assert!(split <= whole * (1.0 + 1e-12), "{split} {whole}");
    }
}

#[test]
fn equal_passes_leave_a_third_of_the_bubble_of_1f1b() {
    let (stages, micro_batches) = (8, 64);
    let span = makespan(stages, micro_batches, &costs(stages, 1.0, 1.0, 1.0, 0.0));
    assert!((span - (3.0 * 64.0 + 7.0)).abs() < 1e-9, "{span}");
}

#[test]
fn costs_of_other_stages_are_refused() {
    assert!(execute(2, 4, &costs(3, 1.0, 1.0, 1.0, 0.0)).is_err());
    assert!(execute(2, 0, &costs(2, 1.0, 1.0, 1.0, 0.0)).is_err());
}
