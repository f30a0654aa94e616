//! Cross entropy over a split vocabulary, executed on the CPU as its text says.

#![allow(missing_docs)]

mod cases;

use cases::cross_entropy::{Case, IGNORE, Run, Shard, TOKENS};
use cases::{ELEMENTS, pack, unpack, unwritten};
use frontier_kernels::cross_entropy::{Pass, Plan};
use frontier_kernels::hip::compile::compile;
use frontier_kernels::hip::run::{Launch, Sanitizer, Scalars, bytes};
use frontier_kernels::matrix::instruction::{Element, Target};
use frontier_kernels::rows::grid;

/// Executes the kernels' text on the CPU.
struct Harness(Sanitizer);

impl Harness {
    fn launch(&self, shard: &Shard, pass: Pass, buffers: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        let source = shard.plan.source(pass).unwrap();
        let groups = grid((TOKENS as u32).div_ceil(shard.plan.rows().per_workgroup()));
        let mut launch = Launch::new(&source, groups, buffers);
        let u32 = vec![
            TOKENS as u32,
            shard.valid as u32,
            shard.start as u32,
            IGNORE as u32,
        ];
        launch.scalars = Scalars {
            u32,
            ..Scalars::default()
        };
        (launch.lane_order, launch.sanitizer) = (shard.valid as u64, self.0);
        launch.run().unwrap()
    }
}

impl Run for Harness {
    fn statistics(&self, shard: &Shard, targets: &[i32]) -> Vec<f64> {
        let out = unwritten(Element::F32, 3 * TOKENS);
        let buffers = vec![shard.logits.clone(), bytes(targets), out];
        unpack(
            Element::F32,
            &self.launch(shard, Pass::Statistics, buffers)[2],
        )
    }

    fn gradient(&self, shard: &Shard, targets: &[i32], combined: [&[f64]; 3]) -> Vec<f64> {
        let mut buffers = vec![shard.logits.clone(), bytes(targets)];
        buffers.extend(combined.map(|numbers| pack(Element::F32, numbers)));
        unpack(
            shard.plan.element(),
            &self.launch(shard, Pass::Gradient, buffers)[0],
        )
    }
}

#[test]
fn a_whole_vocabulary_of_any_size_gives_the_definition() {
    for element in ELEMENTS {
        for vocabulary in [7, 96, 1000, 9001] {
            Case::new(element, vocabulary).check(
                &Harness(Sanitizer::None),
                Target::Gfx90a,
                1,
                vocabulary,
            );
        }
    }
    for target in [Target::Gfx1100, Target::Cuda] {
        Case::new(Element::F16, 3072).check(&Harness(Sanitizer::None), target, 1, 3072);
    }
}

#[test]
fn a_split_and_padded_vocabulary_gives_the_definition() {
    Case::new(Element::Bf16, 1000).check(&Harness(Sanitizer::None), Target::Gfx90a, 2, 512);
    // The last rank holds padding only.
    Case::new(Element::F32, 100).check(&Harness(Sanitizer::None), Target::Gfx90a, 3, 50);
}

#[test]
fn no_unit_races_or_leaves_its_buffers() {
    for sanitizer in [Sanitizer::Thread, Sanitizer::Address] {
        for (vocabulary, columns) in [(20, 24), (9001, 9008)] {
            let case = Case::new(Element::Bf16, vocabulary);
            case.check(&Harness(sanitizer), Target::Gfx90a, 1, columns);
        }
    }
}

#[test]
fn both_kernels_read_the_logits_once_in_wide_accesses() {
    let plan = Plan::choose(Target::Gfx90a, Element::Bf16, 32_000);
    let loads = |pass: Pass| {
        let compiled = compile(&plan.source(pass).unwrap()).unwrap();
        assert_eq!((compiled.usage.scratch, compiled.usage.spills), (0, 0));
        let count = |prefix: &str| compiled.assembly.count(prefix);
        (count("global_load_dwordx4"), count("global_store_dwordx4"))
    };
    // The loop over a row loads four vectors an iteration; the target's logit is one more.
    assert_eq!(loads(Pass::Statistics).1, 0);
    let (loads, stores) = loads(Pass::Gradient);
    assert!(
        loads > 0 && loads == stores,
        "{loads} loads, {stores} stores"
    );
}
