//! Models of Burn's own layers, and of ours where those draw or see one replica only; one of our convolutions.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::pool::{AdaptiveAvgPool2d, AdaptiveAvgPool2dConfig};
use burn::nn::{Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::activation::{leaky_relu, log_sigmoid, log_softmax, relu, tanh};
use burn::tensor::{Device, Tensor};
use burn_frontier::Result;
use burn_frontier::comm::groups::Groups;
use burn_frontier::layers::{
    self, ConvTranspose2d, ConvTranspose2dConfig, Dropout, DropoutConfig, SyncBatchNorm,
    SyncBatchNormConfig,
};
use burn_frontier::pipeline::activation::Activation;
use burn_frontier::pipeline::model::{Model, Pass};
use burn_frontier::pipeline::stage::{Batch, Output};

use crate::digits::{Digits, SIDE};

/// The cross entropy of each digit.
fn cross_entropy(logits: Tensor<2>, digits: &Digits) -> Tensor<1> {
    let labels = digits.labels.clone().unsqueeze_dim(1);
    let likelihood = log_softmax(logits, 1).gather(1, labels);
    -likelihood.reshape([-1])
}

/// A convolution of 3 x 3, or of 1 x 1 for a shortcut, and its norm.
#[derive(Module, Debug)]
struct Convolution {
    conv: Conv2d,
    norm: SyncBatchNorm,
}

impl Convolution {
    fn new(channels: [usize; 2], side: usize, stride: usize, groups: &Groups) -> Result<Self> {
        let device = Device::flex();
        let padding = (side - 1) / 2;
        let conv = Conv2dConfig::new(channels, [side, side])
            .with_stride([stride, stride])
            .with_padding(PaddingConfig2d::Explicit(
                padding, padding, padding, padding,
            ))
            .with_bias(false);
        Ok(Self {
            conv: conv.init(&device),
            norm: SyncBatchNormConfig::new(channels[1]).init(&device, &groups.dp)?,
        })
    }

    fn forward(&self, x: Tensor<4>) -> Result<Tensor<4>> {
        self.norm.forward(self.conv.forward(x))
    }
}

/// Two convolutions beside a shortcut (arXiv 1512.03385).
#[derive(Module, Debug)]
struct Block {
    first: Convolution,
    second: Convolution,
    shortcut: Option<Convolution>,
}

impl Block {
    fn new(channels: [usize; 2], stride: usize, groups: &Groups) -> Result<Self> {
        let [_, out] = channels;
        let shortcut = Convolution::new(channels, 1, stride, groups);
        Ok(Self {
            first: Convolution::new(channels, 3, stride, groups)?,
            second: Convolution::new([out, out], 3, 1, groups)?,
            shortcut: (stride > 1).then_some(shortcut).transpose()?,
        })
    }

    fn forward(&self, x: Tensor<4>) -> Result<Tensor<4>> {
        let y = self.second.forward(relu(self.first.forward(x.clone())?))?;
        let x = match &self.shortcut {
            Some(shortcut) => shortcut.forward(x)?,
            None => x,
        };
        Ok(relu(x + y))
    }
}

/// A stage of a small residual network, or all of it.
#[derive(Module, Debug)]
pub struct ResNet {
    stem: Option<Convolution>,
    near: Option<Block>,
    deep: Option<Block>,
    pool: AdaptiveAvgPool2d,
    dropout: Option<Dropout>,
    head: Option<Linear>,
}

impl ResNet {
    /// The first half on the first stage of two, the second on the other.
    pub fn stage(groups: &Groups) -> Result<Self> {
        let (stage, stages) = (groups.at.pp, groups.layout.pp);
        let (first, last) = (stage == 0, stage + 1 == stages);
        let part = |here: bool, make: &dyn Fn() -> Result<Block>| here.then(make).transpose();
        let stem = || Convolution::new([1, 6], 3, 2, groups);
        let dropout = || DropoutConfig::new(0.1).init("dropout");
        Ok(Self {
            stem: first.then(stem).transpose()?,
            near: part(first, &|| Block::new([6, 6], 1, groups))?,
            deep: part(last, &|| Block::new([6, 12], 2, groups))?,
            pool: AdaptiveAvgPool2dConfig::new([1, 1]).init(),
            dropout: last.then(dropout).transpose()?,
            head: last.then(|| LinearConfig::new(12, 10).init(&Device::flex())),
        })
    }
}

impl Model for ResNet {
    type Batch = Digits;

    fn forward(&self, input: Vec<Activation>, digits: &Digits, pass: &Pass) -> Result<Output> {
        let mut x = match input.into_iter().next() {
            Some(x) => x.tensor()?,
            None => digits.pixels.clone(),
        };
        if let Some(stem) = &self.stem {
            x = relu(stem.forward(x)?);
        }
        for block in [&self.near, &self.deep].into_iter().flatten() {
            x = block.forward(x)?;
        }
        let (Some(head), Some(dropout)) = (&self.head, &self.dropout) else {
            return Ok(Output::Activations(vec![x.into()]));
        };
        let x: Tensor<2> = self.pool.forward(x).flatten(1, 3);
        let logits = head.forward(dropout.forward(x, &pass.draws)?);
        Ok(Output::Losses(cross_entropy(logits, digits)))
    }
}

/// An autoencoder of our convolutions. It is smooth: where a ReLU is all but zero, a rounding error decides which side it is on.
#[derive(Module, Debug)]
pub struct Autoencoder {
    input: layers::Conv2d,
    norm: SyncBatchNorm,
    /// Each channel by itself, into two.
    deep: layers::Conv2d,
    output: ConvTranspose2d,
}

impl Autoencoder {
    pub fn new(groups: &Groups) -> Result<Self> {
        let device = Device::flex();
        let conv = |channels| {
            layers::Conv2dConfig::new(channels, [3, 3]).with_padding(PaddingConfig2d::Same)
        };
        let input = conv([1, 6]).with_stride([2, 2]).with_bias(false);
        let output = ConvTranspose2dConfig::new([12, 1], [4, 4])
            .with_stride([2, 2])
            .with_padding([1, 1]);
        Ok(Self {
            input: input.init(&device)?,
            norm: SyncBatchNormConfig::new(6).init(&device, &groups.dp)?,
            deep: conv([6, 12]).with_groups(6).init(&device)?,
            output: output.init(&device)?,
        })
    }
}

impl Model for Autoencoder {
    type Batch = Digits;

    fn forward(&self, _: Vec<Activation>, digits: &Digits, _: &Pass) -> Result<Output> {
        let x = self.input.forward(digits.pixels.clone())?;
        let x = tanh(self.deep.forward(tanh(self.norm.forward(x)?))?);
        let error = self.output.forward(x)? - digits.pixels.clone();
        let error: Tensor<2> = (error.clone() * error).flatten(1, 3);
        Ok(Output::Losses(error.mean_dim(1).reshape([-1])))
    }
}

/// A perceptron with two hidden layers.
#[derive(Module, Debug)]
pub struct Mlp {
    layers: Vec<Linear>,
    head: Linear,
}

impl Mlp {
    pub fn new() -> Self {
        let layer = |[n, m]: [usize; 2]| LinearConfig::new(n, m).init(&Device::flex());
        Self {
            layers: [[SIDE * SIDE, 32], [32, 24]].map(layer).into(),
            head: layer([24, 10]),
        }
    }
}

impl Model for Mlp {
    type Batch = Digits;

    fn forward(&self, _: Vec<Activation>, digits: &Digits, _: &Pass) -> Result<Output> {
        let x: Tensor<2> = digits.pixels.clone().flatten(1, 3);
        let x = self
            .layers
            .iter()
            .fold(x, |x, layer| relu(layer.forward(x)));
        Ok(Output::Losses(cross_entropy(self.head.forward(x), digits)))
    }
}

/// Which of its two networks a batch trains.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Player {
    Generator,
    Discriminator,
}

