//! The reference itself, and what needs no kernel.

use frontier_kernels::attention::backward::reference::backward;
use frontier_kernels::attention::backward::{GradientStrides, Plan, Plans, Role, Workspace};
use frontier_kernels::attention::reference::forward;
use frontier_kernels::attention::{BiasStrides, Dropout, Problem};
use frontier_kernels::matrix::instruction::{Element, Target};

use super::fixture::Case;

/// Grouped heads, a causal mask, both biases, dropout.
fn everything() -> Problem {
    let mut problem = Problem::new(2, 4, 3, 5, 4).kv_heads(2).causal(true);
    let mask = BiasStrides {
        batch: 5,
        key: 1,
        ..BiasStrides::default()
    };
    let pairs = BiasStrides {
        divisor: 2,
        head: 15,
        query: 5,
        key: 1,
        ..BiasStrides::default()
    };
    problem.bias = [Some(mask), Some(pairs)];
    problem.dropout = Some(Dropout {
        probability: 0.3,
        key: [5, 6],
        heads_global: 8,
        first_head: 4,
    });
    problem
}

#[test]
fn the_reference_agrees_with_finite_differences() {
    let mut case = Case::new(Target::Portable, Element::F32, everything());
    let expected = backward(&case.problem, &case.inputs, &case.o_gradient);
    let step = 1e-5;
    for which in 0..5 {
        let gradient = match which {
            0 => &expected.q,
            1 => &expected.k,
            2 => &expected.v,
            3 => &expected.bias[0],
            _ => &expected.bias[1],
        };
        for at in (0..gradient.len()).step_by(3) {
            let mut loss = |by: f64| {
                let i = &mut case.inputs;
                let input = match which {
                    0 => &mut i.q,
                    1 => &mut i.k,
                    2 => &mut i.v,
                    3 => &mut i.bias[0],
                    _ => &mut i.bias[1],
                };
                let before = input[at];
                input[at] += by;
                let (o, _) = forward(&case.problem, &case.inputs);
                match which {
                    0 => case.inputs.q[at] = before,
                    1 => case.inputs.k[at] = before,
                    2 => case.inputs.v[at] = before,
                    b => case.inputs.bias[b - 3][at] = before,
                }
                o.iter()
                    .zip(&case.o_gradient)
                    .map(|(o, g)| o * g)
                    .sum::<f64>()
            };
            let slope = (loss(step) - loss(-step)) / (2.0 * step);
            let error = (slope - gradient[at]).abs();
            assert!(
                error < 1e-8,
                "input {which}, element {at}: {slope} for {}",
                gradient[at]
            );
        }
    }
}

#[test]
fn the_workspace_grows_no_faster_than_the_sequence() {
    let bytes = |length: u32| {
        let mut problem = Problem::new(2, 8, length, length, 64);
        problem.bias[0] = Some(BiasStrides {
            batch: length,
            key: 1,
            ..BiasStrides::default()
        });
        let gradient = GradientStrides::like(&problem);
        let plans = Plans::choose(
            Target::Gfx90a,
            Element::Bf16,
            &problem,
            &gradient,
            [true; 2],
        )
        .unwrap();
        let rows = (2 * 8 * length) as usize;
        Workspace::new(&problem, &plans, rows).bytes()
    };
    let (short, long) = (bytes(512), bytes(1024));
    println!("{short} bytes at 512, {long} at 1024");
    assert!(short > 0 && long as f64 <= 2.2 * short as f64);
}

#[test]
fn what_no_kernel_takes_is_refused() {
    let choose = |problem: &Problem, element| {
        Plan::choose(Target::Gfx90a, element, problem, Role::Query, 4).map_err(|e| e.to_string())
    };
    let mut problem = Problem::new(1, 1, 4, 4, 64);
    assert!(
        choose(&problem, Element::F64)
            .unwrap_err()
            .contains("f16, bf16 or f32")
    );
    problem.bias[1] = Some(BiasStrides {
        query: 1,
        ..BiasStrides::default()
    });
    assert!(
        choose(&problem, Element::F32)
            .unwrap_err()
            .contains("does not vary along keys")
    );
    let wide = Problem::new(1, 1, 4, 4, 300);
    assert!(choose(&wide, Element::F32).unwrap_err().contains("256"));
}

#[test]
fn shared_memory_suffices_on_every_target() {
    for target in [
        Target::Gfx90a,
        Target::Gfx942,
        Target::Gfx1100,
        Target::Cuda,
        Target::Portable,
    ] {
        for element in [Element::F16, Element::Bf16, Element::F32] {
            for head_dim in [1, 16, 40, 64, 128, 200, 256] {
                for role in [Role::KeyValue, Role::Query, Role::Pair] {
                    let problem = Problem::new(1, 1, 4, 4, head_dim);
                    let plan = Plan::choose(target, element, &problem, role, 1).unwrap();
                    let bytes = plan.shared_memory();
                    assert!(bytes <= target.shared_memory(), "{plan:?} takes {bytes}");
                    assert!(
                        plan.units() <= 512 && (target != Target::Portable || plan.units() <= 256)
                    );
                }
            }
        }
    }
}
