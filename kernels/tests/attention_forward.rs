//! Attention's forward kernels, executed on the CPU harness, give the f64 reference.

#[path = "attention_forward/biases.rs"]
mod biases;
#[path = "cases/mod.rs"]
mod cases;
#[path = "cases/evoformer.rs"]
mod evoformer;

use cases::attention::{Run, check, compare, dropout, evoformer, fma, inputs, packed};
use cases::{ELEMENTS, pack, unpack, unwritten};
use frontier_kernels::attention::reference::{Inputs, forward};
use frontier_kernels::attention::{BiasStrides, Plan, Problem, Strides};
use frontier_kernels::hip::compile::{Compiled, compile};
use frontier_kernels::hip::emit::Source;
use frontier_kernels::hip::isa::Assembly;
use frontier_kernels::hip::run::{Launch, Sanitizer, bytes};
use frontier_kernels::matrix::instruction::{Element, Target, Unit};

/// The CPU harness.
struct Harness {
    source: Source,
    lane_order: u64,
    sanitizer: Sanitizer,
}

impl Harness {
    fn new(plan: &Plan) -> Self {
        Self {
            source: plan.source().unwrap(),
            lane_order: 0,
            sanitizer: Sanitizer::None,
        }
    }

    fn order(&mut self, lane_order: u64) -> &Self {
        self.lane_order = lane_order;
        self
    }
}

impl Run for Harness {
    fn attend(
        &self,
        plan: &Plan,
        problem: &Problem,
        inputs: &Inputs,
        [o, lse]: [usize; 2],
    ) -> [Vec<f64>; 2] {
        let of = |x: &[f64]| match x {
            [] => vec![0; 4],
            x => pack(plan.element(), x),
        };
        let numbers = |x: &[u32]| match x {
            [] => vec![0; 4],
            x => bytes(x),
        };
        let buffers = vec![
            of(&inputs.q),
            of(&inputs.k),
            of(&inputs.v),
            unwritten(plan.element(), o),
            unwritten(Element::F32, lse),
            of(&inputs.bias[0]),
            of(&inputs.bias[1]),
            numbers(&inputs.cumulative_queries),
            numbers(&inputs.cumulative_keys),
            numbers(&inputs.samples),
        ];
        let blocks = problem.queries.div_ceil(plan.queries() as u32);
        let mut launch = Launch::new(
            &self.source,
            [blocks, problem.heads, problem.batch],
            buffers,
        );
        launch.scalars = problem.geometry().scalars();
        (launch.lane_order, launch.sanitizer) = (self.lane_order, self.sanitizer);
        let after = launch.run().unwrap();
        [
            unpack(plan.element(), &after[3]),
            unpack(Element::F32, &after[4]),
        ]
    }
}

/// Sizes around those of tiles.
const SIZES: [[u32; 2]; 6] = [[70, 70], [33, 200], [300, 67], [1, 1], [5, 261], [64, 128]];

/// Checks `plan_of` one head dimension for some sizes, alternately with shared heads of K and V.
fn check_sizes(
    plan_of: impl Fn(&Problem) -> Plan,
    head_dim: u32,
    causal: bool,
    sizes: &[[u32; 2]],
) {
    let problem =
        |[queries, keys]: [u32; 2]| Problem::new(2, 2, queries, keys, head_dim).causal(causal);
    let plan = plan_of(&problem([1, 1]));
    let mut harness = Harness::new(&plan);
    for (i, &size) in sizes.iter().enumerate() {
        let problem = problem(size).kv_heads(1 + i as u32 % 2);
        let inputs = inputs(plan.element(), &problem, i as u64);
        check(harness.order(i as u64), &plan, &problem, &inputs);
    }
}

#[test]
fn mfma_kernels_take_any_size() {
    for element in ELEMENTS {
        for (head_dim, causal) in [(64, false), (64, true), (128, true)] {
            let plan = |p: &Problem| Plan::choose(Target::Gfx90a, element, p).unwrap();
            check_sizes(plan, head_dim, causal, &SIZES);
        }
    }
}

