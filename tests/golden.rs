//! The GPT against values of an independent implementation: PyTorch in float64 (tests/goldens/gpt_golden.json).

mod numbers;

use std::path::Path;
use std::time::Instant;

use burn::tensor::{DType, Device};
use burn_frontier::checkpoint::TensorSource;
use burn_frontier::comm::{Buffer, groups::Groups, local};
use burn_frontier::models::gpt::GptConfig;
use burn_frontier::models::gpt::batch::TokenBatch;
use burn_frontier::models::gpt::model::Pass;
use burn_frontier::models::gpt::names::{Imported, import, to_hugging_face};
use burn_frontier::observe::trace::SpanRecorder;
use burn_frontier::optim::OptimizerConfig;
use burn_frontier::optim::clip_factor;
use burn_frontier::parameter::{ParameterContext, Selection};
use burn_frontier::pipeline::schedule::Kind;
use burn_frontier::pipeline::stage::StepContext;
use burn_frontier::placement::{Block, Placement};
use burn_frontier::{Layout, Result};
use numbers::words;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;

fn golden() -> Value {
    serde_json::from_str(include_str!("goldens/gpt_golden.json")).unwrap()
}

/// The golden's name of one of our parameters.
fn golden_name(name: &str) -> String {
    let names = [
        ("embedding.token.weight", "tok"),
        ("embedding.position.weight", "pos"),
        ("layers.", "h"),
        ("norm1", "ln1"),
        ("norm2", "ln2"),
        ("final_norm", "lnf"),
        ("attention.qkv", "qkv"),
        ("attention.output", "proj"),
        ("mlp.up", "fc"),
        ("mlp.down", "out"),
        (".weight", ".w"),
        (".bias", ".b"),
    ];
    names.iter().fold(name.to_string(), |name, (ours, theirs)| {
        name.replace(ours, theirs)
    })
}

/// The golden's weights, from its generator.
struct Weights(Vec<String>);

impl TensorSource for Weights {
    fn read(&self, name: &str, shape: &[usize], _: &[Block], local: &[usize]) -> Result<Buffer> {
        let theirs = golden_name(name);
        let index = self.0.iter().position(|n| *n == theirs).unwrap() as u32;
        let norm = theirs.contains("ln") && theirs.ends_with(".w");
        let values = words(1000 + index)
            .map(|s| (f64::from(s) / 2f64.powi(31) - 1.0) * 0.1 + f64::from(u8::from(norm)));
        let mut values: Vec<f64> = values.take(shape.iter().product()).collect();
        values.resize(local.iter().product(), 0.0); // Vocabulary padding.
        Ok(Buffer::F64(values))
    }

    fn list(&self, _: &str) -> Vec<(String, Vec<usize>)> {
        Vec::new() // It has the values of parameters only.
    }
}

/// The golden's model and weights.
fn generated() -> (GptConfig, Weights) {
    let order = serde_json::from_value(golden()["order"].clone()).unwrap();
    (GptConfig::new(3, 32, 4, 64, 16), Weights(order))
}

/// The golden's model, and its weights as Hugging Face stores them.
fn imported(config: &GptConfig, weights: &Weights, folder: &Path) -> Imported {
    let mut files: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for spec in config.part_specs(0..config.layers, &Placement::Replicated) {
        let Buffer::F64(values) = weights
            .read(&spec.name, &spec.shape, &[], &spec.shape)
            .unwrap()
        else {
            panic!("the golden's weights are f64");
        };
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let theirs = to_hugging_face(&spec.name).unwrap();
        // A tied head is shown as the token embedding once more.
        if !files.iter().any(|(name, ..)| *name == theirs) {
            files.push((theirs, spec.shape, bytes));
        }
    }
    let views = files.iter().map(|(name, shape, bytes)| {
        (
            name,
            TensorView::new(Dtype::F64, shape.clone(), bytes).unwrap(),
        )
    });
    let model = safetensors::serialize(views, None).unwrap();
    std::fs::write(folder.join("model.safetensors"), model).unwrap();
    let says = r#"{"model_type": "gpt2", "n_head": 4, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}"#;
    std::fs::write(folder.join("config.json"), says).unwrap();
    import(folder).unwrap()
}

