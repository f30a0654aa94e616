//! Biases, wherever they lie.

use std::collections::{HashMap, HashSet};

use frontier_kernels::attention::reference::Inputs;
use frontier_kernels::attention::{BiasStrides, Plan, Problem};
use frontier_kernels::hip::run::Sanitizer;
use frontier_kernels::matrix::instruction::{Element, Target};

use super::Harness;
use super::cases::ELEMENTS;
use super::cases::attention::{Run, check, compare, evoformer, fma, inputs};
use super::cases::biases::layouts;
use super::evoformer::{golden, numbers};

#[test]
fn two_biases_give_the_golden_values_of_the_evoformer() {
    for (case, biases) in [
        ("both", [true, true]),
        ("bias1_only", [true, false]),
        ("bias2_only", [false, true]),
        ("none", [false, false]),
    ] {
        // [B, N, S, H, D] = [1, 2, 18, 2, 4]
        let mut problem = Problem::new(2, 2, 18, 18, 4);
        evoformer(&mut problem, 2);
        for (bias, present) in problem.bias.iter_mut().zip(biases) {
            *bias = bias.filter(|_| present);
        }
        let tensor = |seed| numbers(seed, 2 * 18 * 2 * 4);
        let inputs = Inputs {
            q: tensor(1),
            k: tensor(2),
            v: tensor(3),
            bias: [numbers(4, 2 * 18), numbers(5, 2 * 18 * 18)],
            ..Inputs::default()
        };
        let (o, lse) = (golden(case, "o"), golden(case, "lse"));
        for plan in [
            Plan::choose(Target::Gfx90a, Element::F32, &problem).unwrap(),
            fma(Target::Gfx90a, Element::F32, &problem),
        ] {
            let [found, found_lse] =
                Harness::new(&plan).attend(&plan, &problem, &inputs, [o.len(), lse.len()]);
            compare(&plan, &problem, [&found, &found_lse], [&o, &lse]);
        }
    }
}

#[test]
fn biases_of_many_entries_are_added() {
    let targets = ELEMENTS.map(|element| (Target::Gfx90a, element));
    for (target, element) in targets.into_iter().chain([(Target::Cuda, Element::Bf16)]) {
        let mut problem = Problem::new(4, 2, 70, 130, 32);
        evoformer(&mut problem, 2);
        let plan = Plan::choose(target, element, &problem).unwrap();
        let inputs = inputs(element, &problem, 11);
        check(&Harness::new(&plan), &plan, &problem, &inputs);
    }
}

#[test]
fn biases_broadcast_along_any_dimension_and_lie_anywhere() {
    let mut widths = HashSet::new();
    for (target, element, sizes) in [
        (Target::Gfx90a, Element::Bf16, &[[36, 132], [35, 131]][..]),
        (Target::Gfx942, Element::F32, &[[18, 98]]),
        (Target::Cuda, Element::F16, &[[20, 70]]),
    ] {
        // A text takes longer than a launch: once for all layouts that share it.
        let mut harnesses = HashMap::new();
        for &[queries, keys] in sizes {
            let problem = Problem::new(4, 2, queries, keys, 32);
            for (i, bias) in layouts(&problem).into_iter().enumerate() {
                let problem = Problem {
                    bias: bias.map(Some),
                    ..problem
                };
                let plan = Plan::choose(target, element, &problem).unwrap();
                widths.extend(plan.bias().iter().flatten().map(|bias| bias.width));
                let harness = harnesses
                    .entry(plan.clone())
                    .or_insert_with(|| Harness::new(&plan));
                let inputs = inputs(element, &problem, i as u64);
                check(harness.order(i as u64), &plan, &problem, &inputs);
            }
        }
    }
    assert_eq!(widths, HashSet::from([1, 2, 4]));
}

#[test]
fn a_bias_that_is_the_same_for_all_keys_changes_the_log_sum_exp_only() {
    let mut problem = Problem::new(2, 2, 40, 70, 32);
    let of_queries = BiasStrides {
        head: 40,
        query: 1,
        ..BiasStrides::default()
    };
    problem.bias = [None, Some(of_queries)];
    let plan = Plan::choose(Target::Gfx90a, Element::Bf16, &problem).unwrap();
    let inputs = inputs(plan.element(), &problem, 4);
    check(&Harness::new(&plan), &plan, &problem, &inputs);
}

#[test]
fn a_mask_is_added_where_shared_memory_is_full() {
    let mut problem = Problem::new(2, 1, 20, 70, 256);
    evoformer(&mut problem, 1);
    for target in [Target::Gfx90a, Target::Cuda] {
        let plan = Plan::choose(target, Element::Bf16, &problem).unwrap();
        let harness = Harness::new(&plan);
        assert!(harness.source.shared_memory <= target.shared_memory());
        let inputs = inputs(plan.element(), &problem, 6);
        check(&harness, &plan, &problem, &inputs);
    }
}

#[test]
fn biases_are_read_within_their_buffers_and_staged_without_a_race() {
    for sanitizer in [Sanitizer::Thread, Sanitizer::Address] {
        for keys in [100, 99] {
            let mut problem = Problem::new(2, 2, 30, keys, 32);
            evoformer(&mut problem, 2);
            let plan = Plan::choose(Target::Gfx90a, Element::Bf16, &problem).unwrap();
            let mut harness = Harness::new(&plan);
            harness.sanitizer = sanitizer;
            let inputs = inputs(Element::Bf16, &problem, 2);
            check(&harness, &plan, &problem, &inputs);
        }
    }
}
