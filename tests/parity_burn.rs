//! What holds for the GPT holds for models of Burn's layers: every layout gives one rank's losses.

#[path = "parity_burn/digits.rs"]
mod digits;
#[path = "parity_burn/models.rs"]
mod models;
#[path = "parity_burn/training.rs"]
mod training;

use burn::optim::LambConfig;
use burn_frontier::Layout;
use burn_frontier::comm::groups::Groups;
use burn_frontier::comm::local::{self, LocalOptions};
use burn_frontier::optim::OptimizerConfig;
use burn_frontier::parameter::Selection;

use digits::Source;
use models::{Autoencoder, Gan, Mlp, Move, Player, ResNet};
use training::Recipe;

/// The last losses are well below the first.
fn assert_learns(losses: &[f64]) {
    let mean = |few: &[f64]| few.iter().sum::<f64>() / few.len() as f64;
    let (first, last) = (mean(&losses[..5]), mean(&losses[losses.len() - 5..]));
    assert!(last < 0.9 * first, "{losses:?}");
}

fn dp(dp: usize) -> Layout {
    Layout {
        dp,
        ..Layout::single()
    }
}

fn resnet(source: Source) -> Recipe<ResNet> {
    Recipe {
        model: ResNet::stage,
        batch: Box::new(move |_, first, cut| source.batch(first, cut.collect())),
        optimizers: |zero| vec![OptimizerConfig::new(zero, zero > 0)],
        rate: 1e-2,
    }
}

/// Layouts and ZeRO stages of a ResNet.
fn layouts() -> Vec<(Layout, u8)> {
    let pp = |dp| Layout {
        pp: 2,
        dp,
        ..Layout::single()
    };
    vec![(dp(2), 0), (dp(4), 1), (pp(1), 0), (dp(2), 1), (pp(2), 1)]
}

#[test]
fn a_resnet_with_synchronised_batch_norm_has_one_ranks_losses_in_every_layout() {
    let losses = resnet(Source::Drawn).has_one_ranks_losses(&layouts(), 30);
    assert_learns(&losses);
}

#[test]
fn a_resnet_on_real_digits_has_one_ranks_losses() {
    let Some(source) = Source::mnist() else {
        eprintln!("skipped: no ../shared/data/mnist beside the repository, or no gzip");
        return;
    };
    resnet(source).has_one_ranks_losses(&layouts()[1..3], 6);
}

#[test]
fn an_autoencoder_of_our_convolutions_has_one_ranks_losses_in_every_layout() {
    let recipe = Recipe {
        model: Autoencoder::new,
        batch: Box::new(|_, first, cut| Source::Drawn.batch(first, cut.collect())),
        optimizers: |zero| vec![OptimizerConfig::new(zero, zero > 0)],
        rate: 1e-2,
    };
    let runs = [(dp(2), 0), (dp(4), 1), (dp(2), 1), (dp(4), 0)];
    assert_learns(&recipe.has_one_ranks_losses(&runs, 20));
}

#[test]
fn a_perceptron_under_lamb_has_one_ranks_losses_in_every_layout() {
    let recipe = Recipe::<Mlp> {
        model: |_| Ok(Mlp::new()),
        batch: Box::new(|_, first, cut| Source::Drawn.batch(first, cut.collect())),
        optimizers: |zero| {
            let lamb = LambConfig::new().with_weight_decay(0.01).build();
            let config = OptimizerConfig {
                bucket_elements: 5000, // Several buckets.
                ..OptimizerConfig::new(zero, zero > 0)
            };
            vec![config.with_rule(lamb)]
        },
        rate: 4e-2,
    };
    let losses = recipe.has_one_ranks_losses(&[(dp(2), 0), (dp(4), 1), (dp(2), 1), (dp(4), 0)], 40);
    assert_learns(&losses);
}

/// The discriminator's optimiser begins.
fn gan() -> Recipe<Gan> {
    Recipe {
        model: |_| Ok(Gan::new()),
        batch: Box::new(|step, first, cut| Move {
            digits: Source::Drawn.batch(first, cut.collect()),
            player: match step % 2 {
                1 => Player::Discriminator,
                _ => Player::Generator,
            },
        }),
        optimizers: |zero| {
            let of = |name: &str| {
                OptimizerConfig::new(zero, zero > 0).with_selection(Selection::within(name))
            };
            vec![of("discriminator"), of("generator")]
        },
        rate: 1e-3,
    }
}

#[test]
fn a_gan_with_two_optimisers_has_one_ranks_losses_in_every_layout() {
    let runs = [(dp(2), 0), (dp(4), 1), (dp(2), 1), (dp(4), 0)];
    gan().has_one_ranks_losses(&runs, 12);
}

#[test]
fn what_the_generator_does_leaks_nothing_to_the_discriminator() {
    let recipe = gan();
    let norms = |between: usize| {
        local::run(2, &LocalOptions::default(), |world| {
            let groups = Groups::new(dp(2), world)?;
            let mut state = recipe.begin(&groups, 1)?;
            // Gradients of the generator that are not used.
            for _ in 0..between {
                state.gradients(&recipe.batches(&groups, 2)?, &recipe.options(1, 2))?;
            }
            let norm = state
                .gradients(&recipe.batches(&groups, 1)?, &recipe.options(1, 1))?
                .norm;
            Ok(norm)
        })
        .unwrap()
    };
    assert_eq!(norms(0), norms(3));
}
