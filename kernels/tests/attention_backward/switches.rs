//! Biases, masked rows, packed sequences, dropout.

use frontier_kernels::attention::{BiasStrides, Dropout, Problem};
use frontier_kernels::hip::run::Sanitizer;
use frontier_kernels::matrix::instruction::{Element, Target};

use super::biases::layouts;
use super::fixture::Case;

/// `[batch / divisor, 1, 1, keys]`.
fn mask(divisor: u32, keys: u32) -> BiasStrides {
    BiasStrides {
        divisor,
        batch: keys,
        key: 1,
        ..BiasStrides::default()
    }
}

/// `[batch / divisor, heads, queries, keys]`.
fn pairs(divisor: u32, heads: u32, queries: u32, keys: u32) -> BiasStrides {
    BiasStrides {
        divisor,
        batch: heads * queries * keys,
        head: queries * keys,
        query: keys,
        key: 1,
    }
}

fn dropout() -> Option<Dropout> {
    Some(Dropout {
        probability: 0.25,
        key: [17, 23],
        heads_global: 1 << 30,
        first_head: 2,
    })
}

#[test]
fn a_mask_over_keys_and_biases_of_pairs_have_gradients() {
    for (target, element) in [
        (Target::Gfx90a, Element::Bf16),
        (Target::Gfx90a, Element::F16),
        (Target::Gfx90a, Element::F32),
        (Target::Cuda, Element::Bf16),
        (Target::Cuda, Element::F32),
    ] {
        for (queries, keys) in [(37, 53), (70, 20)] {
            let mut problem = Problem::new(4, 2, queries, keys, 16);
            problem.bias = [Some(mask(1, keys)), Some(pairs(2, 2, queries, keys))];
            Case::new(target, element, problem).check();
        }
    }
}

#[test]
fn biases_may_be_shared_by_all_batch_entries_and_heads() {
    let (queries, keys) = (35, 41);
    let mut problem = Problem::new(3, 4, queries, keys, 16)
        .kv_heads(2)
        .causal(true);
    let one = BiasStrides {
        query: keys,
        key: 1,
        ..BiasStrides::default()
    };
    // The mask: one of two entries for three batch entries, for each head another.
    let mask = BiasStrides {
        head: keys,
        batch: 4 * keys,
        ..mask(2, keys)
    };
    problem.bias = [Some(one), Some(mask)];
    Case::new(Target::Gfx90a, Element::F32, problem).check();
}

#[test]
fn biases_that_broadcast_along_any_dimension_and_lie_anywhere_have_gradients() {
    for (target, element, queries, keys) in [
        (Target::Gfx90a, Element::Bf16, 48, 80),
        (Target::Gfx90a, Element::F32, 37, 53),
        (Target::Cuda, Element::F16, 20, 34),
    ] {
        let problem = Problem::new(4, 2, queries, keys, 16);
        for bias in layouts(&problem) {
            let problem = Problem {
                bias: bias.map(Some),
                ..problem
            };
            let mut case = Case::new(target, element, problem);
            case.gaps = true;
            case.check();
        }
    }
}

#[test]
fn biases_of_wide_rows_are_read_within_their_buffers() {
    // Of several tiles, in those that hold the biases of the next one and in those that do not.
    for (head_dim, keys) in [(32, 144), (64, 143)] {
        let mut problem = Problem::new(2, 2, 70, keys, head_dim);
        problem.bias = [Some(mask(1, keys)), Some(pairs(2, 2, 70, keys))];
        let mut case = Case::new(Target::Gfx90a, Element::Bf16, problem);
        case.sanitizer = Sanitizer::Address;
        case.check();
    }
}

#[test]
fn rows_that_see_nothing_have_no_gradients() {
    let (queries, keys) = (40, 70);
    let mut problem = Problem::new(2, 2, queries, keys, 16);
    problem.bias = [Some(mask(1, keys)), Some(pairs(1, 2, queries, keys))];
    let mut case = Case::new(Target::Gfx90a, Element::Bf16, problem);
    // All keys of the first batch entry, the last ones of the second, and all of some queries.
    case.inputs.bias[0][..keys as usize].fill(f64::NEG_INFINITY);
    case.inputs.bias[0][keys as usize + 50..].fill(f64::NEG_INFINITY);
    let row = (3 * queries + 7) * keys;
    case.inputs.bias[1][row as usize..(row + 2 * keys) as usize].fill(f64::NEG_INFINITY);
    case.check();
    let found = case.run();
    let entry = (queries * 2 * 16) as usize;
    assert!(found.q[..entry].iter().all(|&x| x == 0.0));
    assert!(
        found.v[..(keys * 2 * 16) as usize]
            .iter()
            .all(|&x| x == 0.0)
    );
}

