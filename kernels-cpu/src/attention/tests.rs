//! The kernels give what the definition gives, for every option and sizes that fill no tile.

use super::reference::{Reference, reference};
use super::*;

/// Numbers in (-1, 1).
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) + 1;
    let number = |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..count).map(number).collect()
}

fn problem(sizes: [usize; 4], kv_heads: usize, head_dim: usize, causal: bool) -> Problem {
    let [batch, heads, queries, keys] = sizes;
    Problem {
        batch,
        heads,
        kv_heads,
        queries,
        keys,
        head_dim,
        causal,
        scale: 0.3,
        sequences: None,
    }
}

/// Options besides the problem's.
#[derive(Default, Clone)]
struct Options {
    biases: [Option<[usize; 3]>; 2],
    dropout: bool,
    rotated: bool,
    /// Query, key and value side by side in one tensor.
    packed: bool,
    of_sum: bool,
}

/// Output, log-sum-exps, gradients of query, key and value, and of the biases.
type All = [Vec<f32>; 7];

struct Case {
    problem: Problem,
    options: Options,
    tensors: [Vec<f32>; 3],
    biases: [Vec<f32>; 2],
    tables: [Vec<f32>; 2],
    samples: Vec<u64>,
    output_gradient: Vec<f32>,
    sum_gradient: Vec<f32>,
}

impl Case {
    fn new(problem: &Problem, options: &Options) -> Self {
        let p = problem;
        let [q, k] =
            [p.queries * p.heads, p.keys * p.kv_heads].map(|rows| p.batch * rows * p.head_dim);
        let tensors = match options.packed {
            true => [numbers(q + 2 * k, 1), Vec::new(), Vec::new()],
            false => [numbers(q, 1), numbers(k, 2), numbers(k, 3)],
        };
        let mut seed = 3;
        let biases = options.biases.map(|sizes| {
            seed += 1;
            let elements = sizes.map_or(0, |sizes| sizes.iter().product::<usize>() * p.keys);
            numbers(elements, seed)
        });
        let angles = numbers(p.queries.max(p.keys) * p.head_dim / 2, 6);
        Self {
            tensors,
            biases,
            tables: [f32::cos, f32::sin].map(|f| angles.iter().map(|x| f(3.0 * x)).collect()),
            samples: (0..p.entries().len() as u64).map(|i| 5 + 3 * i).collect(),
            output_gradient: numbers(q, 7),
            sum_gradient: match options.of_sum {
                true => numbers(p.statistics() / 2, 8),
                false => vec![0.0; p.statistics() / 2],
            },
            problem: p.clone(),
            options: options.clone(),
        }
    }

