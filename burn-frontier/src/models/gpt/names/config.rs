//! What a GPT-2 is: what its `config.json` says, and the sizes that its tensors tell.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::models::gpt::{Activation, GptConfig, NormKind, Positions};

/// Hugging Face's names of GELU in its tanh form; they differ in how it is computed, not in what it is. `gelu` is the
/// exact one.
const TANH_GELU: [&str; 5] = [
    "gelu_new",
    "gelu_pytorch_tanh",
    "gelu_python_tanh",
    "gelu_fast",
    "gelu_accurate",
];

/// What a `config.json` that says nothing of it means by the first and the last token of a text: GPT-2's own.
const END_OF_TEXT: usize = 50256;

/// The members of a `config.json` that change what the model computes. What is not there is as Hugging Face has it, but
/// for the sizes: those the tensors tell, and the heads nothing else does.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct ConfigFile {
    model_type: String,
    #[serde(alias = "num_attention_heads")]
    pub(super) n_head: Option<usize>,
    #[serde(alias = "num_hidden_layers")]
    n_layer: Option<usize>,
    #[serde(alias = "hidden_size")]
    n_embd: Option<usize>,
    n_inner: Option<usize>,
    #[serde(alias = "max_position_embeddings")]
    n_positions: Option<usize>,
    vocab_size: Option<usize>,
    activation_function: String,
    pub(super) layer_norm_epsilon: f64,
    scale_attn_weights: bool,
    scale_attn_by_inverse_layer_idx: bool,
    add_cross_attention: bool,
    pub(super) tie_word_embeddings: bool,
    resid_pdrop: f64,
    embd_pdrop: f64,
    attn_pdrop: f64,
    pruned_heads: Value,
    quantization_config: Value,
    auto_map: Value,
}

impl Default for ConfigFile {
    fn default() -> Self {
        Self {
            model_type: "gpt2".into(),
            n_head: None,
            n_layer: None,
            n_embd: None,
            n_inner: None,
            n_positions: None,
            vocab_size: None,
            activation_function: TANH_GELU[0].into(),
            layer_norm_epsilon: 1e-5,
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
            add_cross_attention: false,
            tie_word_embeddings: true,
            resid_pdrop: 0.1,
            embd_pdrop: 0.1,
            attn_pdrop: 0.1,
            pruned_heads: Value::Null,
            quantization_config: Value::Null,
            auto_map: Value::Null,
        }
    }
}

impl ConfigFile {
    /// Refuses a model that a [`GptConfig`] cannot be; returns what is wrong and what would do.
    pub(super) fn check(&self) -> Result<(), String> {
        let (yes, no, none) = (json!(true), json!(false), Value::Null);
        let inverse = json!(self.scale_attn_by_inverse_layer_idx);
        for (name, found, needed) in [
            ("model_type", json!(self.model_type), json!("gpt2")),
            ("scale_attn_weights", json!(self.scale_attn_weights), yes),
            ("scale_attn_by_inverse_layer_idx", inverse, no.clone()),
            ("add_cross_attention", json!(self.add_cross_attention), no),
            ("pruned_heads", or_null(&self.pruned_heads), none.clone()),
            (
                "quantization_config",
                or_null(&self.quantization_config),
                none.clone(),
            ),
            ("auto_map", or_null(&self.auto_map), none),
        ] {
            if found != needed {
                return Err(format!("has {name} {found}, and only {needed} can be run"));
            }
        }
        let gelu = &self.activation_function;
        if !TANH_GELU.contains(&gelu.as_str()) {
            let known = TANH_GELU.join(", ");
            return Err(format!(
                "has activation_function \"{gelu}\", and only GELU in its tanh form can be run ({known})"
            ));
        }
        if self.layer_norm_epsilon <= 0.0 {
            let found = self.layer_norm_epsilon;
            return Err(format!(
                "has layer_norm_epsilon {found}, which is not above 0"
            ));
        }
        Ok(())
    }

    /// What it says of the sizes and the tensors say otherwise.
    pub(super) fn agree(&self, tensors: &Dimensions) -> Result<(), String> {
        for (name, said, found) in [
            ("n_layer", self.n_layer, tensors.layers),
            ("n_embd", self.n_embd, tensors.hidden),
            ("n_inner", self.n_inner, tensors.inner),
            ("n_positions", self.n_positions, tensors.positions),
            ("vocab_size", self.vocab_size, tensors.vocabulary),
        ] {
            if let Some(said) = said.filter(|said| *said != found) {
                return Err(format!("has {name} {said}, but the tensors have {found}"));
            }
        }
        Ok(())
    }

    /// The one probability of dropout; what is wrong if there are several.
    pub(super) fn dropout(&self) -> Result<f64, String> {
        let [residual, embedding, attention] = [self.resid_pdrop, self.embd_pdrop, self.attn_pdrop];
        if residual == embedding && embedding == attention {
            return Ok(residual);
        }
        Err(format!(
            "has resid_pdrop {residual}, embd_pdrop {embedding} and attn_pdrop {attention}, where a model here has one probability"
        ))
    }
}

/// Null for what is empty, as an empty map of pruned heads.
fn or_null(value: &Value) -> Value {
    match value {
        Value::Object(map) if map.is_empty() => Value::Null,
        other => other.clone(),
    }
}

/// What of a model GPT-2's form cannot express, if there is anything.
pub(super) fn beyond_gpt2(model: &GptConfig) -> Option<String> {
    let differences = [
        (
            model.positions != Positions::Learned,
            "rotary positions".to_string(),
        ),
        (model.activation != Activation::Gelu, "SwiGLU".into()),
        (model.norm != NormKind::Layer, "RMS norm".into()),
        (!model.bias, "linear layers without biases".into()),
        (
            model.kv_heads != model.heads,
            format!(
                "{} key and value heads for {} heads",
                model.kv_heads, model.heads
            ),
        ),
    ];
    let found: Vec<String> = differences
        .into_iter()
        .filter_map(|(differs, what)| differs.then_some(what))
        .collect();
    (!found.is_empty()).then(|| found.join(", "))
}

/// The `config.json` of a model that GPT-2's form can express. It says everything that changes the mathematics, also
/// where Hugging Face's default is the same.
pub(super) fn config_json(model: &GptConfig) -> Value {
    let mut config = json!({
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": model.vocabulary,
        "n_positions": model.sequence,
        "n_ctx": model.sequence,
        "n_embd": model.hidden,
        "n_layer": model.layers,
        "n_head": model.heads,
        "n_inner": model.ffn,
        "activation_function": TANH_GELU[0],
        "layer_norm_epsilon": model.epsilon,
        "scale_attn_weights": true,
        "scale_attn_by_inverse_layer_idx": false,
        "add_cross_attention": false,
        "tie_word_embeddings": model.tied,
        "resid_pdrop": model.dropout,
        "embd_pdrop": model.dropout,
        "attn_pdrop": model.dropout,
    });
    if model.vocabulary <= END_OF_TEXT {
        (config["bos_token_id"], config["eos_token_id"]) = (Value::Null, Value::Null);
    }
    config
}

/// The sizes of a GPT, as its tensors tell them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dimensions {
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
    /// The sizes of a model.
    pub(super) fn of(model: &GptConfig) -> Self {
        Self {
            layers: model.layers,
            hidden: model.hidden,
            inner: model.ffn,
            vocabulary: model.vocabulary,
            positions: model.sequence,
            tied: model.tied,
        }
    }

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
