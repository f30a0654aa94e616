//! An import is what the file says, or is refused by name; an export destroys nothing.

use std::fmt::Debug;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use burn_frontier::checkpoint::TensorSource;
use burn_frontier::error::Result;
use burn_frontier::models::gpt::names::{check_export, export, import};
use burn_frontier::models::gpt::{Activation, GptConfig, NormKind, Positions};
use burn_frontier::placement::Placement;
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::hugging_face::{bits, checkpoint_of, model, tensors, write, write_with};

/// A tiny GPT-2 in a folder of its own, with this `config.json`.
fn folder(tied: bool, config: &Value) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    write(&path.join("model.safetensors"), Dtype::F32, &tensors(tied));
    fs::write(path.join("config.json"), config.to_string()).unwrap();
    folder
}

/// The `config.json` that an export of this model writes.
fn exported(model: &GptConfig) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let (theirs, ours) = (folder.path().join("hf"), folder.path().join("ours"));
    fs::create_dir(&theirs).unwrap();
    let tensors = tensors(model.tied);
    write(&theirs.join("model.safetensors"), Dtype::F32, &tensors);
    let checkpoint = checkpoint_of(&import(&theirs).unwrap(), &ours, model.tied).unwrap();
    export(&checkpoint, model, &folder.path().join("out")).unwrap();
    let config = fs::read(folder.path().join("out/config.json")).unwrap();
    serde_json::from_slice(&config).unwrap()
}

fn read(path: &Path) -> Result<GptConfig> {
    import(path)?.model(None, None)
}

fn text<T: Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn every_member_that_changes_the_mathematics_changes_the_model_or_is_refused() {
    let base = exported(&model(false));
    let others = [
        ("model_type", json!("gpt_neo")),
        ("vocab_size", json!(8)),
        ("n_positions", json!(4)),
        ("n_embd", json!(8)),
        ("n_layer", json!(1)),
        ("n_head", json!(4)),
        ("n_head", json!(3)),
        ("n_head", json!(0)),
        ("n_inner", json!(16)),
        ("activation_function", json!("gelu")),
        ("activation_function", json!("relu")),
        ("activation_function", json!("silu")),
        ("activation_function", json!("quick_gelu")),
        ("layer_norm_epsilon", json!(1e-5)),
        ("layer_norm_epsilon", json!(0)),
        ("scale_attn_weights", json!(false)),
        ("scale_attn_by_inverse_layer_idx", json!(true)),
        ("add_cross_attention", json!(true)),
        ("tie_word_embeddings", json!(true)),
        ("resid_pdrop", json!(0)),
        ("embd_pdrop", json!(0)),
        ("attn_pdrop", json!(0)),
        ("pruned_heads", json!({"0": [1]})),
        ("quantization_config", json!({"load_in_8bit": true})),
        ("auto_map", json!({"AutoModelForCausalLM": "custom.Model"})),
    ];
    let unchanged = read(folder(false, &base).path()).unwrap();
    assert_eq!(unchanged, model(false));
    for (member, other) in &others {
        let mut config = base.clone();
        config[*member] = other.clone();
        match read(folder(false, &config).path()) {
            Ok(model) => assert_ne!(model, unchanged, "{member} {other}"),
            Err(error) => {
                let error = error.to_string();
                println!("{error}");
                let named =
                    error.contains(member) || *member == "n_head" && error.contains("heads");
                assert!(named, "{member} {other}: {error}");
            }
        }
    }
    // Nothing that an export says is read past, but for what is no mathematics.
    let free = ["architectures", "n_ctx", "bos_token_id", "eos_token_id"];
    for member in base.as_object().unwrap().keys() {
        let known = others.iter().any(|(name, _)| name == member);
        assert!(known || free.contains(&member.as_str()), "{member}");
    }
}

#[test]
fn what_does_not_change_the_mathematics_changes_nothing() {
    let base = exported(&model(true));
    for (member, other) in [
        ("activation_function", json!("gelu_pytorch_tanh")),
        ("activation_function", json!("gelu_fast")),
        ("reorder_and_upcast_attn", json!(true)),
        ("initializer_range", json!(0.5)),
        ("torch_dtype", json!("bfloat16")),
        ("n_inner", json!(null)),
        ("pruned_heads", json!({})),
        ("summary_type", json!("mean")),
    ] {
        let mut config = base.clone();
        config[member] = other;
        assert_eq!(read(folder(true, &config).path()).unwrap(), model(true));
    }
    let mut config = base;
    let heads = config.as_object_mut().unwrap().remove("n_head").unwrap();
    config["num_attention_heads"] = heads;
    assert_eq!(read(folder(true, &config).path()).unwrap(), model(true));
}

#[test]
fn what_the_file_leaves_open_is_asked_for() {
    let folder = folder(true, &json!({}));
    let path = folder.path();
    fs::remove_file(path.join("config.json")).unwrap();
    let imported = import(path).unwrap();
    let found = text(imported.model(None, None));
    assert!(found.contains("give the number of heads"), "{found}");
    let (found, said) = warnings(|| imported.model(Some(2), None));
    let gpt2 = GptConfig {
        ffn: 12,
        ..GptConfig::new(2, 4, 2, 9, 5).with_dropout(0.1)
    };
    assert_eq!(found.unwrap(), gpt2);
    assert!(said.len() == 1 && said[0].contains("1e-5"), "{said:?}");
    let found = text(imported.model(Some(3), None));
    assert!(found.contains("no multiple of 3 heads"), "{found}");
}