    fn inputs(&self) -> Inputs<'_> {
        let p = &self.problem;
        let [cos, sin] = self.tables.each_ref().map(Vec::as_slice);
        let rotation = self.options.rotated.then_some(Rotation { cos, sin });
        let width = (p.heads + 2 * p.kv_heads) * p.head_dim;
        let rows = |which: usize, rows: usize, heads: usize, first: usize| {
            let (values, width) = match self.options.packed {
                true => (&self.tensors[0][first * p.head_dim..], width),
                false => (&self.tensors[which][..], heads * p.head_dim),
            };
            Rows {
                values,
                strides: [rows * width, p.head_dim, width],
                rotation: rotation.filter(|_| which < 2),
            }
        };
        let mut biases = [None, None];
        for (i, bias) in biases.iter_mut().enumerate() {
            *bias = self.options.biases[i].map(|sizes| Bias {
                values: &self.biases[i],
                sizes,
            });
        }
        Inputs {
            q: rows(0, p.queries, p.heads, 0),
            k: rows(1, p.keys, p.kv_heads, p.heads),
            v: rows(2, p.keys, p.kv_heads, p.heads + p.kv_heads),
            biases,
            dropout: self.options.dropout.then_some(Dropout {
                key: [1, 2],
                threshold: 1 << 30,
                keep: 4.0 / 3.0,
                samples: &self.samples,
                global: 9,
                start: [2, 3, 4],
            }),
        }
    }

    fn reference(&self) -> Reference {
        reference(
            &self.problem,
            &self.inputs(),
            &self.output_gradient,
            &self.sum_gradient,
        )
    }

    fn kernels(&self) -> All {
        let (p, inputs) = (&self.problem, self.inputs());
        let mut output = vec![f32::NAN; self.output_gradient.len()];
        let mut statistics = vec![f32::NAN; p.statistics()];
        forward(p, &inputs, &mut output, &mut statistics);
        let width = p.heads * p.head_dim;
        let rows = |values| Rows {
            values,
            strides: [p.queries * width, p.head_dim, width],
            rotation: None,
        };
        let outputs = Outputs {
            output: rows(&output),
            gradient: rows(&self.output_gradient),
            statistics: &statistics,
            log_sum_exp_gradient: self.options.of_sum.then_some(&self.sum_gradient),
        };
        let mut gradients = self.tensors.each_ref().map(|x| vec![f32::NAN; x.len()]);
        let [q, k, v] = &mut gradients;
        let to = match self.options.packed {
            true => Gradients::packed(q, p),
            false => Gradients::separate([q, k, v], p),
        };
        backward(p, &inputs, &outputs, &to);
        let mut biases = self.biases.each_ref().map(|x| vec![f32::NAN; x.len()]);
        for (i, bias) in biases.iter_mut().enumerate() {
            if self.options.biases[i].is_some() {
                bias_gradient(p, &inputs, &outputs, i, bias);
            }
        }
        let (greatest, sums) = statistics.split_at(statistics.len() / 2);
        let log_sum_exp = greatest
            .iter()
            .zip(sums)
            .map(|(m, sum)| m + sum.ln())
            .collect();
        let [q, k, v] = gradients;
        let [first, second] = biases;
        [output, log_sum_exp, q, k, v, first, second]
    }

    fn agrees(&self) {
        let what = format!("{:?}", self.problem);
        let expected = self.reference();
        let [q, k, v] = expected.gradients;
        let (q, k, v) = match self.options.packed {
            true => (
                side_by_side(&self.problem, [q, k, v]),
                Vec::new(),
                Vec::new(),
            ),
            false => (q, k, v),
        };
        let [first, second] = expected.biases;
        let expected = [
            expected.output,
            expected.log_sum_exp,
            q,
            k,
            v,
            first,
            second,
        ];
        let names = [
            "output",
            "log-sum-exp",
            "dq",
            "dk",
            "dv",
            "dbias1",
            "dbias2",
        ];
        for ((name, found), expected) in names.iter().zip(self.kernels()).zip(expected) {
            close(&format!("{name} of {what}"), &found, &expected);
        }
    }
}

/// Gradients `[batch, rows, heads, head_dim]` in one tensor.
fn side_by_side(p: &Problem, parts: [Vec<f64>; 3]) -> Vec<f64> {
    let widths = [p.heads, p.kv_heads, p.kv_heads].map(|heads| heads * p.head_dim);
    let rows = 0..p.batch * p.queries;
    let row = |row: usize| {
        let parts = parts.iter().zip(widths);
        parts.flat_map(move |(x, width)| x[row * width..][..width].to_vec())
    };
    rows.flat_map(row).collect()
}

fn close(what: &str, found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let mut difference = 0.0;
    for (&x, &y) in found.iter().zip(expected) {
        let x = f64::from(x);
        difference += if x == y { 0.0 } else { (x - y).powi(2) };
    }
    // What is all but zero by cancellation has the error of its terms.
    let squares = expected.iter().filter(|x| x.is_finite()).map(|x| x * x);
    let norm = squares.sum::<f64>() + 0.01 * expected.len() as f64;
    let error = (difference / norm.max(1e-20)).sqrt();
    assert!(error < 2e-6, "{what}: {error:e}");
}

/// Batch, heads, queries, keys; heads of keys; head_dim.
const SIZES: [([usize; 4], usize, usize); 10] = [
    ([2, 4, 5, 5], 4, 6),
    ([1, 4, 40, 33], 2, 8),
    ([2, 2, 33, 140], 1, 33),
    ([1, 1, 1, 1], 1, 1),
    ([1, 2, 1, 200], 1, 64),
    ([1, 2, 150, 1], 2, 16),
    ([1, 1, 130, 131], 1, 256),
    ([1, 6, 64, 64], 2, 32),
    ([1, 1, 70, 700], 1, 20),
    ([1, 1, 300, 30], 1, 40),
];

