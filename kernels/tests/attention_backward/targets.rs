//! Element types, targets, head dimensions and strides.

use frontier_kernels::attention::{Problem, Strides};
use frontier_kernels::hip::run::Sanitizer;
use frontier_kernels::matrix::instruction::{Element, Target};

use super::fixture::Case;

const ELEMENTS: [Element; 3] = [Element::Bf16, Element::F16, Element::F32];

fn causal(queries: u32, keys: u32, head_dim: u32) -> Problem {
    Problem::new(1, 4, queries, keys, head_dim)
        .kv_heads(2)
        .causal(true)
}

#[test]
fn matrix_cores_give_causal_gradients_of_grouped_heads_at_odd_shapes() {
    for element in ELEMENTS {
        // The first 50 queries of the second see nothing.
        for (queries, keys) in [(70, 150), (83, 33), (1, 300)] {
            Case::new(Target::Gfx90a, element, causal(queries, keys, 32)).check();
        }
    }
}

#[test]
fn matrix_cores_give_full_gradients_of_cross_attention_at_odd_shapes() {
    for element in ELEMENTS {
        for (queries, keys) in [(97, 41), (5, 270), (64, 256)] {
            Case::new(
                Target::Gfx90a,
                element,
                Problem::new(2, 1, queries, keys, 40),
            )
            .check();
        }
    }
}

#[test]
fn every_head_dimension_is_taken() {
    for head_dim in [1, 64, 128, 200, 256] {
        Case::new(Target::Gfx942, Element::Bf16, causal(37, 45, head_dim)).check();
    }
}

#[test]
fn strides_may_be_any() {
    for (head_dim, pad) in [(33, 0), (30, 2), (32, 4)] {
        let mut problem = Problem::new(2, 2, 21, 35, head_dim);
        let strides = |rows| {
            let mut s = Strides::heads_first(rows, 2, head_dim + pad);
            s.head += pad;
            s.batch += 2 * pad;
            s
        };
        (problem.q, problem.o) = (strides(21), strides(21));
        problem.v = strides(35);
        let mut case = Case::new(Target::Gfx90a, Element::F16, problem);
        case.gaps = true;
        case.check();
    }
}

#[test]
fn rdna3_exchanges_what_its_lanes_lack() {
    for element in [Element::Bf16, Element::F16] {
        for (queries, keys) in [(41, 70), (30, 7)] {
            Case::new(Target::Gfx1100, element, causal(queries, keys, 24)).check();
        }
    }
    // These spill registers there.
    for head_dim in [64, 128, 200] {
        Case::new(Target::Gfx1100, Element::Bf16, causal(41, 70, head_dim)).check();
    }
}

#[test]
fn nvidias_text_gives_the_gradients_at_any_size() {
    for (element, head_dim, (queries, keys)) in [
        (Element::Bf16, 64, (70, 150)),
        (Element::F16, 64, (83, 33)),
        (Element::Bf16, 128, (41, 70)),
        (Element::F16, 20, (30, 7)),
        (Element::Bf16, 200, (37, 45)),
    ] {
        Case::new(Target::Cuda, element, causal(queries, keys, head_dim)).check();
    }
    Case::new(Target::Cuda, Element::Bf16, Problem::new(2, 2, 97, 141, 32)).check();
    Case::new(Target::Cuda, Element::F32, causal(30, 45, 16)).check();
}

#[test]
fn plain_multiply_adds_give_the_same_gradients() {
    for element in ELEMENTS {
        for (queries, keys) in [(19, 45), (30, 7)] {
            let mut case = Case::new(Target::Gfx90a, element, causal(queries, keys, 12));
            case.fma = true;
            case.check();
        }
    }
}

#[test]
fn blocks_of_plain_multiply_adds_give_the_gradients() {
    for (element, queries, keys, head_dim) in [
        (Element::F32, 19, 45, 12),
        (Element::F16, 70, 37, 64),
        (Element::Bf16, 37, 70, 100),
        (Element::F32, 33, 66, 200),
        (Element::F32, 5, 9, 33),
    ] {
        let mut case = Case::new(Target::Gfx90a, element, causal(queries, keys, head_dim));
        case.portable = true;
        case.check();
    }
}

#[test]
fn no_order_of_lanes_and_no_sanitizer_finds_fault() {
    let mut case = Case::new(Target::Gfx90a, Element::Bf16, causal(70, 150, 32));
    for lane_order in [1, 42] {
        case.lane_order = lane_order;
        case.check();
    }
    for sanitizer in [Sanitizer::Thread, Sanitizer::Address] {
        case.sanitizer = sanitizer;
        case.check();
    }
}

#[test]
fn lanes_that_share_a_column_give_the_gradients_on_nvidia() {
    for (head_dim, (queries, keys)) in [(16, (30, 45)), (64, (70, 150)), (128, (41, 70))] {
        Case::new(Target::Cuda, Element::F32, causal(queries, keys, head_dim)).check();
    }
    Case::new(Target::Cuda, Element::F32, Problem::new(2, 2, 97, 141, 20)).check();
}

#[test]
fn waves_that_share_the_head_dimension_give_the_gradients_on_nvidia() {
    for element in ELEMENTS {
        for (head_dim, (queries, keys)) in [(200, (37, 45)), (256, (70, 21)), (130, (7, 80))] {
            Case::new(Target::Cuda, element, causal(queries, keys, head_dim)).check();
        }
    }
    Case::new(Target::Cuda, Element::Bf16, Problem::new(1, 2, 53, 41, 200)).check();
}
