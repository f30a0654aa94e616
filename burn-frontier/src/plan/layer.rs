//! What one pass of one micro-batch costs: through a layer, the embedding, the head.

use super::job::Job;
use super::machine::{Collective, Group, Machine, Program};
use super::pass::{Pass, Passes};
use super::what_if::{Exchange, WhatIf};
use crate::models::gpt::Activation;
use crate::recompute::Recompute;
use crate::tensor_parallel::embedding::VOCABULARY_MULTIPLE;

/// Side of the output tiles that [`super::machine::Device::half_tiles`] counts.
const TILE: usize = 128;
/// Kernels of the embedding's and the head's forward pass, relative to a layer's.
const END_KERNELS: f64 = 0.7;
/// Kernels of attention on one more block of a ring: the block's attention, and adding it to what there is.
const BLOCK_KERNELS: f64 = 3.0;
/// Share of a layer's backward kernels that give gradients of weights: four products and four sums of some eighty.
const WEIGHT_KERNELS: f64 = 0.1;
/// Bytes of an element of the gradients of keys and values, which ranks add up on their way around a ring.
const SUMMED: f64 = 4.0;

/// Costs of the pieces of a model in one layout.
pub(super) struct Costs<'a> {
    what_if: &'a WhatIf,
    job: &'a Job,
    machine: &'a Machine,
    tokens: f64,
    tp: f64,
    /// Bytes of an element.
    element: f64,
    bandwidth: f64,
    peak: f64,
}

impl<'a> Costs<'a> {
    pub fn new(what_if: &'a WhatIf, machine: &'a Machine) -> Self {
        let job = &what_if.job;
        Self {
            what_if,
            job,
            machine,
            tokens: what_if.tokens() as f64,
            tp: job.layout.tp as f64,
            element: job.precision.bytes(),
            bandwidth: machine.device.memory_gbs * 1e9,
            peak: machine.peak(job.precision),
        }
    }

    /// A product `[m, k] x [k, n]`.
    fn gemm(&self, m: f64, n: f64, k: f64) -> f64 {
        let device = &self.machine.device;
        let tile = TILE as f64;
        let tiles = (m / tile).ceil() * (n / tile).ceil();
        let share =
            device.gemm_ceiling * tiles / (tiles + device.half_tiles) * k / (k + device.half_depth);
        let bytes = self.element * (m * k + k * n + m * n);
        (2.0 * m * n * k / (self.peak * share)).max(bytes / self.bandwidth)
    }

    /// Sizes of a layer's weight matrices on one rank, `[in, out]`.
    fn matrices(&self) -> [(f64, f64); 4] {
        let model = &self.job.model;
        let (h, ffn) = (model.hidden as f64, model.ffn as f64);
        let kv = (model.kv_heads * model.head_dim()) as f64;
        let up = match model.activation {
            Activation::Gelu => ffn,
            Activation::Swiglu => 2.0 * ffn,
        };
        let t = self.tp;
        [
            (h, (h + 2.0 * kv) / t),
            (h / t, h),
            (h, up / t),
            (ffn / t, h),
        ]
    }

    /// Elements of all score matrices on one rank.
    fn scores(&self) -> f64 {
        let model = &self.job.model;
        self.tokens * model.sequence as f64 * model.heads as f64 / self.tp
    }

    /// Scores, softmax and weighted values: `products` pairs of products, `traffic` times the score matrix through memory.
    fn attention(&self, products: f64, traffic: f64) -> f64 {
        let (device, software) = (&self.machine.device, &self.machine.software);
        let scores = self.scores();
        let flops = 4.0 * scores * self.job.model.head_dim() as f64 * products;
        let rate = self.peak * device.attention_ceiling.min(device.gemm_ceiling);
        let moved = if self.job.fused_attention {
            // Query, key, value and output only, for every block that a ring brings.
            4.0 * products * self.blocks() * self.tokens * self.job.model.hidden as f64 / self.tp
        } else {
            traffic * software.attention_traffic * scores
        };
        flops / rate + moved * self.element / self.bandwidth
    }

    /// Blocks of keys and values that a rank's queries meet one after another.
    fn blocks(&self) -> f64 {
        match self.what_if.exchange {
            Exchange::Ring => self.what_if.context as f64,
            Exchange::Ulysses => 1.0,
        }
    }

    /// Kernels of a forward pass, relative to those without context parallelism.
    fn kernels(&self) -> f64 {
        1.0 + (self.blocks() - 1.0) * BLOCK_KERNELS / self.machine.software.kernels
    }

