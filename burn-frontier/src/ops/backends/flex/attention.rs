//! Attention in tiles: no matrix of scores in memory, in either direction.

use std::sync::Arc;

use burn::backend::Flex as Backend;
use burn::tensor::{DType, Tensor};
use burn_flex::FlexTensor;
use frontier_kernels_cpu::attention::{
    Bias, Dropout as Dropped, Gradients, Inputs, Outputs, Problem, Rotation, Rows, backward,
    bias_gradient, forward,
};
use frontier_kernels_cpu::parallel::zeros;

use super::{close, elements, open};
use crate::ops::backends::{Attended, AttentionGradients, SelfAttentionBackward};
use crate::ops::problem::attention::{AttentionOptions, Biases, SelfAttention, Sequences};
use crate::ops::problem::dropout::Dropout;

/// Attention of query `[batch, heads, seq, head_dim]`, key and value `[batch, kv_heads, keys, head_dim]`; of `sequences`,
/// if given, that lie one after the other in a batch of 1.
pub(super) fn attention(
    [query, key, value]: [&Tensor<4>; 3],
    biases: &Biases,
    sequences: Option<&Sequences>,
    options: &AttentionOptions,
) -> Option<Attended> {
    let [batch, heads, queries, head_dim] = query.dims();
    let [_, kv_heads, keys, _] = key.dims();
    let bounds = |bounds: &[u32]| bounds.iter().map(|&bound| bound as usize).collect();
    let problem = Problem {
        batch,
        heads,
        kv_heads,
        queries,
        keys,
        head_dim,
        causal: options.causal,
        scale: options.scale as f32,
        sequences: sequences.map(|Sequences { queries, keys }| [bounds(queries), bounds(keys)]),
    };
    let mut opened = [None, None];
    for (to, bias) in opened.iter_mut().zip(biases) {
        if let Some(bias) = bias {
            let [entries, heads, queries, _] = bias.dims();
            let values = open(&bias.clone().cast(DType::F32))?;
            *to = Some((values, [entries, heads, queries]));
        }
    }
    let held = Held {
        rows: [View::of(query)?, View::of(key)?, View::of(value)?],
        biases: opened,
        rotation: None,
        dropout: site(options)?,
        problem,
    };
    let types = biases.each_ref().map(|x| x.as_ref().map(Tensor::dtype));
    let (output, statistics) = held.forward();
    let rows = statistics.clone();
    let output: Tensor<4> = close(output, [batch, queries, heads, head_dim]);
    let output = output.swap_dims(1, 2);
    let kept = output.clone();
    let back = move |g: Tensor<4>, log_sum_exp: Option<Tensor<3>>| {
        held.gradients([&kept, &g], &statistics, log_sum_exp.as_ref(), types)
    };
    Some(Attended {
        output,
        log_sum_exp: Box::new(move || log_sum_exp(&rows, [batch, heads, queries])),
        backward: Box::new(back),
    })
}

/// Attention of query, key and value side by side, `[batch, seq, (heads + 2 kv_heads) head_dim]`, which are read as they lie.
pub(super) fn self_attention(
    qkv: &Tensor<3>,
    sizes: &SelfAttention,
    options: &AttentionOptions,
) -> Option<(Tensor<3>, SelfAttentionBackward)> {
    let SelfAttention {
        heads, kv_heads, ..
    } = *sizes;
    let [batch, seq, width] = qkv.dims();
    let head_dim = width / (heads + 2 * kv_heads);
    let tensor = open(qkv)?;
    let part = |head: usize| View {
        tensor: tensor.clone(),
        start: head * head_dim,
        strides: [seq * width, head_dim, width],
    };
    let rotation = match &sizes.rotary {
        Some(table) => {
            let [cos, sin] = [&table.cos, &table.sin].map(|x| open(&x.clone().cast(DType::F32)));
            Some([cos?, sin?])
        }
        None => None,
    };
    let held = Held {
        rows: [part(0), part(heads), part(heads + kv_heads)],
        biases: [None, None],
        rotation,
        dropout: site(options)?,
        problem: Problem {
            batch,
            heads,
            kv_heads,
            queries: seq,
            keys: seq,
            head_dim,
            causal: options.causal,
            scale: options.scale as f32,
            sequences: None,
        },
    };
    let (output, statistics) = held.forward();
    let output: Tensor<3> = close(output, [batch, seq, heads * head_dim]);
    let kept = output.clone();
    let back = move |g: Tensor<3>| {
        let heads_apart = |x: Tensor<3>| {
            let x: Tensor<4> = x.reshape([batch, seq, heads, head_dim]);
            // As where a gradient is attached: Burn's backward pass has no errors.
            View::of(&x.swap_dims(1, 2)).expect("a gradient is of its output's type and place")
        };
        let (output, gradient) = (heads_apart(kept), heads_apart(g));
        let mut gradients = zeros(batch * seq * width);
        let to = Gradients::packed(&mut gradients, &held.problem);
        let outputs = Outputs {
            output: output.rows(),
            gradient: gradient.rows(),
            statistics: &statistics,
            log_sum_exp_gradient: None,
        };
        backward(&held.problem, &held.inputs(), &outputs, &to);
        close(gradients, [batch, seq, width])
    };
    Some((output, Box::new(back)))
}

/// The dropout's site as far as the kernels can be given it.
#[expect(
    clippy::option_option,
    reason = "no dropout, or one that the kernels do not do"
)]
fn site(options: &AttentionOptions) -> Option<Option<Dropout>> {
    match &options.dropout {
        Some(site) if !site.start[2].is_multiple_of(4) => None,
        site => Some(site.clone()),
    }
}