#[test]
fn any_head_dimension_up_to_256_works() {
    for (i, head_dim) in [1, 8, 16, 20, 32, 37, 80, 96, 200, 256]
        .into_iter()
        .enumerate()
    {
        let element = ELEMENTS[i % 3];
        let plan = |p: &Problem| Plan::choose(Target::Gfx942, element, p).unwrap();
        check_sizes(plan, head_dim, i % 2 == 0, &[[40, 150]]);
    }
    for element in ELEMENTS {
        let plan = |p: &Problem| Plan::choose(Target::Gfx90a, element, p).unwrap();
        check_sizes(plan, 200, true, &[[40, 150]]);
        check_sizes(plan, 256, false, &[[40, 150]]);
    }
}

#[test]
fn wmma_kernels_give_the_reference() {
    for element in [Element::F16, Element::Bf16] {
        for head_dim in [64, 40, 16, 200] {
            let plan = |p: &Problem| Plan::choose(Target::Gfx1100, element, p).unwrap();
            check_sizes(plan, head_dim, head_dim == 40, &SIZES[..3]);
        }
    }
}

#[test]
fn nvidias_text_gives_the_reference_at_any_size() {
    for (element, head_dim, causal) in [
        (Element::F16, 64, false),
        (Element::Bf16, 128, true),
        (Element::Bf16, 20, true),
        (Element::F16, 200, false),
    ] {
        let plan = |p: &Problem| {
            let plan = Plan::choose(Target::Cuda, element, p).unwrap();
            assert_eq!(plan.instruction().unit, Unit::Mma);
            plan
        };
        check_sizes(plan, head_dim, causal, &SIZES[..2]);
    }
    let plan = |p: &Problem| Plan::choose(Target::Cuda, Element::F32, p).unwrap();
    for (head_dim, causal) in [(64, true), (20, false), (128, true), (200, false)] {
        check_sizes(plan, head_dim, causal, &SIZES[1..2]);
    }
}

#[test]
fn plain_multiply_adds_give_the_reference() {
    for element in ELEMENTS {
        for head_dim in [64, 20, 100, 200] {
            check_sizes(
                |p| fma(Target::Gfx90a, element, p),
                head_dim,
                head_dim == 64,
                &SIZES[..2],
            );
        }
    }
}

#[test]
fn tensors_have_any_strides() {
    let mut problem = Problem::new(2, 3, 37, 50, 24);
    problem.q = Strides::heads_first(37, 3, 24);
    // K and V side by side in one tensor, with a gap behind each row.
    problem.k = Strides {
        batch: 50 * 3 * 56,
        head: 56,
        row: 3 * 56,
    };
    problem.v = problem.k;
    problem.o = Strides {
        batch: 37 * 3 * 26,
        head: 26,
        row: 3 * 26,
    };
    for target in [Target::Gfx90a, Target::Gfx942] {
        let plan = Plan::choose(target, Element::Bf16, &problem).unwrap();
        assert_eq!(plan.width(), 2);
        let inputs = inputs(plan.element(), &problem, 3);
        let (o, lse) = frontier_kernels::attention::reference::forward(&problem, &inputs);
        let [found, found_lse] =
            Harness::new(&plan).attend(&plan, &problem, &inputs, [o.len(), lse.len()]);
        // What lies between rows is not written.
        let row = |i: usize| i % 26 < 24;
        let rows = |all: &[f64]| {
            all.iter()
                .enumerate()
                .filter(|(i, _)| row(*i))
                .map(|(_, &x)| x)
                .collect::<Vec<_>>()
        };
        assert!(found.iter().enumerate().all(|(i, x)| row(i) || x.is_nan()));
        compare(
            &plan,
            &problem,
            [&rows(&found), &found_lse],
            [&rows(&o), &lse],
        );
    }
}

