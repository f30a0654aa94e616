//! GPT-2 as Hugging Face stores it, written and read.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use burn_frontier::checkpoint::{Checkpoint, Piece, TensorSource, save};
use burn_frontier::comm::Buffer;
use burn_frontier::comm::local::{LocalOptions, run};
use burn_frontier::error::Result;
use burn_frontier::models::gpt::GptConfig;
use burn_frontier::models::gpt::names::{export, from_hugging_face, import};
use burn_frontier::placement::Placement;
use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::numbers::words;

const CONFIG: &str = r#"{"n_head": 2, "layer_norm_epsilon": 1e-6, "tie_word_embeddings": false}"#;

/// The model of [`tensors`].
pub fn model(tied: bool) -> GptConfig {
    GptConfig {
        ffn: 12,
        tied,
        dropout: 0.25,
        epsilon: 1e-6,
        ..GptConfig::new(2, 4, 2, 9, 5)
    }
}

/// What the tensors tell of a model: layers, hidden, feed-forward width, vocabulary, positions, and whether the head is tied.
fn sizes(model: &GptConfig) -> ([usize; 5], bool) {
    let GptConfig {
        layers,
        hidden,
        ffn,
        vocabulary,
        sequence,
        tied,
        ..
    } = *model;
    ([layers, hidden, ffn, vocabulary, sequence], tied)
}

/// Names and shapes of a tiny GPT-2, without the prefix.
pub fn tensors(tied: bool) -> Vec<(String, Vec<usize>)> {
    let mut tensors = vec![
        ("wte.weight".to_string(), vec![9, 4]),
        ("wpe.weight".into(), vec![5, 4]),
        ("ln_f.weight".into(), vec![4]),
        ("ln_f.bias".into(), vec![4]),
    ];
    for layer in 0..2 {
        for (module, weight) in [
            ("ln_1", vec![4]),
            ("attn.c_attn", vec![4, 12]),
            ("attn.c_proj", vec![4, 4]),
            ("ln_2", vec![4]),
            ("mlp.c_fc", vec![4, 12]),
            ("mlp.c_proj", vec![12, 4]),
        ] {
            let bias = weight[weight.len() - 1..].to_vec();
            tensors.push((format!("h.{layer}.{module}.weight"), weight));
            tensors.push((format!("h.{layer}.{module}.bias"), bias));
        }
    }
    if !tied {
        tensors.push(("lm_head.weight".into(), vec![9, 4]));
    }
    tensors
}

/// Any bits but those of NaN and infinity, which an import refuses.
pub fn bits(name: &str, count: usize, size: usize) -> Vec<u8> {
    let words = words(crc32fast::hash(name.as_bytes()));
    let bytes = words.enumerate().map(|(i, word)| {
        let highest_of_exponent = if i % size == size - 1 { 0x40 } else { 0 };
        (word >> 24) as u8 & !highest_of_exponent
    });
    bytes.take(count * size).collect()
}

/// A buffer of little-endian elements.
fn buffer(dtype: Dtype, bytes: &[u8]) -> Buffer {
    let halves = || {
        bytes
            .chunks_exact(2)
            .map(|b| u16::from_le_bytes([b[0], b[1]]))
    };
    let words = bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    match dtype {
        Dtype::F16 => Buffer::F16(halves().map(f16::from_bits).collect()),
        Dtype::BF16 => Buffer::BF16(halves().map(bf16::from_bits).collect()),
        _ => Buffer::F32(words.collect()),
    }
}

/// Whether two buffers are the same bit for bit, which `==` does not say of zeros.
fn same(a: &Buffer, b: &Buffer) -> bool {
    match (a, b) {
        (Buffer::F32(a), Buffer::F32(b)) => a
            .iter()
            .map(|v| v.to_bits())
            .eq(b.iter().map(|v| v.to_bits())),
        (Buffer::F16(a), Buffer::F16(b)) => a
            .iter()
            .map(|v| v.to_bits())
            .eq(b.iter().map(|v| v.to_bits())),
        (Buffer::BF16(a), Buffer::BF16(b)) => a
            .iter()
            .map(|v| v.to_bits())
            .eq(b.iter().map(|v| v.to_bits())),
        _ => false,
    }
}

/// Writes a safetensors file by the crate's own writer.
pub fn write(path: &Path, dtype: Dtype, tensors: &[(String, Vec<usize>)]) {
    write_with(path, dtype, tensors, |name, count| {
        bits(name, count, dtype.bitsize() / 8)
    });
}

