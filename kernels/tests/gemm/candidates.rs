//! Plans that are timed against each other differ in nothing else.

use frontier_kernels::gemm::tile::Role;
use frontier_kernels::gemm::{Activation, Epilogue, Layout, Plan, Shape};
use frontier_kernels::hip::compile::compile;
use frontier_kernels::matrix::instruction::{Element, Target};

use super::fixture::Case;

const ELEMENTS: [Element; 3] = [Element::F16, Element::Bf16, Element::F32];
const NONE: Epilogue = Epilogue {
    scale: false,
    bias: false,
    activation: Activation::None,
    save: false,
    residual: false,
    accumulate: false,
};

/// The forms of a linear layer's forward and backward: the plan of the table, and into how many parts K is split.
fn forms(target: Target, element: Element, size: [usize; 3]) -> Vec<(Plan, Shape, usize)> {
    let [m, n, k] = size;
    let choose = |layout, output, epilogue: Epilogue| {
        let shape = Shape::contiguous(layout, 1, m, n, k, epilogue.activation.paired());
        let plan = Plan::choose(target, (element, output), layout, &shape, epilogue).unwrap();
        (plan, shape)
    };
    let fused = Epilogue {
        bias: true,
        activation: Activation::Gelu,
        save: true,
        ..NONE
    };
    let paired = Epilogue {
        activation: Activation::SwiGlu,
        ..NONE
    };
    let adding = Epilogue {
        accumulate: true,
        ..NONE
    };
    let (nt, nt_shape) = choose(Layout::Nt, element, fused);
    let (swiglu, swiglu_shape) = choose(Layout::Nt, element, paired);
    let (nn, nn_shape) = choose(Layout::Nn, element, NONE);
    let (tn, tn_shape) = choose(Layout::Tn, Element::F32, adding);
    vec![
        (nt, nt_shape, 1),
        (swiglu, swiglu_shape, 1),
        (nn, nn_shape, 1),
        (tn.with_sums_of(Role::Rows).unwrap(), tn_shape, 1),
        (tn.with_sums_of(Role::Columns).unwrap().split(), tn_shape, 2),
    ]
}

fn bits(numbers: &[f64]) -> Vec<u64> {
    numbers.iter().map(|x| x.to_bits()).collect()
}

/// Executes a product by each of its candidates.
fn check((plan, shape, parts): (Plan, Shape, usize)) {
    let seed = 23;
    let candidates = plan.candidates(&shape);
    assert_eq!(candidates[0], plan);
    assert!((4..=6).contains(&candidates.len()), "{candidates:?}");
    let run = |plan: &Plan| {
        let source = plan.source("candidate").unwrap();
        let reduction = plan.is_split().then(|| plan.reduction_source("reduction"));
        let reduction = reduction.transpose().unwrap();
        let found = Case::new(*plan, shape, seed).run(&source, reduction.as_ref(), parts);
        [found.out, found.saved, found.sums].map(|all| bits(&all))
    };
    let expected = run(&plan);
    for candidate in &candidates[1..] {
        let what = format!("{:?} {shape:?} {candidate:?}, seed {seed}", plan.layout());
        assert!(run(candidate) == expected, "other bits: {what}");
    }
}

#[test]
fn every_candidate_gives_the_bits_of_the_table() {
    for element in ELEMENTS {
        for form in forms(Target::Gfx90a, element, [131, 259, 329]) {
            check(form);
        }
    }
    // With the widest accesses.
    check(forms(Target::Gfx90a, Element::Bf16, [264, 136, 200])[0]);
}

#[test]
fn no_candidate_spills() {
    for (target, element) in [
        (Target::Gfx90a, Element::Bf16),
        (Target::Gfx90a, Element::F32),
        (Target::Gfx942, Element::Bf16),
        (Target::Gfx1100, Element::Bf16),
    ] {
        for (plan, shape, _) in forms(target, element, [4096; 3]) {
            let candidates = plan.candidates(&shape);
            assert!(candidates.len() > 3, "{candidates:?}");
            for candidate in candidates {
                let source = candidate.source("candidate").unwrap();
                let usage = compile(&source).unwrap().usage;
                let spilled = (usage.scratch, usage.spills);
                assert_eq!(spilled, (0, 0), "{target:?} {candidate:?} {usage:?}");
            }
        }
    }
}
