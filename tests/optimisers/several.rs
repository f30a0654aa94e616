//! Several optimisers over parts of one model, each with its own steps.

use burn::optim::{LambConfig, SgdConfig};
use burn::tensor::{Device, Tensor};
use burn_frontier::checkpoint::{self, Checkpoint};
use burn_frontier::comm::groups::Groups;
use burn_frontier::comm::local;
use burn_frontier::optim::{Optimizer, OptimizerConfig};
use burn_frontier::parameter::{Module, ParameterContext, Selection};
use burn_frontier::zero::reducer::GradientReducer;
use burn_frontier::{Layout, Result};

use crate::net::{Net, RATE, backward, layouts};

type Both = [(GradientReducer, Optimizer); 2];

fn matrices() -> Selection {
    Selection::matching(|name| ["fused", "table"].contains(&name))
}

fn others() -> Selection {
    Selection::matching(|name| !["fused", "table"].contains(&name))
}

fn both(nets: &mut [Net], zero: u8, groups: &Groups) -> Result<Both> {
    let lamb = LambConfig::new().build();
    let first = OptimizerConfig::new(zero, true).with_selection(matrices());
    let second = OptimizerConfig::new(zero, false).with_selection(others());
    Ok([
        first.with_rule(lamb).init(nets, None, groups)?,
        second.init(nets, None, groups)?,
    ])
}

fn values(net: &Net) -> Vec<Vec<f32>> {
    let of = |x: Tensor<1>| x.into_data().try_to_vec::<f32>().unwrap();
    vec![
        of(net.fused.value.clone().reshape([-1])),
        of(net.table.value.clone().reshape([-1])),
        of(net.bias.value.clone()),
        of(net.kernel.value.clone().reshape([-1])),
    ]
}

/// One step of one of the optimisers.
fn step(
    number: u64,
    nets: &mut [Net],
    of: &mut (GradientReducer, Optimizer),
    groups: &Groups,
) -> Result<()> {
    let reduced = backward(&mut nets[0], &mut of.0, number, groups)?;
    of.1.step(nets, reduced, RATE, 1.0)
}

#[test]
fn each_optimiser_updates_its_own_parameters_and_counts_its_own_steps() {
    for (layout, zero) in layouts() {
        let folder = tempfile::tempdir().unwrap();
        local::run(layout.world(), &Default::default(), |world| {
            let groups = Groups::new(layout, world)?;
            let context = ParameterContext::new(7, &groups, Device::flex());
            let mut nets = [Net::new(&context)];
            let start = values(&nets[0]);
            let mut both_of = both(&mut nets, zero, &groups)?;
            step(1, &mut nets, &mut both_of[1], &groups)?;
            let after = values(&nets[0]);
            assert_eq!(after[..2], start[..2], "of the other optimiser");
            assert_ne!(after[2], start[2]);
            assert_ne!(after[3], start[3]);
            step(1, &mut nets, &mut both_of[0], &groups)?;
            step(2, &mut nets, &mut both_of[0], &groups)?;
            assert_eq!(values(&nets[0])[2..], after[2..], "of the other optimiser");
            assert_eq!((both_of[0].1.steps, both_of[1].1.steps), (2, 1));
            // Saved together, and continued.
            let pieces: Vec<_> = both_of
                .iter()
                .flat_map(|of| of.1.pieces(&mut nets))
                .collect();
            let world = groups.world.as_ref();
            checkpoint::save(folder.path(), 1, &serde_json::json!({}), pieces, world, 1)?;
            let mut again = [Net::new(&context)];
            let mut both_again = both(&mut again, zero, &groups)?;
            let saved = Checkpoint::newest(folder.path())?.expect("a checkpoint");
            both_again[0].1.restore(&mut again, 2, &saved)?;
            both_again[1].1.restore(&mut again, 1, &saved)?;
            for number in 3..5 {
                for i in [0, 1] {
                    step(number, &mut nets, &mut both_of[i], &groups)?;
                    step(number, &mut again, &mut both_again[i], &groups)?;
                }
            }
            assert_eq!(values(&nets[0]), values(&again[0]), "{layout} ZeRO {zero}");
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn what_is_added_to_a_sum_between_steps_does_not_reach_the_next_step() {
    for overlap in [false, true] {
        let groups = Groups::new(Layout::single(), local::single()).unwrap();
        let context = ParameterContext::new(7, &groups, Device::flex());
        let mut nets = [Net::new(&context)];
        let config = OptimizerConfig::new(0, overlap);
        let (mut reducer, _) = config.init(&mut nets, None, &groups).unwrap();
        let clean = backward(&mut nets[0], &mut reducer, 1, &groups).unwrap();
        // As the backward pass of another network does through this one, where a kernel adds to sums.
        let sum = nets[0].fused.sum.clone().unwrap();
        sum.add(Tensor::ones([24], &Device::flex()));
        let again = backward(&mut nets[0], &mut reducer, 1, &groups).unwrap();
        for (clean, again) in clean.into_iter().zip(again) {
            assert_eq!(clean.into_data(), again.into_data());
        }
    }
}

#[test]
fn what_another_optimiser_trains_takes_nothing_from_a_pass() {
    let groups = Groups::new(Layout::single(), local::single()).unwrap();
    let context = ParameterContext::new(7, &groups, Device::flex());
    let mut nets = [Net::new(&context)];
    let mut both = both(&mut nets, 0, &groups).unwrap();
    // Gradients of all parameters are offered.
    let reduced = backward(&mut nets[0], &mut both[1].0, 1, &groups).unwrap();
    let names: Vec<_> = both[1].1.names().collect();
    assert_eq!(names, ["bias", "kernel"]);
    assert_eq!(
        both[1]
            .1
            .gradients(&reduced, &Selection::all())
            .unwrap()
            .len(),
        2
    );
    assert!(nets[0].fused.sum.as_ref().unwrap().take().is_none());
    // A pass for the second one has leaves of its own only.
    let leaves = nets[0].leaves(&others());
    assert!(leaves.fused.sum.is_none() && !leaves.fused.value.is_require_grad());
    assert!(leaves.kernel.sum.is_some() && leaves.kernel.value.is_require_grad());
}

#[test]
fn a_stage_without_parameters_of_an_optimiser_takes_part() {
    // As in a pipeline whose first stage is one network, and whose second another.
    let layout = Layout {
        pp: 2,
        ..Layout::single()
    };
    local::run(2, &Default::default(), |world| {
        let groups = Groups::new(layout, world)?;
        let context = ParameterContext::new(7, &groups, Device::flex());
        let mut nets = [Net::new(&context).fused, Net::new(&context).table];
        let nets = &mut nets[groups.at.pp..][..1];
        let config = OptimizerConfig::new(0, false);
        let config = config.with_selection(Selection::within("fused"));
        let config = config.with_rule(SgdConfig::new().build());
        let (mut reducer, mut optimizer) = config.init(nets, None, &groups)?;
        reducer.begin()?;
        if groups.at.pp == 0 {
            let gradient = Tensor::ones([24], &Device::flex());
            reducer.add(vec![(nets[0].spec.clone(), Some(gradient))], true)?;
        }
        let reduced = reducer.finish()?;
        let norm = optimizer.gradient_norm(&reduced)?;
        assert!((norm - 24f64.sqrt()).abs() < 1e-12, "{norm}");
        optimizer.step(nets, reduced, RATE, 1.0)
    })
    .unwrap();
}
