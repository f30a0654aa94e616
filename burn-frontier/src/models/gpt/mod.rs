//! GPT: a pre-norm decoder (GPT-2, GPT-3, Llama-like by configuration).

pub mod batch;
pub mod generate;
pub mod model;
pub mod names;
pub mod part;
mod planned;
pub mod runs;
pub mod sharding;
pub mod specs;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::mesh::Layout;
use crate::observe::flops::ModelShape;
pub use crate::ops::activation::Activation;

/// Most layers of a model: the deepest transformers have a thousand, and each layer's parameters are listed.
const MAX_LAYERS: usize = 1 << 13;

/// Largest width, vocabulary or sequence: tokens and places of elements are counted in 32 bits.
const MAX_SIZE: usize = u32::MAX as usize;

/// Most parameters of a model: a thousand times those of the largest preset.
const MAX_PARAMETERS: usize = 1 << 50;

/// How a token knows its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Positions {
    /// A learned embedding of each position.
    Learned,
    /// Rotary embedding of queries and keys.
    Rotary,
}

/// The normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NormKind {
    /// Layer norm, with bias.
    Layer,
    /// RMS norm, without.
    Rms,
}

/// A GPT.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GptConfig {
    /// Number of blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Attention heads.
    pub heads: usize,
    /// Key and value heads; fewer than `heads` is grouped-query attention.
    pub kv_heads: usize,
    /// Width of the feed-forward block.
    pub ffn: usize,
    /// Number of tokens known, without padding.
    pub vocabulary: usize,
    /// Positions: most tokens that a sample may have.
    pub sequence: usize,
    /// Positions.
    pub positions: Positions,
    /// Nonlinearity.
    pub activation: Activation,
    /// Normalisation.
    pub norm: NormKind,
    /// Whether the output projection is the token embedding.
    pub tied: bool,
    /// Whether linear layers have biases.
    pub bias: bool,
    /// Probability of dropout on the embedding, the attention probabilities and both residual branches.
    pub dropout: f64,
    /// Epsilon of the normalisation.
    pub epsilon: f64,
}

impl GptConfig {
    /// GPT-2's form: learned positions, GELU, layer norm, tied head, biases, no dropout, feed-forward of 4 hidden.
    pub fn new(
        layers: usize,
        hidden: usize,
        heads: usize,
        vocabulary: usize,
        sequence: usize,
    ) -> Self {
        Self {
            layers,
            hidden,
            heads,
            kv_heads: heads,
            // What is too large for that is refused by `validate`.
            ffn: hidden.saturating_mul(4),
            vocabulary,
            sequence,
            positions: Positions::Learned,
            activation: Activation::Gelu,
            norm: NormKind::Layer,
            tied: true,
            bias: true,
            dropout: 0.0,
            epsilon: 1e-5,
        }
    }

    /// Llama's form: rotary positions, SwiGLU, RMS norm, untied head, no biases.
    #[must_use]
    pub fn modern(mut self) -> Self {
        self.positions = Positions::Rotary;
        self.activation = Activation::Swiglu;
        self.norm = NormKind::Rms;
        (self.tied, self.bias) = (false, false);
        self
    }

    /// Sets the number of key and value heads.
    #[must_use]
    pub fn with_kv_heads(mut self, kv_heads: usize) -> Self {
        self.kv_heads = kv_heads;
        self
    }

    /// Sets the dropout probability.
    #[must_use]
    pub fn with_dropout(mut self, dropout: f64) -> Self {
        self.dropout = dropout;
        self
    }

    /// Names of the presets.
    pub const PRESETS: [&str; 5] = ["tiny", "gpt2-124m", "22b", "175b", "1t"];

    /// A preset with a vocabulary of its tokenizer's size (`None`: GPT-2's 50257). `22b`, `175b` and `1t` are those of
    /// arXiv 2312.12705.
    ///
    /// # Errors
    /// An unknown name.
    pub fn preset(name: &str, vocabulary: Option<usize>) -> Result<Self> {
        let vocabulary = vocabulary.unwrap_or(50257);
        let (layers, hidden, heads, sequence) = match name {
            "tiny" => (4, 128, 4, 128),
            "gpt2-124m" => (12, 768, 12, 1024),
            "22b" => (48, 6144, 48, 2048),
            "175b" => (96, 12288, 96, 2048),
            "1t" => (128, 25600, 128, 2048),
            _ => {
                return Err(Error::config(
                    format!("there is no model named '{name}'"),
                    format!("choose one of {}", Self::PRESETS.join(", ")),
                ));
            }
        };
        Ok(Self::new(layers, hidden, heads, vocabulary, sequence))
    }

