//! What cannot work is refused, with what to change.

use burn::optim::{AdamConfig, LambConfig, LionConfig, MuonConfig, SgdConfig};
use burn::tensor::{DType, Device};
use burn_frontier::Layout;
use burn_frontier::comm::groups::Groups;
use burn_frontier::comm::local;
use burn_frontier::optim::{AdamWConfig, BurnRule, OptimizerConfig, ParameterGroup};
use burn_frontier::parameter::{ParameterContext, Selection};

use crate::net::{Net, Trial, layouts};
use crate::rules::Largest;

/// Checks that training is refused in every layout, and what the error says.
fn refused(config: &(dyn Fn(OptimizerConfig) -> OptimizerConfig + Sync), says: &[&str]) {
    for here in layouts() {
        let error = Trial::new(config).of(here).train().unwrap_err().to_string();
        for says in says {
            assert!(error.contains(says), "{here:?}: {error}");
        }
    }
}

fn named(names: &'static [&'static str]) -> ParameterGroup {
    ParameterGroup::new(Selection::matching(|name| names.contains(&name)))
}

#[test]
fn muon_refuses_what_is_no_matrix_by_name() {
    let muon = || MuonConfig::new().build();
    refused(
        &|config| config.with_rule(muon()),
        &[
            "Muon takes parameters of rank 2, and bias is of rank 1, [7]",
            "parameter group",
        ],
    );
    // A user's own can say so too.
    let rule = || BurnRule::new(Largest).for_ranks(1..=2);
    refused(
        &|config| config.with_rule(rule()),
        &["Largest takes parameters of ranks 1 to 2, and kernel is of rank 3, [2, 3, 4]"],
    );
}

#[test]
fn groups_that_make_no_sense_are_refused() {
    refused(
        &|config| config.with_group(named(&["fusd"]).frozen()),
        &["parameter group 1 has no parameter", "fused"],
    );
    refused(
        &|config| {
            config
                .with_group(named(&["fused"]))
                .with_group(named(&["fused", "bias"]))
        },
        &["fused is in the parameter groups 1 and 2"],
    );
    refused(
        &|config| config.with_group(named(&["fused"]).with_rate_factor(-1.0)),
        &["parameter group 1 has the rate factor -1"],
    );
    refused(
        &|config| config.with_group(ParameterGroup::new(Selection::all()).frozen()),
        &["all parameters of the optimiser are frozen"],
    );
    let sgd = || SgdConfig::new().build();
    refused(
        &|config| config.with_group(named(&["fused"]).with_rule(sgd()).with_decay(false)),
        &["whether its parameters decay, which Sgd decides itself"],
    );
    refused(
        &|config| config.with_selection(Selection::within("nothing")),
        &["selection has no parameter of the model", "bias"],
    );
}

#[test]
fn a_parameter_has_one_optimiser() {
    let groups = Groups::new(Layout::single(), local::single()).unwrap();
    let context = ParameterContext::new(7, &groups, Device::flex());
    let mut nets = [Net::new(&context)];
    let config = OptimizerConfig::new(0, false);
    let fused = config.clone().with_selection(Selection::within("fused"));
    fused.init(&mut nets, None, &groups).unwrap();
    let error = config
        .init(&mut nets, None, &groups)
        .unwrap_err()
        .to_string();
    assert!(error.contains("fused has an optimiser already"), "{error}");
}

#[test]
fn the_state_of_another_rule_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let adam = Trial::new(&|config| config.with_rule(AdamConfig::new().build()));
    adam.saving(folder.path(), 3).train().unwrap();
    let lion = LionConfig::new().build();
    let sgd = SgdConfig::new().build();
    let configs: [(&(dyn Fn(OptimizerConfig) -> OptimizerConfig + Sync), &str); 4] = [
        (
            &|config| config.with_rule(lion.clone()),
            "not what Lion remembers: momentum.time",
        ),
        // Keeps nothing, and would take no notice.
        (
            &|config| config.with_rule(sgd.clone()),
            "not what Sgd remembers: momentum.time",
        ),
        (
            &|config| config.with_rule(LambConfig::new().build()),
            "not what Lamb remembers",
        ),
        (
            &|config| config.with_rule(AdamWConfig::default()),
            "::exp_avg",
        ),
    ];
    for here in layouts() {
        for (config, says) in configs {
            let trial = Trial::new(config).of(here).resuming(folder.path());
            let error = trial.train().unwrap_err().to_string();
            assert!(error.contains(says), "{here:?}: {error}");
        }
    }
}

#[test]
fn parameters_that_were_updated_apart_are_not_updated_together() {
    let folder = tempfile::tempdir().unwrap();
    let adam = AdamConfig::new().build();
    let frozen = |config: OptimizerConfig| {
        let config = config.with_rule(adam.clone());
        config.with_group(named(&["fused"]).frozen())
    };
    Trial::new(&frozen)
        .saving(folder.path(), 3)
        .train()
        .unwrap();
    let thawed = |mut config: OptimizerConfig| {
        config.bucket_elements = 1000;
        config.with_rule(adam.clone())
    };
    let error = Trial::new(&thawed)
        .resuming(folder.path())
        .train()
        .unwrap_err()
        .to_string();
    assert!(error.contains("fused"), "{error}");
}

#[test]
fn a_rule_that_is_not_element_wise_cannot_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let rule = || BurnRule::new(Largest).element_wise();
    let config = |config: OptimizerConfig| config.with_rule(rule());
    let error = Trial::new(&config)
        .saving(folder.path(), 1)
        .train()
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("Largest is said to be element-wise, and its norm is"),
        "{error}"
    );
}

#[test]
fn a_rule_that_panics_is_an_error_that_names_the_parameter() {
    // Burn's Muon asks for matrices: what it says when it is given others all the same.
    let rule = || BurnRule::new(MuonConfig::new().build()).for_ranks(1..=3);
    refused(
        &|config| config.with_rule(rule()),
        &["Muon failed on ", "requires 2D tensors"],
    );
}

#[test]
fn states_of_f64_that_burn_would_round_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let adam = AdamConfig::new().build();
    let config = |config: OptimizerConfig| config.with_rule(adam.clone());
    let trial = Trial {
        dtype: DType::F64,
        ..Trial::new(&config)
    };
    trial.saving(folder.path(), 3).train().unwrap();
    let error = trial
        .resuming(folder.path())
        .train()
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("is stored in F64, and Burn makes F32 of it"),
        "{error}"
    );
}
