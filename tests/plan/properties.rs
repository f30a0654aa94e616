//! What no plan may say, whatever the job.

use super::job;
use burn_frontier::Recompute;
use burn_frontier::models::gpt::GptConfig;
use burn_frontier::pipeline::schedule::Kind;
use burn_frontier::plan::memory::{self, StageMemory};
use burn_frontier::plan::{Job, Machine, time};
use proptest::prelude::*;

pub fn jobs() -> impl Strategy<Value = Job<GptConfig>> {
    let model = (
        1usize..5,
        prop_oneof![Just(1024usize), Just(2048), Just(6144), Just(12288)],
    );
    let layout = (0u32..4, 0u32..4, 0u32..4);
    let batch = (0u32..4, 1u64..9);
    let switches = (0u8..2, 0u8..3, any::<bool>(), any::<bool>(), any::<bool>());
    (model, layout, batch, switches).prop_map(|(model, layout, batch, switches)| {
        let ((quarter, hidden), (tp, pp, dp)) = (model, layout);
        let (tp, pp, dp) = (1 << tp, 1 << pp, 1 << dp);
        let micro_batch = 1u64 << batch.0;
        let global = batch.1 * micro_batch * (dp * pp) as u64;
        let (zero, recompute, sequence_parallel, overlap, fused_attention) = switches;
        Job {
            zero,
            sequence_parallel,
            overlap,
            fused_attention,
            recompute: Recompute::ALL[usize::from(recompute)],
            ..job(
                (8 * quarter, hidden, hidden / 64),
                (tp, pp, dp),
                (global, micro_batch),
            )
        }
    })
}

pub fn machines() -> impl Strategy<Value = Machine> {
    let names: Vec<_> = Machine::names().collect();
    (0..names.len()).prop_map(move |i| Machine::load(names[i]).unwrap())
}

fn peak(job: &Job<GptConfig>, machine: &Machine) -> f64 {
    let stages = memory::stages(job, machine).unwrap();
    stages.iter().map(StageMemory::bytes).fold(0.0, f64::max)
}

fn seconds(job: &Job<GptConfig>, machine: &Machine) -> f64 {
    time::step(job, machine).unwrap().seconds()
}

proptest! {
    #[test]
    fn no_plan_is_faster_than_the_machine(job in jobs(), machine in machines()) {
        let speed = time::throughput(&job, &machine, seconds(&job, &machine)).unwrap();
        let (mfu, hfu) = (speed.mfu.unwrap(), speed.hfu.unwrap());
        prop_assert!(mfu <= hfu + 1e-12);
        prop_assert!(hfu <= machine.device.gemm_ceiling, "{hfu}");
    }

    #[test]
    fn the_terms_are_not_negative_and_their_sum_is_the_step(job in jobs(), machine in machines()) {
        let time = time::step(&job, &machine).unwrap();
        for (name, seconds) in time.terms() {
            prop_assert!(seconds >= 0.0 && seconds.is_finite(), "{name} {seconds}");
        }
        for stage in memory::stages(&job, &machine).unwrap() {
            for (name, bytes) in stage.kinds() {
                prop_assert!(bytes >= 0.0 && bytes.is_finite(), "{name} {bytes}");
            }
        }
    }

    #[test]
    fn more_work_takes_longer(job in jobs(), machine in machines()) {
        let now = seconds(&job, &machine);
        let mut longer = job.clone();
        longer.global_batch *= 2;
        prop_assert!(seconds(&longer, &machine) > now);
        let mut deeper = job.clone();
        deeper.model.layers *= 2;
        prop_assert!(seconds(&deeper, &machine) > now);
        prop_assert!(peak(&deeper, &machine) > peak(&job, &machine));
    }

    #[test]
    fn a_better_machine_is_not_slower(job in jobs(), machine in machines(), which in 0usize..6) {
        let mut better = machine.clone();
        let value = match which {
            0 => &mut better.device.memory_gbs,
            1 => &mut better.device.half_tflops,
            2 => &mut better.links.node.gbs,
            3 => &mut better.links.network.nic_gbs,
            4 => &mut better.links.card.gbs,
            _ => &mut better.device.gemm_ceiling,
        };
        *value = if which == 5 { (*value * 1.1).min(1.0) } else { *value * 2.0 };
        prop_assert!(seconds(&job, &better) <= seconds(&job, &machine) * (1.0 + 1e-9));
    }

    #[test]
    fn what_saves_memory_does(job in jobs(), machine in machines()) {
        let with = |change: &dyn Fn(&mut Job<GptConfig>)| {
            let mut other = job.clone();
            change(&mut other);
            peak(&other, &machine)
        };
        let recompute = |recompute| with(&|job: &mut Job<GptConfig>| job.recompute = recompute);
        prop_assert!(recompute(Recompute::Selective) <= recompute(Recompute::None) * (1.0 + 1e-12));
        prop_assert!(recompute(Recompute::Full) <= recompute(Recompute::None) * (1.0 + 1e-12));
        let zero = |zero| with(&|job: &mut Job<GptConfig>| job.zero = zero);
        prop_assert!(zero(1) <= zero(0) * (1.0 + 1e-6));
        let larger = with(&|job: &mut Job<GptConfig>| { job.micro_batch *= 2; job.global_batch *= 2; });
        prop_assert!(larger >= peak(&job, &machine) * (1.0 - 1e-12));
        let gpipe = with(&|job: &mut Job<GptConfig>| job.schedule = Kind::GPipe);
        prop_assert!(gpipe >= peak(&job, &machine));
    }
}