/// Pictures for one of the players.
#[derive(Debug, Clone)]
pub struct Move {
    pub digits: Digits,
    pub player: Player,
}

impl Batch for Move {
    fn count(&self) -> u64 {
        self.digits.count()
    }

    fn samples(&self) -> &[u64] {
        self.digits.samples()
    }
}

/// A generative adversarial network (arXiv 1406.2661).
#[derive(Module, Debug)]
pub struct Gan {
    pub generator: Network,
    pub discriminator: Network,
}

/// Two layers.
#[derive(Module, Debug)]
pub struct Network {
    first: Linear,
    second: Linear,
}

impl Network {
    fn new(widths: [usize; 3]) -> Self {
        let [a, b, c] = widths;
        Self {
            first: LinearConfig::new(a, b).init(&Device::flex()),
            second: LinearConfig::new(b, c).init(&Device::flex()),
        }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.second.forward(leaky_relu(self.first.forward(x), 0.2))
    }
}

/// Numbers that a picture is made from.
const LATENT: usize = 8;

impl Gan {
    pub fn new() -> Self {
        Self {
            generator: Network::new([LATENT, 24, SIDE * SIDE]),
            discriminator: Network::new([SIDE * SIDE, 24, 1]),
        }
    }
}

impl Model for Gan {
    type Batch = Move;

    fn forward(&self, _: Vec<Activation>, batch: &Move, pass: &Pass) -> Result<Output> {
        let real: Tensor<2> = batch.digits.pixels.clone().flatten(1, 3);
        let shape = [real.dims()[0], LATENT];
        let noise = pass.draws.normal("latent", shape, &Device::flex())?;
        let made = self.generator.forward(noise);
        let loss = match batch.player {
            Player::Generator => log_sigmoid(self.discriminator.forward(made)),
            // The picture is not cut off: what an optimiser does not train gets no gradient.
            Player::Discriminator => {
                log_sigmoid(self.discriminator.forward(real))
                    + log_sigmoid(-self.discriminator.forward(made))
            }
        };
        Ok(Output::Losses(-loss.reshape([-1])))
    }
}