    /// What attention that takes `attention` seconds does not hide of its group's exchange: nothing of all-to-alls, of a ring
    /// what takes longer than attention on the block before. A backward pass sends sums of gradients beside keys and values.
    fn exchange(&self, attention: f64, backward: bool) -> f64 {
        let (model, links) = (&self.job.model, &self.machine.links);
        let group = Group {
            ranks: self.what_if.context,
            stride: self.job.layout.tp,
        };
        if group.ranks == 1 {
            return 0.0;
        }
        let h = model.hidden as f64;
        let kv = 2.0 * (model.kv_heads * model.head_dim()) as f64;
        let held = |width: f64| self.tokens * width / self.tp;
        match self.what_if.exchange {
            Exchange::Ring => {
                let element = self.element + if backward { SUMMED } else { 0.0 };
                let one = links.shift(held(kv) * element, group);
                // On one device there is no time at which nobody computes.
                let hidden = if self.machine.device.shared {
                    0.0
                } else {
                    attention / group.ranks as f64
                };
                (group.ranks - 1) as f64 * (one - hidden).max(0.0)
            }
            // Queries, keys and values together; then what attention gave.
            Exchange::Ulysses => {
                links.all_to_all(held(h + kv) * self.element, group)
                    + links.all_to_all(held(h) * self.element, group)
            }
        }
    }

    /// `times` all-reduces of the activations over tp; under sequence parallelism as many pairs of a gather and a scatter,
    /// which move as much.
    fn tensor(&self, times: f64) -> f64 {
        let bytes = self.tokens * self.job.model.hidden as f64 * self.element;
        let group = Group {
            ranks: self.job.layout.tp,
            stride: 1,
        };
        let links = &self.machine.links;
        times
            * if self.job.sequence_parallel {
                links.collective(Collective::AllGather, bytes, group)
                    + links.collective(Collective::ReduceScatter, bytes, group)
            } else {
                links.collective(Collective::AllReduce, bytes, group)
            }
    }

    fn forward(&self) -> Pass {
        let model = &self.job.model;
        let h = model.hidden as f64;
        let wide = model.ffn as f64 / h;
        let activation = match model.activation {
            Activation::Gelu => 2.0 * wide,
            Activation::Swiglu => 3.0 * wide,
        };
        // Elements moved per token and hidden: two norms and two residuals with dropout; activation and transposes.
        let between = 11.0 / self.job.sequence_split();
        let inside = (activation + 2.0) / self.tp;
        let matrices = self.matrices();
        let products = matrices.iter().map(|&(k, n)| self.gemm(self.tokens, n, k));
        let attention = self.attention(1.0, 6.5);
        Pass {
            gemm: products.sum(),
            attention,
            elementwise: (between + inside) * self.tokens * h * self.element / self.bandwidth,
            kernels: 1e-6
                * self.machine.device.kernel_us
                * self.machine.software.kernels
                * self.kernels(),
            launch: 0.0,
            tensor: self.tensor(2.0),
            context: self.exchange(attention, false),
        }
    }

    /// Bytes that adding a layer's gradients to the sum of the micro-batches before it moves.
    fn sums(&self) -> f64 {
        let weights: f64 = self.matrices().iter().map(|(k, n)| k * n).sum();
        weights * (self.element + 2.0 * self.machine.software.gradient_bytes)
    }

    fn backward(&self) -> Pass {
        let model = &self.job.model;
        let h = model.hidden as f64;
        let wide = model.ffn as f64 / h;
        let activation = match model.activation {
            Activation::Gelu => 3.0 * wide,
            Activation::Swiglu => 5.0 * wide,
        };
        let between = 23.0 / self.job.sequence_split();
        let inside = (activation + 10.0) / self.tp;
        let moved = (between + inside) * self.tokens * h * self.element + self.sums();
        let products = self
            .matrices()
            .iter()
            .map(|&(k, n)| self.gemm(self.tokens, k, n) + self.gemm(k, n, self.tokens))
            .sum();
        // Megatron gathers the inputs of its column-parallel layers again rather than keep them.
        let again =
            self.job.sequence_parallel && self.machine.software.program == Program::Megatron;
        let products_of_attention = if self.job.fused_attention { 2.5 } else { 2.0 };
        let attention = self.attention(products_of_attention, 9.5);
        Pass {
            gemm: products,
            attention,
            elementwise: moved / self.bandwidth,
            kernels: 2e-6
                * self.machine.device.kernel_us
                * self.machine.software.kernels
                * self.kernels(),
            launch: 0.0,
            tensor: self.tensor(if again { 3.0 } else { 2.0 }),
            context: self.exchange(attention, true),
        }
    }

