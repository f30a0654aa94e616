//! The planner's shortcuts equal what they stand for.

use burn::tensor::Device;
use burn_frontier::Layout;
use burn_frontier::comm::groups::Groups;
use burn_frontier::comm::local::{self, LocalOptions};
use burn_frontier::models::gpt::GptConfig;
use burn_frontier::parameter::{Module, Parameter, ParameterContext, ParameterSpec, Visitor};
use burn_frontier::pipeline::check::{Costs, check};
use burn_frontier::pipeline::schedule::{Kind, Schedule};
use burn_frontier::placement::Placement;
use burn_frontier::plan::Planned;
use burn_frontier::plan::makespan::{PassCosts, makespan};
use proptest::prelude::*;

fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![
        Just(Kind::GPipe),
        Just(Kind::OneForwardOneBackward),
        (2usize..4).prop_map(|chunks| Kind::Interleaved { chunks }),
    ]
}

/// Kind, stages, micro-batches (a multiple of the stages where that is needed).
fn sizes() -> impl Strategy<Value = (Kind, usize, usize)> {
    (kinds(), 1usize..6, 1usize..30).prop_map(|(kind, stages, n)| match kind {
        Kind::Interleaved { .. } => (kind, stages, n * stages),
        _ => (kind, stages, 4 * n + n % 3),
    })
}

/// Of a forward and of a backward pass.
fn cost() -> impl Strategy<Value = (f64, f64)> {
    (0.5f64..2.0, 0.5f64..4.0)
}

/// Relative error of the makespan of parts with such costs.
fn against_the_simulator(
    kind: Kind,
    stages: usize,
    micro_batches: usize,
    parts: &[(f64, f64)],
) -> f64 {
    let schedule = Schedule::new(kind, stages, micro_batches).unwrap();
    let costs = PassCosts {
        forward: parts.iter().map(|(forward, _)| *forward).collect(),
        backward: parts.iter().map(|(_, backward)| *backward).collect(),
        send: 0.0,
    };
    let all = Costs {
        forward: costs.forward.clone(),
        backward: costs.backward.clone(),
        ..Costs::uniform(&schedule, 0.0, 0.0)
    };
    let simulated = check(&schedule, &all).unwrap().makespan;
    (makespan(kind, stages, micro_batches, &costs).unwrap() / simulated - 1.0).abs()
}

proptest! {
    #[test]
    fn the_makespan_is_the_simulators_whatever_the_costs(
        (kind, stages, micro_batches) in sizes(),
        mut costs in prop::collection::vec(cost(), 18),
        alike in any::<bool>(),
    ) {
        let parts = stages * kind.chunks();
        if alike {
            // As in a model whose ends differ from its layers.
            let middle = costs[1];
            costs[1..parts.max(2) - 1].fill(middle);
        }
        let error = against_the_simulator(kind, stages, micro_batches, &costs[..parts]);
        prop_assert!(error <= 1e-3, "{error}");
    }

    #[test]
    fn messages_delay_as_they_do_in_the_simulator(
        stages in 2usize..6,
        micro_batches in 1usize..40,
        send in 0.0f64..0.5,
    ) {
        let kind = Kind::OneForwardOneBackward;
        let schedule = Schedule::new(kind, stages, micro_batches).unwrap();
        let simulated = check(&schedule, &Costs { send, ..Costs::uniform(&schedule, 1.0, 2.0) }).unwrap();
        let costs = PassCosts { forward: vec![1.0; stages], backward: vec![2.0; stages], send };
        let fast = makespan(kind, stages, micro_batches, &costs).unwrap();
        prop_assert!((fast - simulated.makespan).abs() <= 1e-6 * fast, "{fast} {}", simulated.makespan);
    }

    #[test]
    fn equal_passes_leave_the_bubble_of_the_formula(stages in 1usize..33, micro_batches in 1usize..200) {
        let costs = PassCosts { forward: vec![1.0; stages], backward: vec![2.0; stages], send: 0.0 };
        let span = makespan(Kind::OneForwardOneBackward, stages, micro_batches, &costs).unwrap();
        let bubble = 1.0 - 3.0 * micro_batches as f64 / span;
        let formula = (stages - 1) as f64 / (micro_batches + stages - 1) as f64;
        prop_assert!((bubble - formula).abs() < 1e-9, "{bubble} {formula}");
    }

    #[test]
    fn activations_alive_are_those_that_the_simulator_counts((kind, stages, micro_batches) in sizes()) {
        let schedule = Schedule::new(kind, stages, micro_batches).unwrap();
        let report = check(&schedule, &Costs::uniform(&schedule, 1.0, 2.0)).unwrap();
        for (stage, &peak) in report.peak_activations.iter().enumerate() {
            prop_assert_eq!(kind.activations_alive(stages, stage, micro_batches), peak);
        }
    }
}

#[test]
fn the_parameters_planned_are_those_allocated() {
    struct List(Vec<ParameterSpec>, usize);
    impl Visitor for List {
        fn visit<const D: usize>(&mut self, parameter: &mut Parameter<D>) {
            self.0.push((*parameter.spec).clone());
            self.1 += parameter.count();
        }
    }
    let gpt = GptConfig::new(3, 32, 4, 300, 16);
    let forms = [
        gpt.clone(),
        gpt.clone().modern().with_kv_heads(2),
        gpt.with_kv_heads(2),
    ];
    for (model, sequence_parallel) in forms
        .iter()
        .flat_map(|model| [(model, false), (model, true)])
    {
        let layout = Layout {
            tp: 2,
            ..Layout::single()
        };
        local::run(2, &LocalOptions::default(), |world| {
            let groups = Groups::new(layout, world)?;
            let context = ParameterContext {
                sequence_parallel,
                ..ParameterContext::new(1, &groups, Device::flex())
            };
            for part in [0..1, 1..3, 0..3] {
                let mut list = List(Vec::new(), 0);
                model.init_part(part.clone(), &context).visit(&mut list);
                let planned = model.part_specs(part, &context.replicated_gradient());
                assert_eq!(planned, list.0);
                let count = |spec: &ParameterSpec| -> usize {
                    spec.placement.local_shape(&spec.shape, 2).iter().product()
                };
                assert_eq!(planned.iter().map(count).sum::<usize>(), list.1);
            }
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn the_layers_that_the_planner_takes_to_be_alike_are() {
    let gradient = Placement::Replicated;
    let gpt = GptConfig::new(7, 32, 4, 300, 16);
    for model in [gpt.clone(), gpt.modern()] {
        for part in [0..1, 0..2, 0..7, 2..5, 3..7, 6..7] {
            let mut planned = Vec::new();
            if part.start == 0 {
                planned.extend(model.first_specs(&gradient));
            }
            for _ in part.clone() {
                planned.extend(model.layer_specs(&gradient));
            }
            if part.end == model.layers {
                planned.extend(model.last_specs(&gradient));
            }
            let shown = |spec: &ParameterSpec| ParameterSpec {
                name: match model.tied() == Some(spec.name.as_str()) {
                    true => "the tied table".into(),
                    false => "another".into(),
                },
                ..spec.clone()
            };
            let planned: Vec<_> = planned.iter().map(shown).collect();
            let all = model.part_specs(part.clone(), &gradient);
            assert_eq!(
                planned,
                all.iter().map(shown).collect::<Vec<_>>(),
                "{part:?}"
            );
        }
    }
}