#[test]
fn rows_of_large_negative_scores_have_no_gradients() {
    let (queries, keys) = (40, 70);
    let mut problem = Problem::new(2, 2, queries, keys, 16);
    problem.bias = [Some(mask(1, keys)), None];
    for element in [Element::F32, Element::Bf16] {
        let mut case = Case::new(Target::Gfx90a, element, problem);
        case.inputs.bias[0][..keys as usize].fill(-1e9);
        let found = case.run();
        let entry = (queries * 2 * 16) as usize;
        assert!(found.q[..entry].iter().all(|&x| x == 0.0));
        assert!(found.q[entry..].iter().all(|&x| x != 0.0));
        let entry = (keys * 2 * 16) as usize;
        for gradient in [&found.k, &found.v] {
            assert!(gradient[..entry].iter().all(|&x| x == 0.0));
            assert!(gradient[entry..].iter().all(|&x| x != 0.0 && x.is_finite()));
        }
    }
}

#[test]
fn packed_sequences_do_not_see_each_other() {
    let lengths = [[33, 50], [0, 7], [40, 40], [9, 0], [1, 64]];
    for causal in [false, true] {
        let problem = Problem::new(1, 4, 1, 1, 16).kv_heads(2).causal(causal);
        Case::packed(Target::Gfx90a, Element::Bf16, problem, &lengths).check();
    }
}

#[test]
fn biases_of_packed_sequences_have_gradients() {
    let mut problem = Problem::new(1, 2, 1, 1, 16);
    let mask = BiasStrides {
        batch: 0,
        ..mask(1, 64)
    };
    problem.bias = [Some(mask), Some(pairs(3, 2, 40, 64))];
    let lengths = [[33, 50], [40, 9], [12, 64]];
    Case::packed(Target::Gfx90a, Element::F32, problem, &lengths).check();
}

#[test]
fn dropout_drops_what_the_forward_pass_dropped() {
    for (target, element) in [
        (Target::Gfx90a, Element::Bf16),
        (Target::Gfx90a, Element::F32),
        (Target::Gfx1100, Element::Bf16),
        (Target::Cuda, Element::Bf16),
        (Target::Cuda, Element::F32),
    ] {
        let mut problem = Problem::new(2, 4, 45, 67, 16).kv_heads(2).causal(true);
        problem.dropout = dropout();
        Case::new(target, element, problem).check();
    }
}

#[test]
fn plain_multiply_adds_take_every_switch() {
    let (queries, keys) = (21, 30);
    let mut problem = Problem::new(2, 2, queries, keys, 8)
        .kv_heads(1)
        .causal(true);
    problem.bias = [Some(mask(1, keys)), Some(pairs(2, 2, queries, keys))];
    problem.dropout = dropout();
    let mut case = Case::new(Target::Gfx90a, Element::F32, problem);
    case.fma = true;
    case.check();
    // In blocks, of which there are several.
    let (queries, keys) = (41, 70);
    let mut problem = Problem::new(2, 2, queries, keys, 8)
        .kv_heads(1)
        .causal(true);
    problem.bias = [Some(mask(1, keys)), Some(pairs(2, 2, queries, keys))];
    problem.dropout = dropout();
    let mut case = Case::new(Target::Gfx90a, Element::F32, problem);
    case.portable = true;
    case.check();
    case.sanitizer = Sanitizer::Thread;
    case.check();
}

#[test]
fn waves_that_share_the_head_dimension_take_every_switch() {
    let mut problem = Problem::new(2, 2, 37, 53, 136);
    problem.bias = [Some(mask(1, 53)), Some(pairs(2, 2, 37, 53))];
    problem.dropout = dropout();
    for element in [Element::Bf16, Element::F32] {
        Case::new(Target::Cuda, element, problem).check();
    }
}