/// A tensor of rows of f32 as it lies.
struct View {
    tensor: FlexTensor,
    start: usize,
    strides: [usize; 3],
}

impl View {
    /// Of `[batch, heads, rows, head_dim]`; copied only if the elements of a row are apart.
    fn of(x: &Tensor<4>) -> Option<Self> {
        if x.dtype() != DType::F32 {
            return None;
        }
        let lies = |tensor: &FlexTensor| {
            let layout = tensor.layout();
            let [batch, head, row, element] = *layout.strides() else {
                return None;
            };
            let strides = [batch, head, row].map(usize::try_from);
            let [Ok(batch), Ok(head), Ok(row)] = strides else {
                return None;
            };
            let together = element == 1 || layout.shape()[3] == 1;
            together.then(|| (layout.start_offset(), [batch, head, row]))
        };
        let tensor = x.clone().try_into_primitive::<Backend>().ok()?;
        let (tensor, (start, strides)) = match lies(&tensor) {
            Some(place) => (tensor, place),
            None => {
                let tensor = tensor.to_contiguous();
                let place = lies(&tensor)?;
                (tensor, place)
            }
        };
        Some(Self {
            tensor,
            start,
            strides,
        })
    }

    fn rows(&self) -> Rows<'_> {
        Rows {
            values: &self.tensor.storage::<f32>()[self.start..],
            strides: self.strides,
            rotation: None,
        }
    }
}

/// What both directions read.
struct Held {
    problem: Problem,
    /// Query, key and value.
    rows: [View; 3],
    biases: [Option<(FlexTensor, [usize; 3])>; 2],
    /// Cosines and sines, by which queries and keys are turned.
    rotation: Option<[FlexTensor; 2]>,
    dropout: Option<Dropout>,
}

impl Held {
    fn inputs(&self) -> Inputs<'_> {
        let rotation = self.rotation.as_ref().map(|[cos, sin]| Rotation {
            cos: elements(cos),
            sin: elements(sin),
        });
        let [q, k, v] = self.rows.each_ref().map(View::rows);
        let biases = self.biases.each_ref().map(|bias| {
            bias.as_ref().map(|(values, sizes)| Bias {
                values: elements(values),
                sizes: *sizes,
            })
        });
        Inputs {
            q: Rows { rotation, ..q },
            k: Rows { rotation, ..k },
            v,
            biases,
            dropout: self.dropout.as_ref().map(|site| Dropped {
                key: site.words().key,
                threshold: site.threshold(),
                keep: (1.0 / (1.0 - site.probability)) as f32,
                samples: &site.samples,
                global: site.global as u64,
                start: site.start,
            }),
        }
    }

    /// The output `[batch, queries, heads, head_dim]`, and what the way back needs besides.
    fn forward(&self) -> (Vec<f32>, Arc<[f32]>) {
        let problem = &self.problem;
        let rows = problem.batch * problem.queries * problem.heads;
        let mut output = zeros(rows * problem.head_dim);
        let mut statistics = zeros(problem.statistics());
        forward(problem, &self.inputs(), &mut output, &mut statistics);
        (output, statistics.into())
    }

    /// From the gradients of the output and of the log-sum-exps; those of the biases in their `types`.
    fn gradients(
        &self,
        [output, gradient]: [&Tensor<4>; 2],
        statistics: &[f32],
        log_sum_exp: Option<&Tensor<3>>,
        types: [Option<DType>; 2],
    ) -> Option<AttentionGradients> {
        let (problem, inputs) = (&self.problem, self.inputs());
        let [output, gradient] = [View::of(output)?, View::of(gradient)?];
        let of_sum = match log_sum_exp {
            Some(gradient) => Some(open(gradient)?),
            None => None,
        };
        let outputs = Outputs {
            output: output.rows(),
            gradient: gradient.rows(),
            statistics,
            log_sum_exp_gradient: of_sum.as_ref().map(elements),
        };
        let (batch, head_dim) = (problem.batch, problem.head_dim);
        let shape = |rows: usize, heads: usize| [batch, rows, heads, head_dim];
        let keys = shape(problem.keys, problem.kv_heads);
        let shapes = [shape(problem.queries, problem.heads), keys, keys];
        let [mut q, mut k, mut v] = shapes.map(|shape| zeros(shape.iter().product()));
        let to = Gradients::separate([&mut q, &mut k, &mut v], problem);
        backward(problem, &inputs, &outputs, &to);
        let [q_shape, k_shape, v_shape] = shapes;
        let rows = [(q, q_shape), (k, k_shape), (v, v_shape)];
        let mut biases = [None, None];
        for (i, (to, dtype)) in biases.iter_mut().zip(types).enumerate() {
            if let (Some((values, [n, heads, queries])), Some(dtype)) = (&self.biases[i], dtype) {
                let mut gradient = zeros(elements(values).len());
                bias_gradient(problem, &inputs, &outputs, i, &mut gradient);
                let gradient: Tensor<4> = close(gradient, [*n, *heads, *queries, problem.keys]);
                *to = Some(gradient.cast(dtype));
            }
        }
        Some(AttentionGradients {
            inputs: rows.map(|(x, shape)| close::<4>(x, shape).swap_dims(1, 2)),
            biases,
        })
    }
}

/// Log-sum-exps `[batch, heads, queries]`; -inf where a query saw nothing.
fn log_sum_exp(statistics: &[f32], shape: [usize; 3]) -> Tensor<3> {
    let (greatest, sums) = statistics.split_at(statistics.len() / 2);
    let sums = greatest.iter().zip(sums);
    close(sums.map(|(most, sum)| most + sum.ln()).collect(), shape)
}