#[test]
fn queries_that_see_nothing_give_zeros_and_minus_infinity() {
    for element in ELEMENTS {
        // More queries than keys: the first ones see none.
        let problem = Problem::new(1, 2, 150, 40, 64).causal(true);
        let plan = Plan::choose(Target::Gfx90a, element, &problem).unwrap();
        let of = inputs(element, &problem, 1);
        let (o, lse) = frontier_kernels::attention::reference::forward(&problem, &of);
        assert!(o[..110 * 128].iter().all(|&x| x == 0.0));
        assert!(lse[..110].iter().all(|&x| x == f64::NEG_INFINITY));
        check(&Harness::new(&plan), &plan, &problem, &of);
        // A mask of all keys of the second entry, and of the first 140 keys of the first one.
        let mut problem = Problem::new(2, 1, 20, 200, 64);
        let mask = BiasStrides {
            batch: 200,
            key: 1,
            ..BiasStrides::default()
        };
        problem.bias = [Some(mask), None];
        let plan = Plan::choose(Target::Gfx90a, element, &problem).unwrap();
        let mut of = inputs(element, &problem, 2);
        of.bias[0] = (0..400)
            .map(|i| {
                if (140..200).contains(&i) {
                    0.5
                } else {
                    f64::NEG_INFINITY
                }
            })
            .collect();
        check(&Harness::new(&plan), &plan, &problem, &of);
    }
}

#[test]
fn packed_sequences_are_attended_each_by_itself() {
    for (element, causal) in [(Element::Bf16, true), (Element::F32, false)] {
        let mut problem = Problem::new(1, 2, 1, 1, 64).kv_heads(1).causal(causal);
        let lengths = [[40, 90], [0, 10], [300, 300], [7, 0], [65, 64]];
        let inputs = packed(element, &mut problem, &lengths, 5);
        let plan = Plan::choose(Target::Gfx90a, element, &problem).unwrap();
        check(&Harness::new(&plan), &plan, &problem, &inputs);
    }
}

#[test]
fn dropout_takes_the_random_numbers_of_sample_head_query_and_key() {
    let mfma = |p: &Problem| Plan::choose(Target::Gfx90a, Element::F32, p).unwrap();
    let wmma = |p: &Problem| Plan::choose(Target::Gfx1100, Element::F16, p).unwrap();
    let half = |p: &Problem| Plan::choose(Target::Gfx90a, Element::F16, p).unwrap();
    let mma = |p: &Problem| Plan::choose(Target::Cuda, Element::F16, p).unwrap();
    let plain = |p: &Problem| fma(Target::Gfx90a, Element::F32, p);
    for plan in [
        &mfma as &dyn Fn(&Problem) -> Plan,
        &half,
        &wmma,
        &mma,
        &plain,
    ] {
        let mut problem = Problem::new(2, 2, 50, 90, 32).causal(true);
        dropout(&mut problem);
        let plan = plan(&problem);
        let inputs = inputs(plan.element(), &problem, 9);
        check(&Harness::new(&plan), &plan, &problem, &inputs);
    }
}

#[test]
fn waves_do_not_race_and_stay_within_their_buffers() {
    for sanitizer in [Sanitizer::Thread, Sanitizer::Address] {
        for head_dim in [64, 20] {
            let problem = Problem::new(1, 1, 100, 200, head_dim).causal(true);
            for target in [Target::Gfx90a, Target::Cuda] {
                let plan = Plan::choose(target, Element::Bf16, &problem).unwrap();
                let mut harness = Harness::new(&plan);
                harness.sanitizer = sanitizer;
                let inputs = inputs(Element::Bf16, &problem, 2);
                check(&harness, &plan, &problem, &inputs);
            }
        }
    }
}

