//! Parameter groups.

use burn::optim::SgdConfig;
use burn::tensor::Device;
use burn_frontier::Layout;
use burn_frontier::comm::groups::Groups;
use burn_frontier::comm::local;
use burn_frontier::optim::{AdamWConfig, OptimizerConfig, ParameterGroup};
use burn_frontier::parameter::{Module, ParameterContext, Selection};

use crate::net::{Net, Trial, backward, layouts, specs, total, with_state};

fn only(name: &'static str) -> ParameterGroup {
    ParameterGroup::new(Selection::matching(move |other| other == name))
}

#[test]
fn a_rate_factor_is_a_factor_on_the_rate() {
    let plain = Trial::new(&|config| config.with_rule(SgdConfig::new().build()));
    let slow = Trial::new(&|config| {
        let config = config.with_rule(SgdConfig::new().build());
        config.with_group(only("fused").with_rate_factor(0.5))
    });
    let start = Trial {
        steps: 0,
        ..plain.clone()
    };
    let (start, one) = (start.train().unwrap(), plain.train().unwrap());
    for here in layouts() {
        let half = slow.of(here).train().unwrap();
        for (name, values) in &half {
            for (i, value) in values.iter().enumerate() {
                let (from, to) = (start[name][i], one[name][i]);
                let factor = if name == "fused" { 0.5 } else { 1.0 };
                let expected = from + (to - from) * factor;
                assert!(
                    (value - expected).abs() < 1e-6,
                    "{here:?} {name}: {value} {expected}"
                );
            }
        }
    }
}

#[test]
fn a_group_decides_whether_adamw_decays() {
    let strong = || AdamWConfig {
        weight_decay: 10.0,
        ..AdamWConfig::default()
    };
    let weak = |config: OptimizerConfig| {
        config.with_rule(AdamWConfig {
            weight_decay: 0.0,
            ..strong()
        })
    };
    let none = Trial::new(&weak);
    let chosen = |config: OptimizerConfig| {
        let config = config
            .with_rule(strong())
            .with_group(only("bias").with_decay(true));
        config.with_group(only("fused").with_decay(false))
    };
    let all = Trial::new(&chosen);
    let none = none.train().unwrap();
    for here in layouts() {
        let all = all.of(here).train().unwrap();
        assert_eq!(all["fused"], none["fused"], "{here:?}");
        for name in ["bias", "table", "kernel"] {
            assert_ne!(all[name], none[name], "{here:?} {name}");
        }
    }
}

#[test]
fn a_frozen_parameter_stays_and_is_saved_without_state() {
    let config = |config: OptimizerConfig| config.with_group(only("fused").frozen());
    let frozen = Trial::new(&config);
    let start = Trial {
        steps: 0,
        ..frozen.clone()
    };
    let (start, free) = (start.train().unwrap(), Trial::new(&|c| c).train().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let far = layouts().last().unwrap();
    frozen.of(far).saving(folder.path(), 3).train().unwrap();
    for here in layouts() {
        for trial in [frozen.of(here), frozen.of(here).resuming(folder.path())] {
            let trained = trial.train().unwrap();
            assert_eq!(trained["fused"], start["fused"], "{here:?}");
            for name in ["bias", "kernel", "table"] {
                assert_eq!(trained[name], free[name], "{here:?} {name}");
            }
            assert!(!with_state(&trained).contains("fused"));
        }
    }
}

#[test]
fn a_frozen_parameters_gradient_is_not_reduced() {
    let layout = Layout {
        dp: 2,
        ..Layout::single()
    };
    local::run(2, &Default::default(), |world| {
        let groups = Groups::new(layout, world)?;
        let context = ParameterContext::new(7, &groups, Device::flex());
        let mut nets = [Net::new(&context)];
        let config = OptimizerConfig::new(0, false).with_group(only("fused").frozen());
        let (mut reducer, optimizer) = config.init(&mut nets, None, &groups)?;
        let reduced = backward(&mut nets[0], &mut reducer, 1, &groups)?;
        let elements: usize = reduced.iter().map(|x| x.dims()[0]).sum();
        // The table with its padding, 6 x 3; the bias, padded to two pieces of 4; the kernel.
        assert_eq!(elements, 18 + 8 + 24);
        assert_eq!(
            optimizer.names().collect::<Vec<_>>(),
            ["table", "bias", "kernel"]
        );
        assert!(!config.trained().contains("fused"));
        assert!(nets[0].fused.sum.is_none());
        assert_eq!(nets[0].names().len(), 4);
        Ok(())
    })
    .unwrap();
}

#[test]
fn gradients_are_asked_for_by_name_and_whole_in_every_layout() {
    for (layout, zero) in layouts() {
        for whole_parameters in [false, true] {
            local::run(layout.world(), &Default::default(), |world| {
                let groups = Groups::new(layout, world)?;
                let context = ParameterContext::new(7, &groups, Device::flex());
                let mut nets = [Net::new(&context)];
                let mut config = OptimizerConfig::new(zero, false);
                if whole_parameters {
                    config = config.with_rule(burn::optim::LambConfig::new().build());
                }
                config.bucket_elements = 20;
                let (mut reducer, optimizer) = config.init(&mut nets, None, &groups)?;
                let reduced = backward(&mut nets[0], &mut reducer, 1, &groups)?;
                for spec in specs() {
                    let name = spec.name.clone();
                    let one = Selection::matching(move |other| other == name);
                    let found = optimizer.gradients(&reduced, &one)?;
                    assert_eq!(found.len(), 1);
                    let (found, gradient) = found.into_iter().next().unwrap();
                    assert_eq!((&found.name, &found.shape), (&spec.name, &spec.shape));
                    let gradient = gradient.into_data().try_to_vec::<f32>().unwrap();
                    assert_eq!(
                        gradient,
                        total(&spec, 1),
                        "{layout} ZeRO {zero}: {}",
                        spec.name
                    );
                }
                let all = optimizer.gradients(&reduced, &Selection::all())?;
                assert_eq!(all.len(), 4);
                Ok(())
            })
            .unwrap();
        }
    }
}