    /// Elements a head.
    pub fn head_dim(&self) -> usize {
        self.hidden / self.heads.max(1)
    }

    /// The model's shape, for counting floating-point operations.
    pub fn shape(&self) -> ModelShape {
        ModelShape {
            layers: self.layers,
            hidden: self.hidden,
            heads: self.heads,
            kv_heads: self.kv_heads,
            ffn: self.ffn,
            gated: self.activation == Activation::Swiglu,
            vocabulary: self.vocabulary,
            sequence: self.sequence,
        }
    }

    /// Checks that the model makes sense and can be split by `layout`.
    ///
    /// # Errors
    /// The first thing that cannot work, with what would.
    pub fn validate(&self, layout: &Layout, sequence_parallel: bool) -> Result<()> {
        // Its fields are public: it may have been made without.
        layout.validated()?;
        self.validate_sizes()?;
        let tp = layout.tp;
        let heads = self.heads.min(self.kv_heads);
        if !self.heads.is_multiple_of(tp) || !self.kv_heads.is_multiple_of(tp) {
            return Err(Error::config(
                format!(
                    "{} attention heads ({} for keys and values) cannot be split over tp {tp}",
                    self.heads, self.kv_heads
                ),
                format!(
                    "use one of tp {}",
                    list(divisors_of_both(self.heads, self.kv_heads))
                ),
            ));
        }
        if !self.ffn.is_multiple_of(tp) {
            return Err(Error::config(
                format!(
                    "a feed-forward width of {} cannot be split over tp {tp}",
                    self.ffn
                ),
                format!("use one of tp {}", list(divisors_of_both(self.ffn, heads))),
            ));
        }
        if sequence_parallel && !self.sequence.is_multiple_of(tp) {
            return Err(Error::config(
                format!(
                    "a sequence of {} cannot be split over tp {tp} by sequence parallelism",
                    self.sequence
                ),
                format!("use a sequence that is a multiple of {tp}, or no sequence parallelism"),
            ));
        }
        if layout.pp > self.layers {
            return Err(Error::config(
                format!(
                    "{} layers cannot fill {} pipeline stages",
                    self.layers, layout.pp
                ),
                format!(
                    "use pp {} or less, or a model with more layers",
                    self.layers
                ),
            ));
        }
        Ok(())
    }

    fn validate_count(&self) -> Result<()> {
        if self.parameters() > MAX_PARAMETERS {
            return Err(Error::config(
                format!(
                    "a model of {} layers, hidden {}, feed-forward width {}, vocabulary {} and sequence {} has more than 10^15 parameters",
                    self.layers, self.hidden, self.ffn, self.vocabulary, self.sequence
                ),
                "use smaller numbers",
            ));
        }
        Ok(())
    }

    fn validate_sizes(&self) -> Result<()> {
        let sizes = [
            ("layers", self.layers, MAX_LAYERS),
            ("hidden", self.hidden, MAX_SIZE),
            ("heads", self.heads, MAX_SIZE),
            ("kv_heads", self.kv_heads, MAX_SIZE),
            ("ffn", self.ffn, usize::MAX),
            ("vocabulary", self.vocabulary, MAX_SIZE),
            ("sequence", self.sequence, MAX_SIZE),
        ];
        for (name, size, most) in sizes {
            let remedy = match size {
                0 => "give it a positive value".to_string(),
                _ if size > most => format!("use at most {most}"),
                _ => continue,
            };
            return Err(Error::config(format!("{name} is {size}"), remedy));
        }
        self.validate_heads()?;
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::config(
                format!("a dropout probability of {} is not in [0, 1)", self.dropout),
                "use a value such as 0.1, or 0 for none",
            ));
        }
        self.validate_count()
    }

    fn validate_heads(&self) -> Result<()> {
        if !self.hidden.is_multiple_of(self.heads) {
            return Err(Error::config(
                format!(
                    "hidden {} is not a multiple of {} heads",
                    self.hidden, self.heads
                ),
                if self.heads > self.hidden {
                    format!("use at most {} heads", self.hidden)
                } else {
                    format!(
                        "use a hidden size of {}",
                        self.hidden.next_multiple_of(self.heads)
                    )
                },
            ));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(Error::config(
                format!(
                    "{} heads cannot share {} key and value heads evenly",
                    self.heads, self.kv_heads
                ),
                format!(
                    "use one of {} key and value heads",
                    list(divisors_of_both(self.heads, self.heads))
                ),
            ));
        }
        if self.positions == Positions::Rotary && !self.head_dim().is_multiple_of(2) {
            return Err(Error::config(
                format!(
                    "rotary positions need an even head size, not {}",
                    self.head_dim()
                ),
                "change hidden or heads, or use learned positions",
            ));
        }
        Ok(())
    }
}