fn compare(
    dtype: DType,
    (tolerance, gradient_tolerance): (f64, f64),
    (config, weights): (&GptConfig, &dyn TensorSource),
) {
    let golden = golden();
    let number = |value: &Value| value.as_f64().unwrap();
    let groups = Groups::new(Layout::single(), local::single()).unwrap();
    let context = ParameterContext {
        dtype,
        ..ParameterContext::new(0, &groups, Device::flex())
    };
    let mut pipeline = config.init(Kind::default(), &groups, &context).unwrap();
    let parts = &mut pipeline.chunks;
    burn_frontier::parameter::load_parameters(parts, weights, &groups.tp).unwrap();

    let tokens: Vec<i64> = words(7)
        .take(128)
        .map(|s| i64::from((s >> 16) % 64))
        .collect();
    let batch = TokenBatch {
        tokens: tokens[..64].to_vec(),
        targets: tokens[64..].to_vec(),
        batch: 4,
        positions: vec![0, 1, 2, 3],
    };
    let pass = Pass {
        seed: 0,
        step: None,
        samples: vec![],
        recompute_attention: false,
    };
    let x = parts[0].activations(None, &batch, &pass).unwrap();
    let logits = parts[0]
        .head
        .as_ref()
        .unwrap()
        .logits(x)
        .unwrap()
        .into_data_dtype(DType::F64);
    let logits = logits.try_to_vec::<f64>().unwrap();
    let sum: f64 = logits.iter().sum();
    assert!(
        (sum - number(&golden["logits_sum"])).abs() < tolerance * 100.0,
        "logits sum {sum}"
    );
    for (own, theirs) in logits
        .iter()
        .zip(golden["logits_first"].as_array().unwrap())
    {
        assert!((own - number(theirs)).abs() < tolerance, "{own} {theirs}");
    }

    let zero = OptimizerConfig::new(0, false);
    let (mut reducer, mut optimizer) = zero.init(&mut pipeline.chunks, None, &groups).unwrap();
    let mut spans = SpanRecorder::new(Instant::now(), 0, 0, false);
    for step in 0..10 {
        let context = StepContext {
            seed: 0,
            step: Some(1),
            ..StepContext::default()
        };
        let batches = std::slice::from_ref(&batch);
        let result = pipeline
            .forward_backward(batches, &context, 1.0, &mut reducer, &mut spans)
            .unwrap();
        let loss = result.loss_sum / result.counted as f64;
        assert!(
            (loss - number(&golden["loss"][step])).abs() < tolerance,
            "loss of step {step}: {loss}"
        );
        let reduced = reducer.finish().unwrap();
        if step == 0 {
            let gradients = optimizer.gradients(&reduced, &Selection::all()).unwrap();
            for (spec, gradient) in gradients {
                let own = gradient
                    .into_data_dtype(DType::F64)
                    .try_to_vec::<f64>()
                    .unwrap();
                let name = golden_name(&spec.name);
                let l2 = own.iter().map(|x| x * x).sum::<f64>().sqrt();
                let expected = number(&golden["grad_l2"][&name]);
                assert!(
                    (l2 - expected).abs() < gradient_tolerance * expected,
                    "{name}: {l2} {expected}"
                );
                for (own, theirs) in own
                    .iter()
                    .zip(golden["grad_first"][&name].as_array().unwrap())
                {
                    assert!(
                        (own - number(theirs)).abs() < gradient_tolerance * expected,
                        "{name}"
                    );
                }
            }
        }
        let norm = optimizer.gradient_norm(&reduced).unwrap();
        let expected = number(&golden["grad_norm"][step]);
        assert!(
            (norm - expected).abs() < gradient_tolerance * expected,
            "norm of step {step}: {norm}"
        );
        optimizer
            .step(
                &mut pipeline.chunks,
                reduced,
                1e-3,
                clip_factor(norm, Some(1.0)),
            )
            .unwrap();
    }
}

#[test]
fn f64_equals_pytorch() {
    let (config, weights) = generated();
    compare(DType::F64, (1e-10, 1e-9), (&config, &weights));
}

#[test]
fn f32_equals_pytorch() {
    let (config, weights) = generated();
    compare(DType::F32, (1e-5, 1e-4), (&config, &weights));
}

#[test]
fn a_model_that_is_taken_from_its_file_equals_pytorch() {
    let (config, weights) = generated();
    let folder = tempfile::tempdir().unwrap();
    let file = imported(&config, &weights, folder.path());
    let model = file.model(None, None).unwrap();
    compare(DType::F64, (1e-10, 1e-9), (&model, &file));
}