/// Executes a problem by each of its candidates.
fn check_candidates(plan: &Plan, problem: &Problem, inputs: &Inputs) {
    let (o, lse) = forward(problem, inputs);
    let run = |plan: &Plan| {
        let found = Harness::new(plan).attend(plan, problem, inputs, [o.len(), lse.len()]);
        found.map(|all| all.iter().map(|x| x.to_bits()).collect::<Vec<_>>())
    };
    let candidates = plan.candidates();
    assert_eq!(candidates[0], *plan);
    assert!((2..=3).contains(&candidates.len()), "{candidates:?}");
    let expected = run(plan);
    for candidate in &candidates[1..] {
        let found = run(candidate);
        assert!(found == expected, "other bits: {candidate:?}, {problem:?}");
    }
}

#[test]
fn every_candidate_gives_the_bits_of_the_table() {
    let causal = |queries, keys, head_dim| {
        let problem = Problem::new(1, 2, queries, keys, head_dim);
        problem.kv_heads(1).causal(true)
    };
    let mut biased = Problem::new(4, 2, 70, 130, 32);
    evoformer(&mut biased, 2);
    let mut dropped = causal(150, 270, 32);
    dropout(&mut dropped);
    for (element, problem) in [
        (Element::Bf16, causal(283, 300, 64)),
        (Element::F16, causal(300, 83, 128)),
        (Element::F32, causal(97, 270, 40)),
        (Element::F16, Problem::new(1, 1, 270, 97, 200)),
        (Element::Bf16, biased),
        (Element::F32, dropped),
    ] {
        let mut inputs = inputs(element, &problem, 21);
        if problem.bias[0].is_some() {
            inputs.bias[0][..70].fill(f64::NEG_INFINITY);
        }
        let plan = Plan::choose(Target::Gfx90a, element, &problem).unwrap();
        check_candidates(&plan, &problem, &inputs);
    }
    let problem = causal(150, 170, 40);
    let mma = Plan::choose(Target::Cuda, Element::Bf16, &problem).unwrap();
    check_candidates(&mma, &problem, &inputs(Element::Bf16, &problem, 23));
    let mut problem = causal(1, 1, 64);
    let lengths = [[40, 90], [0, 10], [300, 300], [7, 0], [65, 64]];
    let inputs = packed(Element::Bf16, &mut problem, &lengths, 24);
    let plan = Plan::choose(Target::Gfx90a, Element::Bf16, &problem).unwrap();
    check_candidates(&plan, &problem, &inputs);
}

/// Fused products and sums, products, sums in a kernel's text, however they are encoded: in pairs too.
fn arithmetic_of(assembly: &Assembly) -> [usize; 3] {
    let count = |name: &str| {
        let paired = format!("v_pk_{name}");
        assembly.text().matches(name).count() + assembly.text().matches(&paired).count()
    };
    let all = |names: &[&str]| names.iter().map(|name| count(name)).sum();
    [
        all(&["fma_f32", "fmac_f32", "fmamk_f32", "fmaak_f32"]),
        all(&["mul_f32"]),
        all(&["add_f32", "sub_f32", "subrev_f32"]),
    ]
}

#[test]
fn no_candidate_spills_and_all_round_alike() {
    let cases = [
        (Target::Gfx90a, Element::Bf16, &[32, 64, 128, 200][..]),
        (Target::Gfx90a, Element::F32, &[64, 200]),
        (Target::Gfx942, Element::Bf16, &[128]),
    ];
    for (target, element, head_dims) in cases {
        for &head_dim in head_dims {
            let problem = Problem::new(1, 1, 1024, 1024, head_dim).causal(true);
            let plan = Plan::choose(target, element, &problem).unwrap();
            let mut arithmetic = Vec::new();
            for plan in plan.candidates() {
                let Compiled { assembly, usage } = compile(&plan.source().unwrap()).unwrap();
                let spilled = (usage.scratch, usage.spills);
                assert_eq!(spilled, (0, 0), "{plan:?} {usage:?}");
                arithmetic.push(arithmetic_of(&assembly));
            }
            // The compiler fuses the same products and sums in all of them.
            let first = arithmetic[0];
            assert!(
                arithmetic.iter().all(|x| *x == first),
                "{plan:?}: {arithmetic:?}"
            );
        }
    }
}
