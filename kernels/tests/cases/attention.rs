//! Attention: problems with their inputs, and the comparison with the reference.

use frontier_kernels::attention::reference::{Inputs, forward};
use frontier_kernels::attention::{BiasStrides, Dropout, Plan, Problem, Strides};
use frontier_kernels::matrix::instruction::{Element, Target};

use super::{draw, limit};

/// What executes a kernel.
pub trait Run {
    /// O and the log-sum-exp of `counts` elements, which hold NaN before.
    fn attend(
        &self,
        plan: &Plan,
        problem: &Problem,
        inputs: &Inputs,
        counts: [usize; 2],
    ) -> [Vec<f64>; 2];
}

/// Random inputs of `problem`.
pub fn inputs(element: Element, problem: &Problem, seed: u64) -> Inputs {
    let p = problem;
    let span = |s: Strides, rows: u32, heads: u32| {
        let last = (p.batch - 1) * s.batch + (heads - 1) * s.head + rows.saturating_sub(1) * s.row;
        (last + p.head_dim) as usize
    };
    let bias = |s: BiasStrides| {
        let last = (p.batch - 1) / s.divisor * s.batch + (p.heads - 1) * s.head;
        (last + (p.queries - 1) * s.query + (p.keys - 1) * s.key + 1) as usize
    };
    // Scores that deviate by more than 1, so that the softmax is not flat.
    let scaled = |factor: f64, numbers: Vec<f64>| numbers.iter().map(|x| factor * x).collect();
    Inputs {
        q: scaled(4.0, draw(element, span(p.q, p.queries, p.heads), seed)),
        k: scaled(2.0, draw(element, span(p.k, p.keys, p.kv_heads), seed + 1)),
        v: draw(element, span(p.v, p.keys, p.kv_heads), seed + 2),
        bias: [3, 4]
            .map(|i| p.bias[i - 3].map_or(vec![], |s| draw(element, bias(s), seed + i as u64))),
        samples: (0..p.batch).map(|b| 1000 + 7 * b).collect(),
        ..Inputs::default()
    }
}

/// The inputs of sequences of so many queries and keys, packed one after the other; adapts the problem to them.
pub fn packed(element: Element, problem: &mut Problem, lengths: &[[u32; 2]], seed: u64) -> Inputs {
    let cumulative = [0, 1].map(|i| {
        let mut end = 0;
        let ends = lengths.iter().map(|length| {
            end += length[i];
            end
        });
        std::iter::once(0).chain(ends).collect::<Vec<u32>>()
    });
    let [queries, keys] = [0, 1].map(|i: usize| cumulative[i][lengths.len()]);
    let whole = Problem {
        batch: 1,
        queries,
        keys,
        ..Problem::new(1, problem.heads, queries, keys, problem.head_dim).kv_heads(problem.kv_heads)
    };
    (problem.q, problem.k, problem.v) = (whole.q, whole.k, whole.v);
    (problem.o, problem.lse) = (whole.o, whole.lse);
    problem.packed = true;
    problem.batch = lengths.len() as u32;
    [problem.queries, problem.keys] = [0, 1].map(|i| lengths.iter().map(|l| l[i]).max().unwrap());
    let [cumulative_queries, cumulative_keys] = cumulative;
    Inputs {
        cumulative_queries,
        cumulative_keys,
        samples: (0..problem.batch).map(|b| 5 * b + 1).collect(),
        ..inputs(element, &whole, seed)
    }
}

/// The plan of plain multiply-adds, in blocks.
pub fn fma(target: Target, element: Element, problem: &Problem) -> Plan {
    Plan::plain(target, element, problem).unwrap()
}

/// Executes `plan`, and compares with the reference.
pub fn check(run: &impl Run, plan: &Plan, problem: &Problem, inputs: &Inputs) {
    let (expected, expected_lse) = forward(problem, inputs);
    let [o, lse] = run.attend(plan, problem, inputs, [expected.len(), expected_lse.len()]);
    compare(plan, problem, [&o, &lse], [&expected, &expected_lse]);
}

/// Compares O and log-sum-exp, where the problem has rows.
pub fn compare(plan: &Plan, problem: &Problem, found: [&[f64]; 2], expected: [&[f64]; 2]) {
    let square = |x: f64| x * x;
    let norm: f64 = expected[0].iter().map(|&x| square(x)).sum();
    let both = found[0].iter().zip(expected[0]);
    let error: f64 = both.map(|(f, e)| square(f - e)).sum();
    let error = (error / norm.max(1e-30)).sqrt();
    let name = plan.name();
    assert!(
        error <= limit(plan.element()),
        "{name}: O is off by {error:.2e}, {problem:?}"
    );
    for (i, (found, expected)) in found[1].iter().zip(expected[1]).enumerate() {
        let near = (found - expected).abs() <= 2e-5 * (1.0 + expected.abs());
        assert!(
            found == expected || near,
            "{name}: lse[{i}] is {found}, expected {expected}, {problem:?}"
        );
    }
}

/// Evoformer's biases, arXiv 2310.04610: a mask of keys for each of `batch` entries, a pair bias that `shared` entries have
/// in common.
pub fn evoformer(problem: &mut Problem, shared: u32) {
    let (s, heads) = (problem.keys, problem.heads);
    problem.bias = [
        Some(BiasStrides {
            batch: s,
            key: 1,
            ..BiasStrides::default()
        }),
        Some(BiasStrides {
            divisor: shared,
            batch: heads * problem.queries * s,
            head: problem.queries * s,
            query: s,
            key: 1,
        }),
    ];
}

/// Dropout of a third.
pub fn dropout(problem: &mut Problem) {
    problem.dropout = Some(Dropout {
        probability: 0.3,
        key: [0x1234_5678, 0x9abc_def0],
        heads_global: 3_000_000_000,
        first_head: 5,
    });
}