/// The same with bytes of one's own, by name and number of elements.
pub fn write_with(
    path: &Path,
    dtype: Dtype,
    tensors: &[(String, Vec<usize>)],
    bytes: impl Fn(&str, usize) -> Vec<u8>,
) {
    let data: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(name, shape)| bytes(name, shape.iter().product()))
        .collect();
    let views = tensors.iter().zip(&data).map(|((name, shape), data)| {
        (
            name.clone(),
            TensorView::new(dtype, shape.clone(), data).unwrap(),
        )
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Saves a model of Hugging Face's as a checkpoint of ours, beside optimizer state.
pub fn checkpoint_of(source: &dyn TensorSource, folder: &Path, tied: bool) -> Result<Checkpoint> {
    let mut pieces = Vec::new();
    for (theirs, shape) in tensors(tied) {
        let name = from_hugging_face(&theirs).unwrap();
        let blocks = Placement::Replicated.blocks(&shape, 0, 1);
        let data = source.read(&name, &shape, &blocks, &shape)?;
        let local_shape = shape.clone();
        let piece = Piece {
            name,
            shape,
            blocks,
            local_shape,
            data,
        };
        let state = Piece {
            name: format!("{}::exp_avg", piece.name),
            ..piece.clone()
        };
        pieces.extend([Ok(piece), Ok(state)]);
    }
    let state = serde_json::Value::Null;
    let saved = run(1, &LocalOptions::default(), |comm| {
        save(folder, 1, &state, pieces.clone(), &*comm, 0)
    })?;
    Checkpoint::open(&saved[0])
}

#[test]
fn a_round_trip_through_hugging_face_keeps_every_bit() {
    for (dtype, tied) in [(Dtype::F32, true), (Dtype::F16, false), (Dtype::BF16, true)] {
        let folder = tempfile::tempdir().unwrap();
        let (theirs, ours, exported) = (
            folder.path().join("hf"),
            folder.path().join("ours"),
            folder.path().join("out"),
        );
        fs::create_dir(&theirs).unwrap();
        let mut stored = tensors(tied);
        stored.push(("h.0.attn.bias".into(), vec![1, 1, 5, 5]));
        write(&theirs.join("model.safetensors"), dtype, &stored);

        let imported = import(&theirs).unwrap();
        let found = imported.model(Some(2), None).unwrap();
        assert_eq!(sizes(&found), sizes(&model(tied)));
        assert_eq!(imported.heads(), None);
        let checkpoint = checkpoint_of(&imported, &ours, tied).unwrap();
        export(&checkpoint, &model(tied), &exported).unwrap();

        // Read by the crate's own reader: every tensor, under its name, and nothing else.
        let content = fs::read(exported.join("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&content).unwrap();
        assert_eq!(file.len(), tensors(tied).len());
        for (name, shape) in tensors(tied) {
            let prefix = if name.starts_with("lm_head") {
                ""
            } else {
                "transformer."
            };
            let tensor = file.tensor(&format!("{prefix}{name}")).unwrap();
            assert_eq!(
                (tensor.dtype(), tensor.shape()),
                (dtype, &shape[..]),
                "{name}"
            );
            let count = shape.iter().product();
            assert_eq!(
                tensor.data(),
                bits(&name, count, dtype.bitsize() / 8),
                "{name}"
            );
        }
        let again = import(&exported).unwrap();
        assert_eq!(again.model(None, None).unwrap(), model(tied));
    }
}

#[test]
fn a_rank_reads_its_part_of_a_sharded_hugging_face_model() {
    let folder = tempfile::tempdir().unwrap();
    let all = tensors(false);
    let (first, second) = all.split_at(7);
    let files = [
        ("model-00001-of-00002.safetensors", first),
        ("model-00002-of-00002.safetensors", second),
    ];
    let mut weight_map = HashMap::new();
    for (file, tensors) in files {
        write(&folder.path().join(file), Dtype::F32, tensors);
        weight_map.extend(tensors.iter().map(|(name, _)| (name, file)));
    }
    let index = serde_json::json!({ "metadata": { "total_size": 1 }, "weight_map": weight_map });
    fs::write(
        folder.path().join("model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
    fs::write(folder.path().join("config.json"), CONFIG).unwrap();
    let imported = import(folder.path()).unwrap();
    let model = model(false).with_dropout(0.1);
    assert_eq!(imported.model(None, None).unwrap(), model);

    let (parts, multiple) = (vec![4; 3], 1);
    let placement = Placement::Sharded {
        dim: 1,
        parts,
        multiple,
    };
    let blocks = placement.blocks(&[4, 12], 1, 2);
    let found = imported
        .read("layers.1.attention.qkv.weight", &[4, 12], &blocks, &[4, 6])
        .unwrap();
    let stored = bits("h.1.attn.c_attn.weight", 48, 4);
    let mut part = vec![0; 24 * 4];
    placement.for_each_run(&[4, 12], 1, 2, |global, local, len| {
        part[local * 4..(local + len) * 4].copy_from_slice(&stored[global * 4..(global + len) * 4]);
    });
    assert!(same(&found, &buffer(Dtype::F32, &part)));
}

#[test]
fn what_is_no_gpt2_is_refused_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.safetensors");
    let refused = |reason: &str| {
        let error = import(folder.path()).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    };
    refused("cannot open");
    for (name, content, reason) in [
        ("empty", vec![], "cannot read"),
        (
            "huge header",
            vec![0xff; 64],
            "a header of 18446744073709551615 bytes",
        ),
        (
            "no JSON",
            [&4u64.to_le_bytes()[..], b"nope"].concat(),
            "header cannot be read",
        ),
    ] {
        fs::write(&model, content).unwrap();
        println!("{name}");
        refused(reason);
    }
    for (missing, reason) in [
        ("wte.weight", "there is no tensor `embedding.token.weight`"),
        ("h.1.ln_2.bias", "there is no tensor `layers.1.norm2.bias`"),
        ("h.0.attn.c_attn.weight", "there is no tensor"),
    ] {
        let mut some = tensors(true);
        some.retain(|(name, _)| name != missing);
        write(&model, Dtype::F32, &some);
        refused(reason);
    }
    let mut other = tensors(true);
    other[3].1 = vec![5];
    write(&model, Dtype::F32, &other);
    refused("`final_norm.bias` has shape [5], not [4]");
    let mut twice = tensors(true);
    twice.push(("transformer.wte.weight".into(), vec![9, 4]));
    write(&model, Dtype::F32, &twice);
    refused("there twice");
    let index = r#"{"weight_map":{"wte.weight":"../model.safetensors"}}"#;
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    refused("no name of a file beside it");
}
