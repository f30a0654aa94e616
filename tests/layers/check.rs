//! Layers that would not give one rank's answer are found before training, by their paths.

use std::fmt;

use burn::module::{Flag, Module, Param};
use burn::nn::activation::RReluConfig;
use burn::nn::transformer::{TransformerEncoder, TransformerEncoderConfig};
use burn::nn::{
    BatchNorm, BatchNormConfig, Dropout, DropoutConfig, GaussianNoise, GaussianNoiseConfig,
};
use burn::tensor::Device;
use burn_frontier::comm::groups::Groups;
use burn_frontier::comm::local::{LocalOptions, run, single};
use burn_frontier::layers::{self, SyncBatchNorm, SyncBatchNormConfig, check, synchronises};
use burn_frontier::{Layout, Result};

#[derive(Module, Debug)]
struct Network<L: Module> {
    blocks: Vec<L>,
    last: Option<L>,
}

/// Each layer twice in a network.
fn network<L: Module>(layer: impl Fn() -> L) -> Network<L> {
    Network {
        blocks: vec![layer()],
        last: Some(layer()),
    }
}

/// What is said of a module on so many replicas.
fn checked<M: Module + Sync>(module: &M, replicas: usize) -> Result<()> {
    let layout = Layout {
        dp: replicas,
        ..Layout::single()
    };
    let on_ranks = run(replicas, &LocalOptions::default(), |world| {
        check(module, &Groups::new(layout, world)?)
    });
    on_ranks.map(|_| ())
}

fn refusal<M: Module + Sync>(module: &M, replicas: usize) -> String {
    checked(module, replicas).unwrap_err().to_string()
}

fn dropout(probability: f64) -> Dropout {
    DropoutConfig::new(probability).init()
}

fn noise(std: f64) -> GaussianNoise {
    GaussianNoiseConfig::new(std).init()
}

fn encoder(dropout: f64) -> TransformerEncoder {
    let config = TransformerEncoderConfig::new(8, 8, 2, 2).with_dropout(dropout);
    config.init(&Device::flex())
}

#[test]
fn burns_layers_that_draw_are_named_by_their_paths() {
    let message = refusal(&network(|| dropout(0.25)), 1);
    for part in [
        "blocks.0 (burn's Dropout, prob: 0.25)",
        "last (",
        "layers::Dropout",
    ] {
        assert!(message.contains(part), "{message}");
    }
    let message = refusal(&network(|| noise(0.5)), 1);
    assert!(
        message.contains("blocks.0 (burn's GaussianNoise, std: 0.5)"),
        "{message}"
    );
    let message = refusal(&network(|| RReluConfig::new().init()), 1);
    assert!(
        message.contains("last (burn's RRelu, lower: 0.125"),
        "{message}"
    );
    let message = refusal(&dropout(0.25), 1);
    assert!(
        message.contains("the model itself (burn's Dropout"),
        "{message}"
    );
}

#[test]
fn the_dropout_inside_of_burns_transformer_is_found() {
    let message = refusal(&encoder(0.1), 1);
    for path in [
        "layers.0.mha.dropout",
        "layers.1.pwff.dropout",
        "layers.1.dropout",
    ] {
        assert!(
            message.contains(&format!("{path} (burn's Dropout, prob: 0.1)")),
            "{message}"
        );
    }
    checked(&encoder(0.0), 4).unwrap();
    let message = refusal(&vec![encoder(0.1), encoder(0.1)], 1);
    assert!(message.contains(" and 6 more;"), "{message}");
}

#[test]
fn layers_that_draw_nothing_may_stay() {
    checked(&network(|| dropout(0.0)), 4).unwrap();
    checked(&network(|| noise(0.0)), 4).unwrap();
    checked(&network(|| dropout(0.5)).freeze(), 4).unwrap();
    checked(&network(|| dropout(0.5)).valid(), 4).unwrap();
}

#[test]
fn a_dropout_whose_probability_cannot_be_seen_counts_as_one() {
    #[derive(Module)]
    struct Hidden {
        dropout: Dropout,
    }
    impl fmt::Debug for Hidden {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Hidden")
        }
    }
    let hidden = Hidden {
        dropout: dropout(0.0),
    };
    let message = refusal(&hidden, 1);
    assert!(
        message.contains("dropout (burn's Dropout; how strong"),
        "{message}"
    );
}

#[test]
fn a_batch_norm_of_each_replicas_own_is_refused_on_many() {
    let norm = || -> BatchNorm { BatchNormConfig::new(4).init(&Device::flex()) };
    let model = network(norm);
    checked(&model, 1).unwrap();
    let message = refusal(&model, 2);
    for part in ["2 replicas: blocks.0, last", "layers::SyncBatchNorm"] {
        assert!(message.contains(part), "{message}");
    }
    checked(&model.freeze(), 2).unwrap();
}

#[test]
fn a_synchronised_batch_norm_is_known_to_meet_the_others() {
    let norm = || -> SyncBatchNorm {
        SyncBatchNormConfig::new(4)
            .init(&Device::flex(), &single())
            .unwrap()
    };
    let model = network(norm);
    checked(&model, 4).unwrap();
    assert!(synchronises(&model));
    assert!(!synchronises(&model.freeze()));
    assert!(!synchronises(&network(|| dropout(0.5))));
}

#[test]
fn layers_of_this_library_pass_unless_two_have_one_name() {
    let layer = |name: &str| layers::DropoutConfig::new(0.5).init(name).unwrap();
    let noise = |name: &str| layers::GaussianNoiseConfig::new(0.5).init(name).unwrap();
    checked(&vec![(layer("a"), noise("b")), (layer("c"), noise("d"))], 4).unwrap();
    for odd in ["a", "a \"b\", c"] {
        let message = refusal(&vec![(layer("c"), noise(odd)), (layer(odd), noise("e"))], 1);
        for part in [
            "0.1 of stage 0 and 1.0 of stage 0 draw",
            &format!("{odd:?}"),
        ] {
            assert!(message.contains(part), "{message}");
        }
    }
}

#[test]
fn layers_of_two_stages_have_no_name_together() {
    let layout = Layout {
        pp: 2,
        ..Layout::single()
    };
    let on_stages = |name: fn(usize) -> String| {
        run(2, &LocalOptions::default(), |world| {
            let groups = Groups::new(layout, world)?;
            let layer = layers::DropoutConfig::new(0.5).init(name(groups.at.pp))?;
            check(&vec![layer], &groups)
        })
    };
    on_stages(|stage| format!("blocks.{stage}.dropout")).unwrap();
    let error = on_stages(|_| "blocks.0.dropout".into()).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("0 of stage 0 and 0 of stage 1"),
        "{message}"
    );
}

#[test]
fn a_layer_that_only_has_the_name_of_burns_is_left_alone() {
    #[derive(Module, Debug)]
    struct Dropout {
        rate: f64,
        training: Param<Flag>,
    }
    let layer = Dropout {
        rate: 0.5,
        training: Param::from_bool(true),
    };
    checked(&layer, 1).unwrap();
}
