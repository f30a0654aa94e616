//! What a GPT-2 is: the sizes its tensors tell, and what only its `config.json` tells.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What tensors cannot tell of a GPT-2: fields of its `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HuggingFaceConfig {
    /// Attention heads.
    #[serde(rename = "n_head")]
    pub heads: usize,
    /// Added to the variance in layer norms.
    #[serde(rename = "layer_norm_epsilon", default = "default_epsilon")]
    pub norm_epsilon: f64,
    /// Activation of the MLP: `gelu_new` is the approximation by tanh, `gelu` the exact one.
    #[serde(rename = "activation_function", default = "default_activation")]
    pub activation: String,
}

fn default_epsilon() -> f64 {
    1e-5
}

fn default_activation() -> String {
    "gelu_new".into()
}

/// The sizes of a GPT, as its tensors tell them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dimensions {
    /// Transformer layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the MLP.
    pub inner: usize,
    /// Tokens in the vocabulary, without padding.
    pub vocabulary: usize,
    /// Longest sequence.
    pub positions: usize,
    /// Whether the head is the token embedding.
    pub tied: bool,
}

impl Dimensions {
    /// The sizes of the model whose tensors have these shapes; `what` says what is missing or does not fit.
    pub(super) fn infer(shapes: &BTreeMap<String, Vec<usize>>, tied: bool) -> Result<Self, String> {
        let matrix = |name: &str| match shapes.get(name).map(Vec::as_slice) {
            Some(&[rows, columns]) => Ok((rows, columns)),
            Some(other) => Err(format!(
                "tensor `{name}` has shape {other:?}, not two dimensions"
            )),
            None => Err(format!("there is no tensor `{name}`")),
        };
        let (vocabulary, hidden) = matrix("embedding.token.weight")?;
        let is_layer = |name: &&String| name.ends_with(".attention.qkv.weight");
        let dimensions = Self {
            layers: shapes.keys().filter(is_layer).count(),
            hidden,
            inner: matrix("layers.0.mlp.up.weight")?.1,
            vocabulary,
            positions: matrix("embedding.position.weight")?.0,
            tied,
        };
        for (name, expected) in dimensions.shapes() {
            match shapes.get(&name) {
                Some(found) if *found == expected => {}
                Some(found) => {
                    return Err(format!(
                        "tensor `{name}` has shape {found:?}, not {expected:?}"
                    ));
                }
                None => return Err(format!("there is no tensor `{name}`")),
            }
        }
        Ok(dimensions)
    }

    /// Names and shapes of all tensors.
    pub(super) fn shapes(self) -> impl Iterator<Item = (String, Vec<usize>)> {
        let (c, inner) = (self.hidden, self.inner);
        let layers = (0..self.layers).flat_map(move |layer| {
            [
                ("norm1", c, None),
                ("attention.qkv", 3 * c, Some(c)),
                ("attention.output", c, Some(c)),
                ("norm2", c, None),
                ("mlp.up", inner, Some(c)),
                ("mlp.down", c, Some(inner)),
            ]
            .into_iter()
            .flat_map(move |(module, out, input)| {
                let weight = input.into_iter().chain([out]).collect();
                [("weight", weight), ("bias", vec![out])].map(|(parameter, shape)| {
                    (format!("layers.{layer}.{module}.{parameter}"), shape)
                })
            })
        });
        [
            ("embedding.token.weight", vec![self.vocabulary, c]),
            ("embedding.position.weight", vec![self.positions, c]),
            ("final_norm.weight", vec![c]),
            ("final_norm.bias", vec![c]),
        ]
        .into_iter()
        .chain((!self.tied).then(|| ("head.weight", vec![self.vocabulary, c])))
        .map(|(name, shape)| (name.to_string(), shape))
        .chain(layers)
    }
}
