//! Plans that are timed against each other differ in nothing else.

use std::collections::HashSet;

use frontier_kernels::attention::backward::reference::Gradients;
use frontier_kernels::attention::backward::{GradientStrides, Plans};
use frontier_kernels::attention::{BiasStrides, Problem};
use frontier_kernels::hip::compile::compile;
use frontier_kernels::matrix::instruction::{Element, Target};

use super::fixture::{Case, SEED};

fn bits(gradients: &Gradients) -> Vec<u64> {
    let Gradients {
        q,
        k,
        v,
        bias: [b1, b2],
    } = gradients;
    let all = [q, k, v, b1, b2].into_iter().flatten();
    all.map(|x| x.to_bits()).collect()
}

fn check(case: &Case) {
    let plans = case.plans();
    let candidates = plans.candidates();
    assert_eq!(candidates[0], plans);
    assert!((3..=6).contains(&candidates.len()), "{candidates:?}");
    let expected = bits(&case.run());
    for candidate in &candidates[1..] {
        let found = bits(&case.run_by(candidate));
        let (target, problem) = (case.target, case.problem);
        assert!(
            found == expected,
            "other bits: {target:?} {problem:?} {candidate:?}, seed {SEED}"
        );
    }
}

#[test]
fn every_candidate_gives_the_bits_of_the_table() {
    let causal = |queries, keys, head_dim| {
        let problem = Problem::new(1, 2, queries, keys, head_dim);
        problem.kv_heads(1).causal(true)
    };
    for (element, problem) in [
        (Element::Bf16, causal(183, 300, 64)),
        (Element::F16, causal(300, 83, 32)),
        (Element::F32, causal(97, 270, 40)),
        (Element::Bf16, Problem::new(1, 1, 141, 97, 128)),
    ] {
        check(&Case::new(Target::Gfx90a, element, problem));
    }
    let nvidia = Case::new(Target::Cuda, Element::Bf16, causal(97, 141, 128));
    check(&nvidia);
    let mut plain = Case::new(Target::Gfx90a, Element::F32, causal(39, 70, 12));
    plain.fma = true;
    check(&plain);
}

#[test]
fn every_candidate_gives_the_bits_of_the_table_with_biases_and_packed_sequences() {
    let (queries, keys) = (70, 153);
    let mut problem = Problem::new(2, 2, queries, keys, 16);
    let mask = BiasStrides {
        batch: keys,
        key: 1,
        ..BiasStrides::default()
    };
    let pairs = BiasStrides {
        divisor: 2,
        head: queries * keys,
        query: keys,
        key: 1,
        ..BiasStrides::default()
    };
    problem.bias = [Some(mask), Some(pairs)];
    let mut case = Case::new(Target::Gfx90a, Element::Bf16, problem);
    case.inputs.bias[0][100..keys as usize].fill(f64::NEG_INFINITY);
    check(&case);
    let packed = Problem::new(1, 2, 1, 1, 16).kv_heads(1).causal(true);
    let lengths = [[133, 150], [0, 7], [40, 40], [9, 0]];
    check(&Case::packed(
        Target::Gfx90a,
        Element::F32,
        packed,
        &lengths,
    ));
}

#[test]
fn no_candidate_spills() {
    let cases = [
        (Target::Gfx90a, Element::Bf16, &[64, 128, 200][..]),
        (Target::Gfx90a, Element::F32, &[64, 200]),
        (Target::Gfx942, Element::Bf16, &[128]),
    ];
    for (target, element, head_dims) in cases {
        for &head_dim in head_dims {
            let problem = Problem::new(1, 1, 1024, 1024, head_dim).causal(true);
            let gradient = GradientStrides::like(&problem);
            let plans = Plans::choose(target, element, &problem, &gradient, [false; 2]).unwrap();
            let candidates = plans.candidates().into_iter();
            let kernels: HashSet<_> = candidates
                .flat_map(|p| [*p.key_value(), *p.query()])
                .collect();
            assert!(kernels.len() > 3, "{kernels:?}");
            for plan in kernels {
                let usage = compile(&plan.source().unwrap()).unwrap().usage;
                let spilled = (usage.scratch, usage.spills);
                assert_eq!(spilled, (0, 0), "{target:?} {plan:?} {usage:?}");
            }
        }
    }
}
