//! Attention in plain f64, one row at a time.

use super::problem::Problem;
use crate::random;

/// The inputs of an attention, each at least as long as its strides say.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// Q.
    pub q: Vec<f64>,
    /// K.
    pub k: Vec<f64>,
    /// V.
    pub v: Vec<f64>,
    /// The biases; one that is not added may be empty.
    pub bias: [Vec<f64>; 2],
    /// Where each sequence's queries begin, and where the last one's end; empty unless packed.
    pub cumulative_queries: Vec<u32>,
    /// Where each sequence's keys begin, and where the last one's end; empty unless packed.
    pub cumulative_keys: Vec<u32>,
    /// The sample of each batch entry; empty without dropout.
    pub samples: Vec<u32>,
}

/// One query's row: its place in O and the statistics, the keys that it sees, and its probabilities.
#[derive(Clone, Debug)]
pub struct Row {
    /// Batch entry, head, query within the sequence.
    pub index: [u32; 3],
    /// Element where its row of Q begins.
    pub q: usize,
    /// Element where its row of O begins.
    pub o: usize,
    /// Element of its log-sum-exp.
    pub lse_at: usize,
    /// log(sum(exp(scores))); -inf if it sees nothing.
    pub lse: f64,
    /// Key `j`'s rows of K and V begin at these elements.
    pub keys: Vec<[usize; 2]>,
    /// Softmax of the scores, before dropout.
    pub probabilities: Vec<f64>,
    /// Factor of dropout of each: 0 or `1 / (1 - p)`; 1 without dropout.
    pub kept: Vec<f64>,
    /// Where each key's bias lies, in each of the two.
    pub bias_at: Vec<[usize; 2]>,
}

/// Every row of the attention, in the order (batch entry, head, query).
pub fn rows(problem: &Problem, inputs: &Inputs) -> Vec<Row> {
    let mut rows = Vec::new();
    for batch in 0..problem.batch {
        let queries = sequence(&inputs.cumulative_queries, problem.queries, batch).1;
        for head in 0..problem.heads {
            rows.extend((0..queries).map(|query| row(problem, inputs, [batch, head, query])));
        }
    }
    rows
}

/// Where the rows of `batch` begin, and how many there are.
fn sequence(cumulative: &[u32], length: u32, batch: u32) -> (u32, u32) {
    match cumulative.get(batch as usize..) {
        Some([begin, end, ..]) => (*begin, end - begin),
        _ => (0, length),
    }
}

fn row(problem: &Problem, inputs: &Inputs, [batch, head, query]: [u32; 3]) -> Row {
    let d = problem.head_dim as usize;
    let (first_query, queries) = sequence(&inputs.cumulative_queries, problem.queries, batch);
    let (first_key, keys) = sequence(&inputs.cumulative_keys, problem.keys, batch);
    // Packed tensors have no batch stride.
    let entry = if problem.packed { 0 } else { batch };
    let place = |s: super::Strides, head: u32, row: u32| {
        (entry * s.batch + head * s.head + row * s.row) as usize
    };
    let kv_head = head / (problem.heads / problem.kv_heads);
    let q = place(problem.q, head, first_query + query);
    let seen = (0..keys).filter(|&j| !problem.causal || j + queries <= query + keys);
    let (mut scores, mut at, mut bias_at, mut kept) = (vec![], vec![], vec![], vec![]);
    for j in seen {
        let row = [problem.k, problem.v].map(|s| place(s, kv_head, first_key + j));
        let dot: f64 = (0..d).map(|c| inputs.q[q + c] * inputs.k[row[0] + c]).sum();
        let bias = problem.bias.map(|bias| {
            let s = bias.unwrap_or_default();
            (batch / s.divisor * s.batch + head * s.head + query * s.query + j * s.key) as usize
        });
        let added = (0..2).filter(|&i| problem.bias[i].is_some());
        let added: f64 = added.map(|i| inputs.bias[i][bias[i]]).sum();
        scores.push(f64::from(problem.scale) * dot + added);
        kept.push(factor(problem, inputs, [batch, head, query], j));
        at.push(row);
        bias_at.push(bias);
    }
    let most = scores.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
    let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
    let lse = match most {
        f64::NEG_INFINITY => most,
        _ => most + sum.ln(),
    };
    let probability = |s: &f64| match lse {
        f64::NEG_INFINITY => 0.0,
        _ => (s - lse).exp(),
    };
    Row {
        index: [batch, head, query],
        q,
        o: place(problem.o, head, first_query + query),
        lse_at: place(problem.lse, head, first_query + query),
        lse,
        keys: at,
        probabilities: scores.iter().map(probability).collect(),
        kept,
        bias_at,
    }
}

fn factor(problem: &Problem, inputs: &Inputs, [batch, head, query]: [u32; 3], key: u32) -> f64 {
    let Some(dropout) = problem.dropout else {
        return 1.0;
    };
    let sample = u64::from(inputs.samples[batch as usize]);
    let site = sample * u64::from(dropout.heads_global) + u64::from(dropout.first_head + head);
    let threshold = random::threshold(dropout.probability);
    match random::keeps(dropout.key, site, query, key, threshold) {
        true => 1.0 / (1.0 - dropout.probability),
        false => 0.0,
    }
}

/// O (where its strides place it, zeros elsewhere) and the log-sum-exp.
pub fn forward(problem: &Problem, inputs: &Inputs) -> (Vec<f64>, Vec<f64>) {
    let d = problem.head_dim as usize;
    let rows = rows(problem, inputs);
    let end = |row: fn(&Row) -> usize| rows.iter().map(row).max().unwrap_or_default();
    let (mut o, mut lse) = (
        vec![0.0; end(|r| r.o) + d],
        vec![0.0; end(|r| r.lse_at) + 1],
    );
    for row in &rows {
        lse[row.lse_at] = row.lse;
        for ((p, kept), [_, v]) in row.probabilities.iter().zip(&row.kept).zip(&row.keys) {
            for c in 0..d {
                o[row.o + c] += p * kept * inputs.v[v + c];
            }
        }
    }
    (o, lse)
}
