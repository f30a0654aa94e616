//! How others name a GPT's tensors: Hugging Face's GPT-2, read and written.
//!
//! Their linear layers are `Conv1D`, whose weights are `[in, out]` as ours are, so no tensor is transposed.

mod config;
mod export;
mod import;

pub use export::{check_export, export};
pub use import::{Imported, import};

/// Modules outside the layers: ours, theirs.
const MODULES: [(&str, &str); 4] = [
    ("embedding.token", "transformer.wte"),
    ("embedding.position", "transformer.wpe"),
    ("final_norm", "transformer.ln_f"),
    ("head", "lm_head"),
];

/// Modules of a layer: ours, theirs.
const LAYER_MODULES: [(&str, &str); 6] = [
    ("norm1", "ln_1"),
    ("attention.qkv", "attn.c_attn"),
    ("attention.output", "attn.c_proj"),
    ("norm2", "ln_2"),
    ("mlp.up", "mlp.c_fc"),
    ("mlp.down", "mlp.c_proj"),
];

const MODEL: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const CONFIG: &str = "config.json";

/// Hugging Face's name of a model tensor of ours; none if GPT-2 has no such tensor, as for optimizer state.
pub fn to_hugging_face(name: &str) -> Option<String> {
    let (module, parameter) = name.rsplit_once('.')?;
    if let Some(rest) = module.strip_prefix("layers.") {
        let (layer, module) = split_layer(rest)?;
        let (_, theirs) = LAYER_MODULES.iter().find(|(ours, _)| *ours == module)?;
        return is_parameter(parameter)
            .then(|| format!("transformer.h.{layer}.{theirs}.{parameter}"));
    }
    let (_, theirs) = MODULES.iter().find(|(ours, _)| *ours == module)?;
    (parameter == "weight" || (module == "final_norm" && parameter == "bias"))
        .then(|| format!("{theirs}.{parameter}"))
}

/// Our name of a tensor of Hugging Face's GPT-2, with or without the prefix `transformer.`; none for what is no
/// parameter, such as the causal mask `attn.bias`.
pub fn from_hugging_face(name: &str) -> Option<String> {
    let bare = name.strip_prefix("transformer.").unwrap_or(name);
    let (module, parameter) = bare.rsplit_once('.')?;
    if let Some(rest) = module.strip_prefix("h.") {
        let (layer, module) = split_layer(rest)?;
        let (ours, _) = LAYER_MODULES.iter().find(|(_, theirs)| *theirs == module)?;
        return is_parameter(parameter).then(|| format!("layers.{layer}.{ours}.{parameter}"));
    }
    let full =
        |theirs: &str| theirs == module || theirs.strip_prefix("transformer.") == Some(module);
    let (ours, _) = MODULES.iter().find(|(_, theirs)| full(theirs))?;
    (parameter == "weight" || (*ours == "final_norm" && parameter == "bias"))
        .then(|| format!("{ours}.{parameter}"))
}

/// `12.mlp.up` into the layer and the module.
fn split_layer(rest: &str) -> Option<(usize, &str)> {
    let (number, module) = rest.split_once('.')?;
    let layer: usize = number.parse().ok()?;
    (layer.to_string() == number).then_some((layer, module))
}

fn is_parameter(name: &str) -> bool {
    name == "weight" || name == "bias"
}

#[cfg(test)]
mod tests {
    use super::config::Dimensions;
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        let dimensions = Dimensions {
            layers: 11,
            hidden: 4,
            inner: 16,
            vocabulary: 9,
            positions: 5,
            tied: false,
        };
        for (ours, _) in dimensions.shapes() {
            let theirs = to_hugging_face(&ours).unwrap();
            assert_eq!(from_hugging_face(&theirs).unwrap(), ours);
            let bare = theirs.trim_start_matches("transformer.");
            assert_eq!(from_hugging_face(bare).unwrap(), ours);
        }
        let qkv = to_hugging_face("layers.3.attention.qkv.weight");
        assert_eq!(qkv.as_deref(), Some("transformer.h.3.attn.c_attn.weight"));
    }

    #[test]
    fn what_is_no_parameter_has_no_name() {
        for theirs in [
            "h.0.attn.bias",
            "h.0.attn.masked_bias",
            "h.00.ln_1.weight",
            "h.x.ln_1.weight",
            "wte.bias",
            "score.weight",
        ] {
            assert_eq!(from_hugging_face(theirs), None, "{theirs}");
        }
        for ours in [
            "layers.0.norm1.weight::exp_avg",
            "embedding.token.bias",
            "layers.0.norm1",
            "head.weight::master",
        ] {
            assert_eq!(to_hugging_face(ours), None, "{ours}");
        }
    }
}
