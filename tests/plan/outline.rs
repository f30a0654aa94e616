//! A model that says the least: what a rank needs to train any Burn module.

use burn::module::Module;
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig};
use burn::tensor::Device;
use burn_frontier::Layout;
use burn_frontier::parameter::BurnModule;
use burn_frontier::plan::{Estimate, Job, Machine, Outline, Report, search};

#[derive(Module, Debug)]
struct Net {
    linear: Linear,
    norm: BatchNorm,
    frozen: Linear,
}

/// 100 x 200 weights and 200 biases, two vectors of 200 and their running statistics, a frozen matrix of 200 x 10.
fn outline() -> Outline {
    let device = Device::flex();
    let frozen = LinearConfig::new(200, 10).with_bias(false).init(&device);
    let net = Net {
        linear: LinearConfig::new(100, 200).init(&device),
        norm: BatchNormConfig::new(200).init(&device),
        frozen: frozen.no_grad(),
    };
    let mut module = BurnModule::new(net, 1).unwrap();
    Outline::new(&mut module, 2.0 * 22_000.0, 4.0 * 710.0).unwrap()
}

fn job(dp: usize, zero: u8) -> Job<Outline> {
    let layout = Layout {
        dp,
        ..Layout::single()
    };
    Job {
        zero,
        global_batch: 64,
        micro_batch: 64 / dp as u64,
        ..outline().job(layout)
    }
}

#[test]
fn a_rank_needs_its_parameters_gradients_moments_and_activations() {
    let machine = Machine::load("laptop").unwrap();
    let trained = 100.0 * 200.0 + 200.0 + 400.0;
    let state = 2.0 * 200.0 + 200.0 * 10.0;
    for (dp, zero, split) in [(1, 0, 1.0), (4, 0, 1.0), (4, 1, 4.0)] {
        let found = Estimate::new(&job(dp, zero), &machine).unwrap();
        assert_eq!(found.parameters, trained as usize);
        assert_eq!(found.memory.weights, 4.0 * (trained + state));
        assert_eq!(found.memory.gradients, 4.0 * trained);
        assert_eq!(found.memory.optimizer, 8.0 * trained / split);
        let samples = 64.0 / dp as f64;
        assert!(found.memory.activations <= samples * 4.0 * 710.0);
        assert!(found.fits() && found.seconds > 0.0);
    }
    let mut sgd = job(1, 0);
    sgd.model.moments = 0.0;
    let found = Estimate::new(&sgd, &machine).unwrap();
    assert_eq!(found.memory.optimizer, 0.0);
}

#[test]
fn what_does_not_fit_is_said_so() {
    let machine = Machine::load("laptop").unwrap();
    let page = |bytes| Estimate::new(&job(4, 1), &machine.clone().with_memory(bytes)).unwrap();
    let (roomy, small) = (page(2f64.powi(30)).to_string(), page(1000.0).to_string());
    assert!(
        roomy.contains("fits: ") && roomy.contains(" KiB of 1.00 GiB a rank"),
        "{roomy}"
    );
    assert!(small.contains("DOES NOT FIT"), "{small}");
    for part in ["parameters 20600", "weights", "optimizer", "samples/s"] {
        assert!(roomy.contains(part), "{roomy}");
    }
}

#[test]
fn it_is_planned_on_replicas_and_nothing_else() {
    let machine = Machine::load("frontier").unwrap();
    for layout in [
        Layout {
            tp: 2,
            ..Layout::single()
        },
        Layout {
            pp: 2,
            ..Layout::single()
        },
    ] {
        let refused = Job {
            layout,
            ..job(1, 0)
        };
        let error = Estimate::new(&refused, &machine).unwrap_err().to_string();
        assert!(error.contains("use tp 1 and pp 1"), "{error}");
    }
    let found = search::search(&job(8, 1), &machine, 8).unwrap();
    assert!(!found.ranked.is_empty());
    for candidate in &found.ranked {
        assert_eq!((candidate.job.layout.tp, candidate.job.layout.pp), (1, 1));
    }
    let page = Report::new(&job(8, 1), &machine).unwrap().page();
    assert!(page.contains("a model of 4 parameter tensors"), "{page}");
}
