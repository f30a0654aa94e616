//! What follows the product.

use frontier_kernels::gemm::tile::Role;
use frontier_kernels::gemm::{Activation, Epilogue, Layout, Plan, Shape};
use frontier_kernels::matrix::instruction::{Element, Target};

use super::fixture::{check, instruction};

const NONE: Epilogue = Epilogue {
    scale: false,
    bias: false,
    activation: Activation::None,
    save: false,
    residual: false,
    accumulate: false,
};

fn check_on_all(layout: Layout, output: Option<Element>, epilogue: Epilogue) {
    for (target, element, fma) in [
        (Target::Gfx90a, Element::F16, false),
        (Target::Gfx90a, Element::Bf16, false),
        (Target::Gfx90a, Element::F32, false),
        (Target::Gfx90a, Element::F32, true),
        (Target::Cuda, Element::Bf16, false),
    ] {
        let instruction = instruction(target, element, fma);
        for (m, n) in [(72, 80), (33, 45)] {
            let shape = Shape::contiguous(layout, 1, m, n, 72, epilogue.activation.paired());
            check(
                target,
                instruction,
                output.unwrap_or(element),
                layout,
                epilogue,
                shape,
            );
        }
    }
}

#[test]
fn scale_bias_and_residual_are_applied_in_this_order() {
    check_on_all(
        Layout::Nt,
        None,
        Epilogue {
            scale: true,
            bias: true,
            residual: true,
            ..NONE
        },
    );
}

#[test]
fn gelu_saves_its_argument_and_its_backward_reads_it() {
    check_on_all(
        Layout::Nt,
        None,
        Epilogue {
            bias: true,
            activation: Activation::Gelu,
            save: true,
            ..NONE
        },
    );
    check_on_all(
        Layout::Nn,
        None,
        Epilogue {
            activation: Activation::GeluBackward,
            ..NONE
        },
    );
}

#[test]
fn swiglu_saves_gate_and_up_and_its_backward_gives_the_gradients_of_both() {
    check_on_all(
        Layout::Nt,
        None,
        Epilogue {
            bias: true,
            activation: Activation::SwiGlu,
            save: true,
            ..NONE
        },
    );
    check_on_all(
        Layout::Nn,
        None,
        Epilogue {
            activation: Activation::SwiGlu,
            ..NONE
        },
    );
    check_on_all(
        Layout::Nn,
        None,
        Epilogue {
            activation: Activation::SwiGluBackward,
            ..NONE
        },
    );
}

#[test]
fn a_weight_gradient_is_added_to_what_c_holds() {
    check_on_all(
        Layout::Tn,
        Some(Element::F32),
        Epilogue {
            accumulate: true,
            ..NONE
        },
    );
}

#[test]
fn epilogues_without_a_kernel_are_refused() {
    let plan = |output, layout, epilogue| {
        let shape = Shape::contiguous(layout, 1, 64, 64, 64, false);
        Plan::choose(
            Target::Gfx90a,
            (Element::Bf16, output),
            layout,
            &shape,
            epilogue,
        )
    };
    let refused = |result: frontier_kernels::error::Result<Plan>| result.unwrap_err().to_string();
    let accumulate = Epilogue {
        accumulate: true,
        ..NONE
    };
    assert!(refused(plan(Element::Bf16, Layout::Tn, accumulate)).contains("accumulat"));
    assert!(refused(plan(Element::F16, Layout::Nt, NONE)).contains("C of F16"));
    let both = Epilogue {
        residual: true,
        activation: Activation::GeluBackward,
        ..NONE
    };
    assert!(refused(plan(Element::Bf16, Layout::Nn, both)).contains("residual"));
    assert!(
        refused(plan(
            Element::Bf16,
            Layout::Nt,
            Epilogue { save: true, ..NONE }
        ))
        .contains("no pre-activation")
    );
    let nt = plan(Element::F32, Layout::Nt, NONE).unwrap();
    assert!(refused(nt.with_sums_of(Role::Rows)).contains("sums over K"));
}
