//! The GPT, trained by LAMB and by Muon.

use burn::optim::{LambConfig, MuonConfig};
use burn_frontier::Layout;
use burn_frontier::models::gpt::GptConfig;
use burn_frontier::optim::{AdamWConfig, ParameterGroup};
use burn_frontier::parameter::Selection;
use burn_frontier::pipeline::schedule::Kind;

use crate::harness::{Run, assert_agrees};

fn layouts(run: &Run) -> impl Iterator<Item = Run> {
    let sizes = [
        (1, 1, 2, 1),
        (2, 1, 1, 0),
        (1, 2, 2, 1),
        (2, 1, 2, 1),
        (2, 2, 1, 1),
    ];
    sizes.into_iter().map(|(tp, pp, dp, zero)| Run {
        layout: Layout { tp, pp, dp },
        zero,
        overlap: zero == 1,
        kind: Kind::OneForwardOneBackward,
        sequence_parallel: tp > 1,
        micro_batch: 2,
        ..run.clone()
    })
}

fn follows_one_rank(run: Run) {
    let one = run.train().unwrap();
    assert!(one.losses[run.steps as usize - 1] < one.losses[0]);
    let folder = tempfile::tempdir().unwrap();
    let half = Run {
        steps: run.steps / 2,
        save: Some(folder.path().into()),
        ..layouts(&run).last().unwrap()
    };
    half.train().unwrap();
    for run in layouts(&run) {
        let (layout, zero) = (run.layout, run.zero);
        assert_agrees(
            &run.train().unwrap(),
            &one,
            &format!("{layout} ZeRO {zero}"),
        );
        let resumed = Run {
            resume: Some(folder.path().into()),
            ..run
        };
        let mut outcome = resumed.train().unwrap();
        let half = one.losses.len() / 2;
        outcome
            .losses
            .splice(0..0, one.losses[..half].iter().copied());
        outcome
            .norms
            .splice(0..0, one.norms[..half].iter().copied());
        assert_agrees(
            &outcome,
            &one,
            &format!("continued in {layout} ZeRO {zero}"),
        );
    }
}

fn run() -> Run {
    Run {
        steps: 8,
        ..Run::single(GptConfig::new(2, 32, 4, 61, 16))
    }
}

#[test]
fn lamb_trains_a_gpt_in_every_layout() {
    follows_one_rank(Run {
        rule: LambConfig::new().build().into(),
        // Its steps are a share of a parameter's norm.
        groups: vec![ParameterGroup::new(Selection::all()).with_rate_factor(10.0)],
        ..run()
    });
}

#[test]
fn muon_trains_the_matrices_of_a_gpts_layers_in_every_layout() {
    let rest = |name: &str| {
        !name.starts_with("layers.") || name.contains("norm") || name.ends_with("bias")
    };
    let rest = ParameterGroup::new(Selection::matching(rest)).with_rule(AdamWConfig::default());
    follows_one_rank(Run {
        rule: MuonConfig::new().build().into(),
        groups: vec![rest],
        ..run()
    });
}
