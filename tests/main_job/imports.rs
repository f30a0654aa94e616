//! An imported run has the file's model, and an export that cannot be is refused before there is a run.

use std::fs;

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use crate::program::{Place, code, metrics, said, text};

const ONE_RANK: [&str; 6] = ["--data", "text.rs", "--tp", "1", "--pp", "1"];

/// A model of eight heads in the folder `exported`; gives its validation loss.
fn exported(place: &Place) -> f64 {
    let shape = [
        "--layers",
        "1",
        "--hidden",
        "32",
        "--heads",
        "8",
        "--sequence",
        "32",
    ];
    let flags = ["--steps", "3", "--out", "first", "--export", "exported"];
    let output = place.run(&[&ONE_RANK[..], &shape, &flags].concat());
    assert_eq!(code(&output), 0, "{}", said(&output));
    metrics(&place.path().join("first"), "validation_loss")[0]
}

/// A run from that model whose steps change next to nothing.
fn imported(place: &Place, flags: &[&str]) -> std::process::Output {
    let import = ["--import", "exported", "--learning-rate", "1e-12"];
    place.run(&[&ONE_RANK[..], &import, flags].concat())
}

#[test]
fn an_imported_run_has_the_files_model_and_goes_on_and_again_without_its_flags() {
    let place = Place::new();
    let loss = exported(&place);
    for (wrong, said_of) in [
        (
            ["--heads", "4"],
            "--heads 4, but the model in exported has 8 heads",
        ),
        (
            ["--form", "llama"],
            "--form llama, but the model in exported has the form gpt2",
        ),
        (
            ["--sequence", "33"],
            "--sequence 33, but the model in exported has 32 positions",
        ),
    ] {
        let output = imported(
            &place,
            &[&wrong[..], &["--steps", "1", "--out", "run"]].concat(),
        );
        assert_eq!(code(&output), 1, "{wrong:?}");
        assert!(said(&output).contains(said_of), "{}", said(&output));
    }
    assert!(!place.out().exists(), "nothing was begun");

    let output = imported(&place, &["--steps", "1", "--out", "run"]);
    assert_eq!(code(&output), 0, "{}", said(&output));
    assert!(
        text(&output).contains("1 layers, hidden 32, 8 heads"),
        "{}",
        text(&output)
    );
    let found = place.metrics("validation_loss");
    assert!(
        (found[0] - loss).abs() < 1e-6 * loss,
        "{found:?} and {loss}"
    );

    let output = place.run(&["--resume", "--out", "run", "--steps", "2", "--heads", "4"]);
    assert_eq!(code(&output), 1);
    let refusal = "--heads 4, but the run in run has 8 heads";
    assert!(said(&output).contains(refusal), "{}", said(&output));
    let output = place.run(&["--resume", "--out", "run", "--steps", "2"]);
    assert_eq!(code(&output), 0, "{}", said(&output));

    let output = place.run(&["--config", "run/config.toml", "--out", "again"]);
    assert_eq!(code(&output), 0, "{}", said(&output));
    let again = metrics(&place.path().join("again"), "loss");
    assert_eq!(place.metrics("loss")[0], again[0]);
}

#[test]
fn samples_may_be_shorter_than_the_files_positions_in_any_layout() {
    let place = Place::new();
    exported(&place);
    let output = imported(
        &place,
        &["--sequence", "12", "--steps", "1", "--out", "run"],
    );
    assert_eq!(code(&output), 0, "{}", said(&output));
    assert!(
        text(&output).contains("sequence 12 (of 32 positions)"),
        "{}",
        text(&output)
    );

    let layout = [
        "--data",
        "text.rs",
        "--tp",
        "4",
        "--pp",
        "1",
        "--sequence-parallel",
    ];
    let flags = [
        "--import",
        "exported",
        "--sequence",
        "12",
        "--steps",
        "1",
        "--out",
        "split",
    ];
    let output = place.run(&[&layout[..], &flags].concat());
    assert_eq!(code(&output), 0, "{}", said(&output));
    let split = metrics(&place.path().join("split"), "loss")[0];
    let loss = place.metrics("loss")[0];
    assert!((split - loss).abs() < 1e-5 * loss, "{split} and {loss}");

    let output = place.run(&[
        "--resume",
        "--out",
        "run",
        "--steps",
        "2",
        "--sequence",
        "32",
    ]);
    assert_eq!(code(&output), 1);
    assert!(
        said(&output).contains("samples of 12 tokens"),
        "{}",
        said(&output)
    );
}

#[test]
fn what_an_import_leaves_out_is_said_once() {
    let place = Place::new();
    exported(&place);
    let path = place.path().join("exported/model.safetensors");
    let content = fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&content).unwrap();
    let mut views: Vec<(String, TensorView<'_>)> = tensors.tensors();
    for name in ["score.weight", "lm_head.bias"] {
        let norm = tensors.tensor("transformer.ln_f.weight").unwrap();
        views.push((name.into(), norm));
    }
    fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    let output = imported(&place, &["--steps", "1", "--out", "run"]);
    assert_eq!(code(&output), 0);
    let said = said(&output);
    assert_eq!(said.matches("left out").count(), 1, "{said}");
    assert!(
        said.contains("score.weight") && said.contains("lm_head.bias"),
        "{said}"
    );
}

#[test]
fn an_export_that_cannot_be_is_refused_before_there_is_a_run() {
    let place = Place::new();
    fs::create_dir(place.path().join("other")).unwrap();
    fs::write(place.path().join("other/config.json"), "mine").unwrap();
    for (flags, word) in [
        (
            &["--kv-heads", "1", "--export", "out"][..],
            "1 key and value heads for 2 heads",
        ),
        (&["--form", "llama", "--export", "out"], "rotary positions"),
        (&["--export", "text.rs/out"], "cannot export to text.rs/out"),
        (&["--export", "other"], "does not overwrite"),
    ] {
        let output = place.small(&[flags, &["--steps", "1", "--out", "run"]].concat());
        assert_eq!(code(&output), 1, "{flags:?}");
        let said = said(&output);
        assert!(
            said.contains("error: --export") && said.contains(word),
            "{said}"
        );
        assert!(!place.out().exists() && !place.path().join("out").exists());
    }
    let kept = fs::read_to_string(place.path().join("other/config.json")).unwrap();
    assert_eq!(kept, "mine");
}

#[test]
fn an_import_with_nan_is_refused_before_an_older_run_gives_way() {
    let place = Place::new();
    exported(&place);
    let file = place.path().join("exported/model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&file, bytes).unwrap();
    let output = imported(&place, &["--steps", "1", "--out", "first"]);
    assert_eq!(code(&output), 1);
    assert!(
        said(&output).contains("NaN or infinite"),
        "{}",
        said(&output)
    );
    assert!(!place.path().join("first-1").exists());
}
