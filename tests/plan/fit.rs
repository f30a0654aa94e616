//! Calibration finds a machine from its runs, and says honestly how well.

use super::job;
use burn_frontier::models::gpt::GptConfig;
use burn_frontier::plan::fit::Run;
use burn_frontier::plan::fit::{errors, fit, predict};
use burn_frontier::plan::{Job, Machine, time};

/// Runs of a machine that differs from `a100`, in a grid of layouts and shapes.
fn runs(machine: &Machine) -> Vec<Run<GptConfig>> {
    let mut runs = Vec::new();
    for hidden in [1024, 2048, 4096] {
        for (tp, pp, dp) in [
            (1, 1, 8),
            (2, 1, 4),
            (4, 1, 2),
            (1, 2, 4),
            (2, 2, 2),
            (1, 4, 2),
            (8, 4, 2),
        ] {
            for micro_batch in [1, 4] {
                let job = job(
                    (12, hidden, 16),
                    (tp, pp, dp),
                    (8 * micro_batch * dp as u64, micro_batch),
                );
                let seconds = time::step(&job, machine).unwrap().seconds();
                runs.push(Run {
                    job: Job { zero: 0, ..job },
                    seconds,
                });
            }
        }
    }
    for run in &mut runs {
        run.seconds = time::step(&run.job, machine).unwrap().seconds();
    }
    runs
}

#[test]
fn a_slower_machine_is_found_from_its_runs() {
    let start = Machine::load("a100").unwrap();
    let mut truth = start.clone();
    truth.device.gemm_ceiling *= 0.75;
    truth.device.launch_us *= 1.4;
    truth.links.node.gbs *= 0.6;
    let runs = runs(&truth);
    let before = errors(&predict(&start, &runs).unwrap()).0;
    let fitted = fit(&start, &runs).unwrap();
    let (mean, _) = errors(&predict(&fitted.machine, &runs).unwrap());
    let (held_back, _) = errors(&fitted.held_back);
    assert_eq!(fitted.held_back.len(), runs.len());
    assert!(
        before > 0.1 && mean < 0.02 && held_back < 0.04,
        "{before} {mean} {held_back}"
    );
    assert_eq!(fitted.machine.uncertainty, held_back);
    let ratio = |f: fn(&Machine) -> f64| f(&fitted.machine) / f(&truth);
    assert!((ratio(|m| m.device.launch_us) - 1.0).abs() < 0.1);
}

#[test]
fn one_odd_run_does_not_bend_the_rest() {
    let start = Machine::load("a100").unwrap();
    let mut odd = runs(&start);
    odd[5].seconds *= 3.0;
    let fitted = fit(&start, &odd).unwrap();
    let mut errors: Vec<f64> = predict(&fitted.machine, &runs(&start))
        .unwrap()
        .iter()
        .map(|p| p.error().abs())
        .collect();
    errors.sort_by(f64::total_cmp);
    assert!(errors[errors.len() / 2] < 0.03, "{errors:?}");
}

#[test]
fn no_run_is_refused() {
    let error = fit::<GptConfig>(&Machine::load("a100").unwrap(), &[])
        .unwrap_err()
        .to_string();
    assert!(error.contains("no run"), "{error}");
}