    /// What of `backward` gives gradients of weights, on the device.
    fn weight(&self, backward: &Pass) -> f64 {
        let matrices = self.matrices();
        let products = matrices.iter().map(|&(k, n)| self.gemm(k, n, self.tokens));
        products.sum::<f64>() + self.sums() / self.bandwidth + WEIGHT_KERNELS * backward.kernels
    }

    fn recompute(&self, forward: &Pass) -> (Pass, f64) {
        match self.job.recompute {
            Recompute::Full => (*forward, 1.0),
            // A fused kernel keeps no scores in the first place.
            Recompute::Selective if !self.job.fused_attention => {
                let pass = Pass {
                    attention: forward.attention,
                    context: forward.context,
                    kernels: 0.2 * forward.kernels,
                    ..Pass::default()
                };
                (pass, 0.2)
            }
            Recompute::Selective | Recompute::None => (Pass::default(), 0.0),
        }
    }

    /// Seconds that the host needs to launch `passes` forward passes of a layer.
    fn host(&self, passes: f64) -> f64 {
        1e-6 * self.machine.device.launch_us * self.machine.software.kernels * passes
    }

    /// One layer.
    pub fn layer(&self) -> Passes {
        let (job, machine) = (self.job, self.machine);
        let (forward, backward) = (self.forward(), self.backward());
        let (recompute, share) = self.recompute(&forward);
        let factor =
            machine
                .correction
                .factor(self.what_if.tokens(), job.model.hidden, job.layout.tp);
        // Operations of the products at the ceiling: no measurement makes the plan faster.
        let weights: f64 = self.matrices().iter().map(|(k, n)| k * n).sum();
        let flops = 2.0 * self.tokens * weights + 4.0 * self.scores() * job.model.head_dim() as f64;
        let least = flops / (self.peak * machine.device.gemm_ceiling);
        // Backward pass and recompute are one pass to the host.
        let together = backward.plus(&recompute);
        let host = self.host((2.0 + share) * self.kernels());
        let launched = together.launched_in(host);
        let weight = together.part(
            host,
            self.weight(&backward),
            WEIGHT_KERNELS * 2.0 / (2.0 + share),
        );
        let again = match job.recompute {
            Recompute::Full => 1.0,
            Recompute::Selective | Recompute::None => 0.0,
        };
        let launched = launched.corrected(factor, (2.0 + again) * least);
        let scale = (launched.seconds() - launched.launch) / together.seconds().max(1e-30);
        let recompute = Pass {
            launch: launched.launch * share / (2.0 + share),
            ..recompute.scaled(scale)
        };
        Passes {
            forward: forward
                .launched_in(self.host(self.kernels()))
                .corrected(factor, least),
            weight: scale * weight,
            backward: Pass {
                launch: launched.launch - recompute.launch,
                ..backward.scaled(scale)
            },
            recompute,
        }
    }

    /// The token embedding.
    pub fn embedding(&self) -> Passes {
        let bytes = 6.0 * self.tokens * self.job.model.hidden as f64 * self.element;
        let pass = Pass {
            elementwise: bytes / self.bandwidth,
            tensor: self.tensor(0.5),
            ..Pass::default()
        };
        let host = self.host(END_KERNELS);
        Passes {
            forward: pass.launched_in(host),
            backward: pass.launched_in(host),
            // Tokens have no gradient: all of it is the table's.
            weight: pass.part(host, pass.elementwise, 1.0),
            recompute: Pass::default(),
        }
    }

    /// Final norm, logits and loss. Losses are in fp32.
    pub fn head(&self) -> Passes {
        let (m, h) = (self.tokens, self.job.model.hidden as f64);
        let columns = padded_vocabulary(self.job) as f64 / self.tp;
        let loss = 20.0 * m * columns / self.bandwidth;
        let forward = Pass {
            gemm: self.gemm(m, columns, h),
            elementwise: loss,
            ..Pass::default()
        };
        let backward = Pass {
            gemm: self.gemm(m, h, columns) + self.gemm(columns, h, m),
            elementwise: loss,
            tensor: self.tensor(1.0),
            ..Pass::default()
        };
        let host = self.host(1.0);
        Passes {
            forward: forward.launched_in(self.host(END_KERNELS)),
            backward: backward.launched_in(host),
            weight: backward.part(host, self.gemm(columns, h, m), WEIGHT_KERNELS),
            recompute: Pass::default(),
        }
    }
}

/// Rows of the logits matrix over all tensor-parallel ranks, padding included.
pub(super) fn padded_vocabulary(job: &Job) -> usize {
    job.model
        .vocabulary
        .next_multiple_of(VOCABULARY_MULTIPLE * job.layout.tp)
}