#[test]
fn what_is_wanted_may_not_contradict_the_file() {
    let mut config = exported(&model(true));
    let imported = import(folder(true, &config).path()).unwrap();
    assert_eq!(imported.model(Some(2), None).unwrap(), model(true));
    let found = text(imported.model(Some(4), None));
    assert!(found.contains("has 2 heads, not 4"), "{found}");
    let other = imported.model(None, Some(0.5)).unwrap();
    assert_eq!(other, model(true).with_dropout(0.5));

    config["attn_pdrop"] = json!(0.0);
    let imported = import(folder(true, &config).path()).unwrap();
    let found = text(imported.model(None, None));
    assert!(
        found.contains("attn_pdrop 0,") || found.contains("attn_pdrop 0 "),
        "{found}"
    );
    assert_eq!(imported.model(None, Some(0.5)).unwrap(), other);
}

#[test]
fn the_head_is_what_file_and_tensors_say_together() {
    let path = tempfile::tempdir().unwrap();
    let path = path.path();
    let copied = |copy: bool| {
        write_with(
            &path.join("model.safetensors"),
            Dtype::F32,
            &tensors(false),
            |name, count| {
                let from = if copy && name == "lm_head.weight" {
                    "wte.weight"
                } else {
                    name
                };
                bits(from, count, 4)
            },
        );
    };
    let tied = |says: Option<bool>| {
        let config = path.join("config.json");
        match says {
            Some(tied) => fs::write(
                config,
                json!({"n_head": 2, "tie_word_embeddings": tied}).to_string(),
            )
            .unwrap(),
            None => drop(fs::remove_file(config)),
        }
        let (imported, warnings) = warnings(|| import(path));
        imported.map(|imported| (imported.model(Some(2), None).unwrap().tied, warnings))
    };
    copied(true);
    assert_eq!(tied(Some(true)).unwrap(), (true, vec![]));
    assert_eq!(tied(None).unwrap(), (true, vec![]));
    assert_eq!(tied(Some(false)).unwrap(), (false, vec![]));
    copied(false);
    assert_eq!(tied(None).unwrap(), (false, vec![]));
    assert_eq!(tied(Some(false)).unwrap(), (false, vec![]));
    let (tied_all_the_same, said) = tied(Some(true)).unwrap();
    assert!(
        tied_all_the_same && said[0].contains("`lm_head.weight` is left out"),
        "{said:?}"
    );
    write(&path.join("model.safetensors"), Dtype::F32, &tensors(true));
    assert_eq!(tied(None).unwrap(), (true, vec![]));
    let found = text(tied(Some(false)));
    assert!(found.contains("tie_word_embeddings false"), "{found}");
}

#[test]
fn tensors_that_are_left_out_are_named_in_one_message() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    let mut more = tensors(true);
    let masks = [
        "h.0.attn.bias",
        "transformer.h.1.attn.bias",
        "h.0.attn.masked_bias",
    ];
    more.extend(masks.map(|name| (name.to_string(), vec![1])));
    write(&file, Dtype::F32, &more);
    let (imported, said) = warnings(|| import(folder.path()));
    assert!(imported.is_ok() && said.is_empty(), "{said:?}");

    more.extend(
        [
            "score.weight",
            "h.0.crossattention.c_attn.weight",
            "lm_head.bias",
        ]
        .map(|name| (name.to_string(), vec![1])),
    );
    write(&file, Dtype::F32, &more);
    let (imported, said) = warnings(|| import(folder.path()));
    assert!(imported.is_ok() && said.len() == 1, "{said:?}");
    for name in [
        "score.weight",
        "h.0.crossattention.c_attn.weight",
        "lm_head.bias",
    ] {
        assert!(said[0].contains(name), "{said:?}");
    }

    more.extend((0..100).map(|i| (format!("adapter.{i}.weight"), vec![1])));
    write(&file, Dtype::F32, &more);
    let (imported, said) = warnings(|| import(folder.path()));
    assert!(imported.is_ok() && said.len() == 1, "{said:?}");
    assert!(said[0].contains("and 83 more"), "{said:?}");
}

