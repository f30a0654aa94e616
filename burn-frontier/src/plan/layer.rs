//! What one pass of one micro-batch costs: through a layer, the embedding, the head.

use super::job::Job;
use super::machine::{Collective, Group, Machine, Program};
use super::model::{Exchange, Planned, Work};
use super::pass::{Pass, Passes};
use super::what_if::WhatIf;
use crate::recompute::Recompute;

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
pub(super) struct Costs<'a, M> {
    what_if: &'a WhatIf<M>,
    job: &'a Job<M>,
    machine: &'a Machine,
    work: Work,
    tokens: f64,
    /// Bytes of an element.
    element: f64,
    bandwidth: f64,
    peak: f64,
}

impl<'a, M: Planned> Costs<'a, M> {
    pub fn new(what_if: &'a WhatIf<M>, machine: &'a Machine) -> Self {
        let job = &what_if.job;
        Self {
            what_if,
            job,
            machine,
            work: job.model.work(&what_if.share(machine)),
            tokens: what_if.tokens() as f64,
            element: job.precision.bytes(),
            bandwidth: machine.device.memory_gbs * 1e9,
            peak: machine.peak(job.precision),
        }
    }

    /// Bytes of the activation that a stage hands on, whole.
    pub fn stream(&self) -> f64 {
        self.work.stream
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

    /// Seconds of `flops` operations of which nothing but their number is known.
    fn unshaped(&self, flops: f64) -> f64 {
        flops / (self.peak * self.machine.device.gemm_ceiling)
    }

    /// Elements of a layer's weight matrices.
    fn weights(&self) -> f64 {
        let matrices = self.work.layer.matrices.iter();
        matrices.map(|(k, n)| k * n).sum()
    }

    /// Scores, softmax and weighted values: `products` pairs of products, `traffic` times the score matrix through memory.
    fn attention(&self, products: f64, traffic: f64) -> f64 {
        let (device, software) = (&self.machine.device, &self.machine.software);
        let Some(work) = &self.work.layer.attention else {
            return 0.0;
        };
        let flops = 4.0 * work.scores * work.head_dim * products;
        let rate = self.peak * device.attention_ceiling.min(device.gemm_ceiling);
        let moved = if self.job.fused_attention {
            // Query, key, value and output only, for every block that a ring brings.
            4.0 * products * self.blocks() * work.queries
        } else {
            traffic * software.attention_traffic * work.scores
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

    /// Kernels of a forward pass, in those of a transformer's layer.
    fn kernels(&self) -> f64 {
        let rings = (self.blocks() - 1.0) * BLOCK_KERNELS / self.machine.software.kernels;
        self.work.layer.kernels + rings
    }

    /// What attention that takes `attention` seconds does not hide of its group's exchange: nothing of all-to-alls, of a ring
    /// what takes longer than attention on the block before. A backward pass sends sums of gradients beside keys and values.
    fn exchange(&self, attention: f64, backward: bool) -> f64 {
        let links = &self.machine.links;
        let group = Group {
            ranks: self.what_if.context,
            stride: self.job.layout.tp,
        };
        let Some(work) = self.work.layer.attention.filter(|_| group.ranks > 1) else {
            return 0.0;
        };
        match self.what_if.exchange {
            Exchange::Ring => {
                let element = self.element + if backward { SUMMED } else { 0.0 };
                let one = links.shift(work.key_value * element, group);
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
                links.all_to_all((work.queries + work.key_value) * self.element, group)
                    + links.all_to_all(work.queries * self.element, group)
            }
        }
    }

    /// `times` all-reduces of the activations over tp; under sequence parallelism as many pairs of a gather and a scatter,
    /// which move as much.
    fn tensor(&self, times: f64) -> f64 {
        let bytes = self.work.stream;
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
        let layer = &self.work.layer;
        let matrices = layer.matrices.iter();
        let products = matrices.map(|&(k, n)| self.gemm(self.tokens, n, k));
        let attention = self.attention(1.0, 6.5);
        Pass {
            gemm: products.sum::<f64>() + self.unshaped(layer.flops),
            attention,
            elementwise: layer.forward_bytes / self.bandwidth,
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
        self.weights() * (self.element + 2.0 * self.machine.software.gradient_bytes)
    }

    fn backward(&self) -> Pass {
        let layer = &self.work.layer;
        let moved = layer.backward_bytes + self.sums();
        let matrices = layer.matrices.iter();
        let products =
            matrices.map(|&(k, n)| self.gemm(self.tokens, k, n) + self.gemm(k, n, self.tokens));
        // Megatron gathers the inputs of its column-parallel layers again rather than keep them.
        let again =
            self.job.sequence_parallel && self.machine.software.program == Program::Megatron;
        let products_of_attention = if self.job.fused_attention { 2.5 } else { 2.0 };
        let attention = self.attention(products_of_attention, 9.5);
        Pass {
            gemm: products.sum::<f64>() + self.unshaped(2.0 * layer.flops),
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
        let matrices = self.work.layer.matrices.iter();
        let products = matrices.map(|&(k, n)| self.gemm(k, n, self.tokens));
        products.sum::<f64>()
            + self.unshaped(self.work.layer.flops)
            + self.sums() / self.bandwidth
            + WEIGHT_KERNELS * backward.kernels
    }

    fn recompute(&self, forward: &Pass) -> (Pass, f64) {
        match self.job.recompute {
            Recompute::Full => (*forward, 1.0),
            // A fused kernel keeps no scores in the first place.
            Recompute::Selective
                if !self.job.fused_attention && self.work.layer.attention.is_some() =>
            {
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

    /// What measured passes of this shape took, over what is modelled.
    fn factor(&self) -> f64 {
        let (tokens, tp) = (self.what_if.tokens(), self.job.layout.tp);
        let correction = &self.machine.correction;
        let width = self.job.model.width();
        width.map_or(1.0, |width| correction.factor(tokens, width, tp))
    }

    /// Seconds of a forward pass's operations at the ceiling: no measurement makes the plan faster.
    fn least(&self) -> f64 {
        let layer = &self.work.layer;
        let attention = layer.attention.map_or(0.0, |a| 4.0 * a.scores * a.head_dim);
        self.unshaped(2.0 * self.tokens * self.weights() + attention + layer.flops)
    }

    /// One layer.
    pub fn layer(&self) -> Passes {
        let (forward, backward) = (self.forward(), self.backward());
        let (recompute, share) = self.recompute(&forward);
        let (factor, least) = (self.factor(), self.least());
        // Backward pass and recompute are one pass to the host.
        let together = backward.plus(&recompute);
        let host = self.host((2.0 + share) * self.kernels());
        let launched = together.launched_in(host);
        let weight = together.part(
            host,
            self.weight(&backward),
            WEIGHT_KERNELS * 2.0 / (2.0 + share),
        );
        let again = match self.job.recompute {
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

    /// The embedding in front of the layers.
    pub fn embedding(&self) -> Passes {
        let Some(bytes) = self.work.embedding else {
            return Passes::default();
        };
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

    /// What stands behind the layers: final norm, projection and loss.
    pub fn head(&self) -> Passes {
        let Some(work) = self.work.head else {
            return Passes::default();
        };
        let (m, (h, columns)) = (self.tokens, work.matrix);
        let loss = work.loss_bytes / self.bandwidth;
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
