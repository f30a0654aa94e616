//! The search: thorough, and right about what fits and what is best.

use std::time::Instant;

use super::job;
use burn_frontier::Recompute;
use burn_frontier::plan::advice;
use burn_frontier::plan::search::{judge, nearest, search};
use burn_frontier::plan::{Job, Machine};

#[test]
fn a_thousand_layouts_and_more_are_tried() {
    let machine = Machine::load("frontier").unwrap();
    for (name, job, ranks) in [
        (
            "175B on 1024",
            job((96, 12288, 96), (4, 16, 16), (10240, 1)),
            1024,
        ),
        (
            "1T on 3072",
            job((128, 25600, 128), (8, 64, 6), (9600, 1)),
            3072,
        ),
    ] {
        let start = Instant::now();
        let found = search(&job, &machine, ranks).unwrap();
        let rate = found.tried as f64 / start.elapsed().as_secs_f64();
        println!(
            "{name}: {} tried, {} fit, {rate:.0} a second",
            found.tried,
            found.ranked.len()
        );
        assert!(found.tried > 1000 && !found.ranked.is_empty(), "{name}");
    }
}

#[test]
fn what_is_found_fits_is_ranked_and_beats_the_published_layout() {
    let machine = Machine::load("frontier").unwrap();
    let published = job((48, 6144, 48), (1, 8, 2), (320, 1));
    let found = search(&published, &machine, 16).unwrap();
    let best = &found.ranked[0];
    for pair in found.ranked.windows(2) {
        assert!(pair[0].tokens_per_second_per_rank >= pair[1].tokens_per_second_per_rank);
    }
    for candidate in &found.ranked {
        assert!(candidate.bytes <= machine.usable_bytes());
        assert_eq!(candidate.job.layout.world(), 16);
        candidate.job.validate().unwrap();
    }
    let theirs = judge(&published, &machine).unwrap();
    assert!(best.tokens_per_second_per_rank >= theirs.tokens_per_second_per_rank);
    let front = found.pareto();
    assert_eq!(front[0], best);
    assert!(front.windows(2).all(|pair| pair[1].bytes < pair[0].bytes));
}

#[test]
fn a_layout_that_does_not_fit_has_a_near_one_that_does() {
    let machine = Machine::load("frontier").unwrap();
    let large = Job {
        recompute: Recompute::None,
        ..job((96, 12288, 96), (8, 8, 1), (64, 1))
    };
    assert!(judge(&large, &machine).unwrap().bytes > machine.usable_bytes());
    let near = nearest(&large, &machine).unwrap().unwrap();
    assert!(near.bytes <= machine.usable_bytes());
    assert_eq!(near.job.layout.world(), 64);
}

#[test]
fn advice_is_sorted_and_scaling_begins_at_one() {
    let machine = Machine::load("frontier").unwrap();
    let job = job((96, 12288, 96), (4, 16, 16), (10240, 1));
    for gains in [
        advice::better_machine(&job, &machine).unwrap(),
        advice::other_switches(&job, &machine).unwrap(),
    ] {
        assert!(gains.len() > 5);
        assert!(gains.windows(2).all(|pair| pair[0].gain >= pair[1].gain));
    }
    let nodes = [8, 16, 32, 64, 128];
    let weak = advice::scaling(&job, &machine, &nodes, true).unwrap();
    let strong = advice::scaling(&job, &machine, &nodes, false).unwrap();
    assert_eq!((weak.len(), weak[0].efficiency), (5, 1.0));
    // Published: 100 % weak, 89 % strong.
    assert!(weak[4].efficiency > 0.95, "{weak:?}");
    assert!((0.75..=1.0).contains(&strong[4].efficiency), "{strong:?}");
}