#[test]
fn a_value_that_is_no_number_is_refused_with_its_tensor() {
    for (dtype, bad) in [
        (Dtype::F32, f32::NAN.to_le_bytes().to_vec()),
        (Dtype::F32, f32::NEG_INFINITY.to_le_bytes().to_vec()),
        (Dtype::F64, f64::INFINITY.to_le_bytes().to_vec()),
        (Dtype::F16, half::f16::NAN.to_le_bytes().to_vec()),
        (Dtype::BF16, half::bf16::INFINITY.to_le_bytes().to_vec()),
    ] {
        let folder = tempfile::tempdir().unwrap();
        write_with(
            &folder.path().join("model.safetensors"),
            dtype,
            &tensors(true),
            |name, count| {
                let mut bytes = bits(name, count, dtype.bitsize() / 8);
                if name == "h.1.mlp.c_fc.weight" {
                    let last = bytes.len() - bad.len();
                    bytes[last..].copy_from_slice(&bad);
                }
                bytes
            },
        );
        let imported = import(folder.path()).unwrap();
        let refusal = text(imported.check_values());
        assert!(refusal.contains("h.1.mlp.c_fc.weight"), "{refusal}");
        for (theirs, shape) in tensors(true) {
            let name = burn_frontier::models::gpt::names::from_hugging_face(&theirs).unwrap();
            let blocks = Placement::Replicated.blocks(&shape, 0, 1);
            let found = imported.read(&name, &shape, &blocks, &shape);
            if theirs == "h.1.mlp.c_fc.weight" {
                let found = text(found);
                assert!(
                    found.contains(&theirs) && found.contains("NaN or infinite"),
                    "{found}"
                );
            } else {
                assert!(found.is_ok(), "{theirs}");
            }
        }
    }
}

#[test]
fn a_pickled_model_is_refused_with_what_would_do() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("pytorch_model.bin"), "PK").unwrap();
    let found = text(import(folder.path()));
    assert!(found.contains("only safetensors are read"), "{found}");
}

#[test]
fn elements_that_are_no_floats_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    write_with(
        &folder.path().join("model.safetensors"),
        Dtype::I8,
        &tensors(true),
        |_, count| vec![1; count],
    );
    let found = text(import(folder.path()));
    assert!(found.contains("elements of type I8"), "{found}");
}

#[test]
fn what_gpt2_cannot_express_is_refused_before_there_is_anything_to_export() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    let refused = |model: GptConfig, what: &str| {
        let found = text(check_export(&model, &path));
        assert!(found.contains(what), "{found}");
        assert!(!path.exists());
    };
    let gpt2 = GptConfig::new(2, 8, 4, 9, 5);
    check_export(&gpt2, &path).unwrap();
    assert!(!path.exists());
    refused(gpt2.clone().with_kv_heads(1), "1 key and value heads for 4");
    refused(
        gpt2.clone().modern(),
        "rotary positions, SwiGLU, RMS norm, linear layers without biases",
    );
    refused(
        GptConfig {
            positions: Positions::Rotary,
            ..gpt2.clone()
        },
        "rotary",
    );
    refused(
        GptConfig {
            activation: Activation::Swiglu,
            ..gpt2.clone()
        },
        "SwiGLU",
    );
    refused(
        GptConfig {
            norm: NormKind::Rms,
            ..gpt2.clone()
        },
        "RMS",
    );
    refused(
        GptConfig {
            bias: false,
            ..gpt2
        },
        "without biases",
    );
}

#[test]
fn an_export_overwrites_nothing_and_a_check_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let gpt2 = GptConfig::new(2, 8, 4, 9, 5);
    check_export(&gpt2, &path.join("a/b/c")).unwrap();
    assert!(!path.join("a").exists());

    fs::write(path.join("notes.txt"), "mine").unwrap();
    check_export(&gpt2, path).unwrap();
    for name in [
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
    ] {
        fs::write(path.join(name), "mine").unwrap();
        let found = text(check_export(&gpt2, path));
        assert!(
            found.contains(name) && found.contains("does not overwrite"),
            "{found}"
        );
        fs::remove_file(path.join(name)).unwrap();
    }
    for below in ["notes.txt", "notes.txt/deeper"] {
        let found = text(check_export(&gpt2, &path.join(below)));
        assert!(found.contains("cannot export to"), "{found}");
    }
    assert_eq!(fs::read_dir(path).unwrap().count(), 1);
}

#[test]
fn an_export_is_of_the_model_that_is_given_with_it() {
    let folder = folder(true, &exported(&model(true)));
    let ours = folder.path().join("ours");
    let checkpoint = checkpoint_of(&import(folder.path()).unwrap(), &ours, true).unwrap();
    let out = folder.path().join("out");
    let found = text(export(&checkpoint, &model(false), &out));
    assert!(
        found.contains("tied: true") && found.contains("tied: false"),
        "{found}"
    );
    assert!(!out.exists());
    export(&checkpoint, &model(true), &out).unwrap();
    assert!(text(export(&checkpoint, &model(true), &out)).contains("does not overwrite"));
}

/// What `action` gives, and the warnings it emits.
fn warnings<T>(action: impl FnOnce() -> T) -> (T, Vec<String>) {
    let warnings = Warnings::default();
    let seen = warnings.0.clone();
    let result = tracing::subscriber::with_default(warnings, action);
    let seen = seen.lock().unwrap().clone();
    (result, seen)
}

#[derive(Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        struct Message(String);
        impl tracing::field::Visit for Message {
            fn record_debug(&mut self, _: &tracing::field::Field, value: &dyn Debug) {
                self.0 = format!("{value:?}");
            }
        }
        let mut message = Message(String::new());
        event.record(&mut message);
        self.0.lock().unwrap().push(message.0);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}