#[test]
fn a_local_parameter_costs_what_mixed_precision_adam_needs() {
    let machine = Machine::load("frontier").unwrap();
    let one = job((96, 12288, 96), (8, 16, 1), (64, 1));
    let stage = memory::stages(&one, &machine).unwrap()[8];
    let parameters = 6.0 * 12.0 * 12288f64.powi(2) / 8.0;
    let close =
        |bytes: f64, per: f64| assert!((bytes / parameters / per - 1.0).abs() < 0.001, "{bytes}");
    close(stage.weights, 2.0);
    close(stage.gradients, 2.0);
    close(stage.optimizer, 12.0);
    let replicas = Job {
        layout: burn_frontier::Layout {
            tp: 8,
            pp: 16,
            dp: 4,
        },
        global_batch: 256,
        ..one
    };
    let stage = memory::stages(&replicas, &machine).unwrap()[8];
    close(stage.optimizer, 3.0);
    // Full recompute keeps the input of every layer: 2 s b h bytes; stage 8 of 16 has 8 micro-batches alive.
    assert_eq!(stage.activations, 8.0 * 6.0 * 2.0 * 2048.0 * 12288.0);
}

/// arXiv 2205.05198, equations 1 and 2: s b h (34 + 5 a s / h) bytes a layer, all but 10 of them split by tp.
#[test]
fn a_layer_keeps_the_published_bytes() {
    let machine = Machine::load("frontier").unwrap();
    let kept = |tp: usize, sequence_parallel: bool, recompute: Recompute| {
        let mut job = job((8, 6144, 48), (tp, 1, 1), (4, 4));
        (job.sequence_parallel, job.recompute) = (sequence_parallel, recompute);
        memory::stages(&job, &machine).unwrap()[0].activations / 8.0
    };
    let sbh = 2048.0 * 4.0 * 6144.0;
    let scores = 5.0 * 48.0 * 2048.0 / 6144.0;
    assert_eq!(kept(1, false, Recompute::None), sbh * (34.0 + scores));
    assert_eq!(
        kept(8, false, Recompute::None),
        sbh * (10.0 + 24.0 / 8.0 + scores / 8.0)
    );
    assert_eq!(kept(8, true, Recompute::None), sbh * (34.0 + scores) / 8.0);
    assert_eq!(kept(8, true, Recompute::Selective), sbh * 34.0 / 8.0);
    assert_eq!(kept(8, false, Recompute::Full), sbh * 2.0);
}