/// The first divisors of both, as many as one may want to read.
fn divisors_of_both(a: usize, b: usize) -> Vec<usize> {
    const LOOKED_AT: usize = 1 << 16;
    (1..=a.min(b).min(LOOKED_AT))
        .filter(|n| a.is_multiple_of(*n) && b.is_multiple_of(*n))
        .take(16)
        .collect()
}

fn list(numbers: Vec<usize>) -> String {
    let words: Vec<String> = numbers.iter().map(usize::to_string).collect();
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_have_their_published_sizes() {
        let billions = |name| GptConfig::preset(name, None).unwrap().parameters() as f64 / 1e9;
        assert!((billions("gpt2-124m") - 0.124).abs() < 0.001);
        assert!((billions("22b") - 22.0).abs() < 0.5);
        assert!((billions("175b") - 175.0).abs() < 1.0);
        assert!((billions("1t") - 1008.0).abs() < 2.0);
    }

    #[test]
    fn sizes_beyond_counting_are_refused_by_name() {
        let good = GptConfig::new(4, 128, 4, 256, 128);
        let huge = usize::MAX;
        type Set = fn(&mut GptConfig, usize);
        let fields: [(&str, Set); 7] = [
            ("layers", |c, n| c.layers = n),
            ("hidden", |c, n| c.hidden = n),
            ("heads", |c, n| c.heads = n),
            ("kv_heads", |c, n| c.kv_heads = n),
            ("feed-forward width", |c, n| c.ffn = n),
            ("vocabulary", |c, n| c.vocabulary = n),
            ("sequence", |c, n| c.sequence = n),
        ];
        for (name, set) in fields {
            for size in [1 << 40, 1 << 62, huge - 1, huge] {
                let mut config = good.clone();
                set(&mut config, size);
                let error = config.validate(&Layout::single(), true).unwrap_err();
                let error = error.to_string();
                assert!(error.contains(name), "{name} {size}: {error}");
                assert!(error.contains(&size.to_string()), "{name} {size}: {error}");
            }
        }
        let all = GptConfig::new(huge, huge, huge, huge, huge).modern();
        assert_eq!(all.parameters(), huge);
        assert!(all.validate(&Layout::single(), true).is_err());
        // Each alone makes sense, not both.
        let both = GptConfig::new(1 << 13, 1 << 20, 1, 256, 128);
        let error = both.validate(&Layout::single(), false).unwrap_err();
        assert!(error.to_string().contains("10^15 parameters"), "{error}");
        let by_hand = Layout {
            tp: huge,
            pp: 2,
            dp: 0,
        };
        assert!(good.validate(&by_hand, false).is_err());
    }

    #[test]
    fn what_cannot_be_split_is_refused_with_what_can() {
        let refusal = |config: &GptConfig, tp, pp| {
            let layout = Layout {
                tp,
                pp,
                ..Layout::single()
            };
            config.validate(&layout, true).unwrap_err().to_string()
        };
        let config = GptConfig::new(4, 120, 6, 100, 32);
        assert!(refusal(&config, 4, 1).contains("use one of tp 1, 2, 3, 6"));
        assert!(refusal(&config, 1, 5).contains("use pp 4 or less"));
        assert!(refusal(&config, 3, 1).contains("multiple of 3"));
        assert!(refusal(&config.clone().with_kv_heads(4), 1, 1).contains("1, 2, 3, 6"));
        assert!(
            config
                .validate(
                    &Layout {
                        tp: 2,
                        pp: 4,
                        ..Layout::single()
                    },
                    true
                )
                .is_ok()
        );
    }
}