#[test]
fn every_size_gives_its_definition() {
    for (sizes, kv_heads, head_dim) in SIZES {
        for causal in [false, true] {
            for of_sum in [false, true] {
                let options = Options {
                    of_sum,
                    ..Options::default()
                };
                Case::new(&problem(sizes, kv_heads, head_dim, causal), &options).agrees();
            }
        }
    }
}

#[test]
fn biases_of_all_broadcast_shapes_give_their_definition() {
    let (batch, heads, queries) = (4, 2, 37);
    for entries in [1, 2, 4] {
        for bias_heads in [1, heads] {
            for bias_queries in [1, queries] {
                let first = Some([entries, bias_heads, bias_queries]);
                for second in [None, Some([2, heads, 1]), Some([1, 1, queries])] {
                    let options = Options {
                        biases: [first, second],
                        ..Options::default()
                    };
                    let causal = entries == 2;
                    let problem = problem([batch, heads, queries, 141], 1, 12, causal);
                    Case::new(&problem, &options).agrees();
                }
            }
        }
    }
}

#[test]
fn dropout_rotation_and_one_tensor_of_all_give_their_definition() {
    for (dropout, rotated, packed) in [
        (true, false, false),
        (false, true, false),
        (false, false, true),
        (true, true, true),
    ] {
        let options = Options {
            dropout,
            rotated,
            packed,
            ..Options::default()
        };
        for causal in [false, true] {
            Case::new(&problem([2, 4, 45, 45], 2, 10, causal), &options).agrees();
            Case::new(&problem([1, 2, 300, 300], 2, 32, causal), &options).agrees();
        }
    }
}

#[test]
fn packed_sequences_give_their_definition() {
    for causal in [false, true] {
        for dropout in [false, true] {
            let mut problem = problem([1, 4, 400, 700], 2, 24, causal);
            // One without queries, one without keys, one with more queries than keys.
            problem.sequences = Some([vec![0, 3, 3, 50, 60, 400], vec![0, 5, 40, 50, 50, 700]]);
            let options = Options {
                dropout,
                ..Options::default()
            };
            Case::new(&problem, &options).agrees();
        }
    }
}

#[test]
fn threads_change_no_bit() {
    let options = Options {
        biases: [Some([1, 1, 300]), Some([2, 3, 1])],
        dropout: true,
        of_sum: true,
        ..Options::default()
    };
    let case = Case::new(&problem([2, 3, 300, 900], 1, 40, true), &options);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.unwrap().install(|| case.kernels())
    };
    let alone = run(1);
    for threads in [2, 7] {
        assert!(alone == run(threads), "{threads} threads");
    }
}

#[test]
fn scores_of_minus_infinity_are_unseen_and_nan_is_passed_on() {
    let options = Options {
        biases: [Some([2, 1, 1]), None],
        ..Options::default()
    };
    let mut case = Case::new(&problem([2, 1, 40, 130], 1, 8, false), &options);
    let masked = |x: &f32| -> bool { *x == 0.0 };
    case.biases[0][..130].fill(f32::NEG_INFINITY);
    let [output, log_sum_exp, q, k, v, ..] = case.kernels();
    assert!(output[..320].iter().all(masked) && !output[320..].iter().any(masked));
    assert!(log_sum_exp[..40].iter().all(|&x| x == f32::NEG_INFINITY));
    assert!(log_sum_exp[40..].iter().all(|x| x.is_finite()));
    for gradient in [q, k, v] {
        let half = gradient.len() / 2;
        assert!(
            gradient[..half].iter().all(masked) && gradient[half..].iter().all(|x| x.is_finite())
        );
    }
    // Scores that are lost beside the mask: their probabilities are not.
    case.biases[0][..130].fill(-1e9);
    case.problem.scale = 1e-9;
    case.agrees();
    // A NaN among the keys of the last block.
    case.biases[0][129] = f32::NAN;
    let [output, log_sum_exp, ..] = case.kernels();
    assert!(
        output[..320].iter().all(|x| x.is_nan()) && log_sum_exp[..40].iter().all(|x| x.is_nan())
    );
    assert!(output[320..].iter().all(|x| x.is_finite()));
}
