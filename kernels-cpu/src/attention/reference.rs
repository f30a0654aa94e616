//! The definition of attention and of its gradients, in f64.

use super::dropout;
use super::problem::{Entry, Inputs, Problem, Rows};

/// What the definition gives, laid out as by the kernels.
pub struct Reference {
    pub output: Vec<f64>,
    /// `[batch, heads, queries]`.
    pub log_sum_exp: Vec<f64>,
    pub gradients: [Vec<f64>; 3],
    pub biases: [Vec<f64>; 2],
}

struct Head<'a> {
    problem: &'a Problem,
    inputs: &'a Inputs<'a>,
    entry: &'a Entry,
    number: usize,
    head: usize,
}

/// From the gradients of the output `[batch, queries, heads, head_dim]` and of the log-sum-exps.
pub fn reference(
    problem: &Problem,
    inputs: &Inputs,
    output_gradient: &[f32],
    log_sum_exp_gradient: &[f32],
) -> Reference {
    let (rows, width) = (problem.batch * problem.queries, problem.head_dim);
    let keys = vec![0.0; problem.batch * problem.keys * problem.kv_heads * width];
    let queries = vec![0.0; rows * problem.heads * width];
    let bias = |bias: &Option<super::Bias>| vec![0.0; bias.map_or(0, |bias| bias.values.len())];
    let mut all = Reference {
        output: queries.clone(),
        log_sum_exp: vec![0.0; rows * problem.heads],
        gradients: [queries, keys.clone(), keys],
        biases: inputs.biases.each_ref().map(bias),
    };
    for (number, entry) in problem.entries().iter().enumerate() {
        for head in 0..problem.heads {
            let head = Head {
                problem,
                inputs,
                entry,
                number,
                head,
            };
            for query in 0..entry.queries.len() {
                head.query(query, output_gradient, log_sum_exp_gradient, &mut all);
            }
        }
    }
    all
}

impl Head<'_> {
    fn row(&self, rows: &Rows, head: usize, row: usize) -> Vec<f64> {
        let x = rows.row([self.entry.batch, head, row], self.problem.head_dim);
        let mut x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        if let Some(rotation) = rows.rotation {
            let half = x.len() / 2;
            for i in 0..half {
                let [cos, sin] = [rotation.cos, rotation.sin].map(|t| f64::from(t[row * half + i]));
                (x[i], x[half + i]) = (
                    x[i] * cos - x[half + i] * sin,
                    x[half + i] * cos + x[i] * sin,
                );
            }
        }
        x
    }

    fn turned_back(&self, rows: &Rows, row: usize, mut x: Vec<f64>) -> Vec<f64> {
        if let Some(rotation) = rows.rotation {
            let half = x.len() / 2;
            for i in 0..half {
                let [cos, sin] = [rotation.cos, rotation.sin].map(|t| f64::from(t[row * half + i]));
                (x[i], x[half + i]) = (
                    x[i] * cos + x[half + i] * sin,
                    x[half + i] * cos - x[i] * sin,
                );
            }
        }
        x
    }

    fn query(&self, query: usize, g: &[f32], g_sum: &[f32], all: &mut Reference) {
        let Self {
            problem,
            inputs,
            entry,
            ..
        } = *self;
        let kv_head = self.head / (problem.heads / problem.kv_heads);
        let row = entry.queries.start + query;
        let q = self.row(&inputs.q, self.head, row);
        let of_keys = |rows: &Rows| -> Vec<Vec<f64>> {
            entry
                .keys
                .clone()
                .map(|key| self.row(rows, kv_head, key))
                .collect()
        };
        let (k, v) = (of_keys(&inputs.k), of_keys(&inputs.v));
        let scale = f64::from(problem.scale);
        let seen = |key: usize| {
            !problem.causal
                || key as isize
                    <= query as isize + entry.keys.len() as isize - entry.queries.len() as isize
        };
        let place = [entry.batch, self.head, row];
        let scores: Vec<f64> = (0..k.len())
            .map(|key| {
                let bias = inputs.biases.iter().flatten();
                let bias = bias.map(|bias| f64::from(bias.of(problem, place, key..key + 1)[0]));
                let score = scale * dot(&q, &k[key]) + bias.sum::<f64>();
                if seen(key) { score } else { f64::NEG_INFINITY }
            })
            .collect();
        let greatest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let above = if greatest == f64::NEG_INFINITY {
            0.0
        } else {
            greatest
        };
        let sum: f64 = scores.iter().map(|s| (s - above).exp()).sum();
        let inverse = if sum > 0.0 { 1.0 / sum } else { 0.0 };
        let p: Vec<f64> = scores.iter().map(|s| (s - above).exp() * inverse).collect();
        let factors = self.factors(query, k.len());
        let at = (row + entry.batch * problem.queries) * problem.heads + self.head;
        let g: Vec<f64> = g[at * q.len()..][..q.len()]
            .iter()
            .map(|&x| f64::from(x))
            .collect();
        let statistic = problem.statistic(entry.batch, self.head) + row;
        all.log_sum_exp[statistic] = above + sum.ln();
        let d_p: Vec<f64> = v
            .iter()
            .zip(&factors)
            .map(|(v, f)| f * dot(&g, v))
            .collect();
        let taken = dot(&p, &d_p) - f64::from(g_sum[statistic]);
        let mut d_q = vec![0.0; q.len()];
        for (key, (k, v)) in k.iter().zip(&v).enumerate() {
            let d_score = p[key] * (d_p[key] - taken);
            add(&mut all.output[at * q.len()..], v, p[key] * factors[key]);
            add(&mut d_q, k, scale * d_score);
            let position = entry.keys.start + key;
            let d_k: Vec<f64> = q.iter().map(|x| x * scale * d_score).collect();
            let at =
                ((entry.batch * problem.keys + position) * problem.kv_heads + kv_head) * q.len();
            add(
                &mut all.gradients[1][at..],
                &self.turned_back(&inputs.k, position, d_k),
                1.0,
            );
            add(&mut all.gradients[2][at..], &g, p[key] * factors[key]);
            for (bias, gradient) in inputs.biases.iter().zip(&mut all.biases) {
                if let Some(bias) = bias {
                    gradient[bias.row(problem, place) * problem.keys + key] += d_score;
                }
            }
        }
        add(
            &mut all.gradients[0][at * q.len()..],
            &self.turned_back(&inputs.q, row, d_q),
            1.0,
        );
    }

    fn factors(&self, query: usize, keys: usize) -> Vec<f64> {
        let Some(site) = &self.inputs.dropout else {
            return vec![1.0; keys];
        };
        let mut factors = vec![0.0; keys.next_multiple_of(4)];
        dropout::factors(site, [self.number, self.head, query, 0], 1, &mut factors);
        factors[..keys].iter().map(|&x| f64::from(x)).collect()
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f64], x: &[f64], factor: f64) {
    to.iter_mut().zip(x).for_each(|(to, x)| *to += factor * x);
}
