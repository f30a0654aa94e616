//! What the runtime lacks is planned for, marked, and refused wherever something could run.

use super::job;
use super::properties::{jobs, machines};
use burn_frontier::Layout;
use burn_frontier::models::gpt::GptConfig;
use burn_frontier::pipeline::schedule::Kind;
use burn_frontier::plan::model::Exchange;
use burn_frontier::plan::outlook::{MARK, judge, outlook};
use burn_frontier::plan::search::search;
use burn_frontier::plan::what_if::Lack;
use burn_frontier::plan::{Job, Machine, Report, WhatIf, memory, search as layouts, time};
use proptest::prelude::*;

/// What-ifs that are valid, most with something that is lacking.
fn what_ifs() -> impl Strategy<Value = WhatIf<GptConfig>> {
    let switches = (0u32..4, any::<bool>(), 0u8..4, any::<bool>());
    (jobs(), switches).prop_map(|(mut job, (context, ulysses, zero, zero_bubble))| {
        let (tp, pp) = (job.layout.tp, job.layout.pp);
        let context = 1 << context;
        job.zero = if pp > 1 { zero.min(2) } else { zero };
        let divides = job.model.heads.is_multiple_of(tp * context);
        let exchange = match ulysses && divides {
            true => Exchange::Ulysses,
            false => Exchange::Ring,
        };
        WhatIf {
            job,
            context,
            exchange,
            zero_bubble: zero_bubble && pp > 1,
        }
    })
}

fn peak(what_if: &WhatIf<GptConfig>, machine: &Machine) -> f64 {
    let stages = what_if.memory(machine).unwrap();
    stages
        .iter()
        .map(memory::StageMemory::bytes)
        .fold(0.0, f64::max)
}

fn seconds(what_if: &WhatIf<GptConfig>, machine: &Machine) -> f64 {
    what_if.step(machine).unwrap().seconds()
}

fn with(
    what_if: &WhatIf<GptConfig>,
    change: impl FnOnce(&mut WhatIf<GptConfig>),
) -> WhatIf<GptConfig> {
    let mut other = what_if.clone();
    change(&mut other);
    other
}

proptest! {
    #[test]
    fn a_job_that_lacks_nothing_has_exactly_its_figures(job in jobs(), machine in machines()) {
        let plain = WhatIf::from(job.clone());
        prop_assert_eq!(plain.lacks().count(), 0);
        prop_assert_eq!(plain.memory(&machine).unwrap(), memory::stages(&job, &machine).unwrap());
        let time = time::step(&job, &machine).unwrap();
        prop_assert_eq!(plain.step(&machine).unwrap(), time);
        prop_assert_eq!((time.context, time.gather), (0.0, 0.0));
    }

    #[test]
    fn no_what_if_is_faster_than_the_machine(what_if in what_ifs(), machine in machines()) {
        let speed = what_if.throughput(&machine, seconds(&what_if, &machine)).unwrap();
        let (mfu, hfu) = (speed.mfu.unwrap(), speed.hfu.unwrap());
        prop_assert!(mfu <= hfu + 1e-12);
        prop_assert!(hfu <= machine.device.gemm_ceiling, "{hfu}");
    }

    #[test]
    fn its_terms_and_bytes_are_not_negative(what_if in what_ifs(), machine in machines()) {
        for (name, seconds) in what_if.step(&machine).unwrap().terms() {
            prop_assert!(seconds >= 0.0 && seconds.is_finite(), "{name} {seconds}");
        }
        for (name, bytes) in what_if.memory(&machine).unwrap().iter().flat_map(memory::StageMemory::kinds) {
            prop_assert!(bytes >= 0.0 && bytes.is_finite(), "{name} {bytes}");
        }
    }

    #[test]
    fn it_is_not_slower_on_a_better_machine(what_if in what_ifs(), machine in machines(), which in 0usize..5) {
        let mut better = machine.clone();
        *match which {
            0 => &mut better.device.memory_gbs,
            1 => &mut better.device.half_tflops,
            2 => &mut better.links.node.gbs,
            3 => &mut better.links.network.nic_gbs,
            _ => &mut better.links.card.gbs,
        } *= 2.0;
        let (after, before) = (seconds(&what_if, &better), seconds(&what_if, &machine));
        // Where the links set the pace, what passes wait for them is spread evenly: not exact.
        let saturates = what_if.job.zero > 1 && what_if.job.overlap;
        let tolerance = if saturates { 0.01 } else { 1e-9 };
        prop_assert!(after <= before * (1.0 + tolerance), "{after} {before}");
    }

    #[test]
    fn more_ranks_a_sequence_and_higher_zero_need_less_memory(what_if in what_ifs(), machine in machines()) {
        let ring = with(&what_if, |w| w.exchange = Exchange::Ring);
        let double = with(&ring, |w| w.context *= 2);
        prop_assert!(peak(&double, &machine) <= peak(&ring, &machine) * (1.0 + 1e-6));
        let highest = if what_if.job.layout.pp > 1 { 2 } else { 3 };
        let bytes: Vec<_> = (0..=highest)
            .map(|zero| peak(&with(&what_if, |w| w.job.zero = zero), &machine))
            .collect();
        prop_assert!(bytes.windows(2).all(|pair| pair[1] <= pair[0] * (1.0 + 1e-6)), "{bytes:?}");
    }

    #[test]
    fn zb_h1_is_not_slower_than_1f1b_and_needs_no_less_memory(
        job in jobs().prop_filter("a pipeline", |job| job.layout.pp > 1),
        machine in machines(),
    ) {
        let whole = WhatIf::from(job);
        let split = with(&whole, |w| w.zero_bubble = true);
        let (a, b) = (split.step(&machine).unwrap(), whole.step(&machine).unwrap());
        prop_assert!(a.bubble <= b.bubble * (1.0 + 1e-9) + 1e-12, "{} {}", a.bubble, b.bubble);
        prop_assert!(peak(&split, &machine) >= peak(&whole, &machine) * (1.0 - 1e-12));
    }

    #[test]
    fn higher_zero_stages_are_not_faster_but_for_the_parameters_that_do_not_come_back(
        what_if in what_ifs(),
        machine in machines(),
    ) {
        let step = |zero| {
            let time = with(&what_if, |w| w.job.zero = zero).step(&machine).unwrap();
            time.seconds() - time.optimizer
        };
        prop_assert!(step(2) >= step(1) * (1.0 - 1e-9), "{} {}", step(2), step(1));
        if what_if.job.layout.pp == 1 {
            prop_assert!(step(3) >= step(2) * (1.0 - 1e-9));
        }
    }
}

fn of_175b(layout: (usize, usize, usize), batch: (u64, u64)) -> WhatIf<GptConfig> {
    let job = job((96, 12288, 96), layout, batch);
    WhatIf::from(Job {
        fused_attention: true,
        overlap: true,
        ..job
    })
}

#[test]
fn context_parallel_ranks_share_activations_attention_and_gradients() {
    let machine = Machine::load("h200").unwrap();
    let one = with(&of_175b((8, 1, 4), (16, 1)), |w| {
        w.job.model.sequence = 32768
    });
    let four = with(&one, |w| w.context = 4);
    assert_eq!(four.world(), 4 * one.world());
    let (a, b) = (
        &one.memory(&machine).unwrap()[0],
        &four.memory(&machine).unwrap()[0],
    );
    assert_eq!(a.activations / b.activations, 4.0);
    assert_eq!(a.weights, b.weights);
    assert!((a.optimizer / b.optimizer - 4.0).abs() < 1e-3);
    let (a, b) = (one.step(&machine).unwrap(), four.step(&machine).unwrap());
    assert!((a.attention / b.attention - 4.0).abs() < 0.1, "{a:?} {b:?}");
}

#[test]
fn a_ring_is_hidden_by_attention_only_while_that_takes_longer_and_all_to_alls_never() {
    let exposed = |sequence, exchange, gbs: f64| {
        let mut machine = Machine::load("h200").unwrap();
        machine.links.node.gbs *= gbs;
        machine.links.card.gbs *= gbs;
        let long = with(&of_175b((1, 1, 1), (1, 1)), |w| {
            w.job.model.sequence = sequence;
            (w.context, w.exchange) = (8, exchange);
        });
        long.step(&machine).unwrap().context
    };
    assert_eq!(exposed(131_072, Exchange::Ring, 1.0), 0.0);
    assert!(exposed(2048, Exchange::Ring, 0.01) > 0.0);
    assert!(exposed(131_072, Exchange::Ulysses, 1.0) > exposed(131_072, Exchange::Ulysses, 100.0));
    assert!(exposed(131_072, Exchange::Ulysses, 100.0) > 0.0);
}

#[test]
fn zero_3_splits_everything_and_zero_2_of_one_micro_batch_costs_what_zero_1_does() {
    let machine = Machine::load("frontier").unwrap();
    let one = of_175b((8, 1, 128), (128, 1));
    let stage = |zero| with(&one, |w| w.job.zero = zero).memory(&machine).unwrap()[0];
    let (plain, gradients, all) = (stage(1), stage(2), stage(3));
    assert_eq!(gradients.gradients * 128.0, plain.gradients);
    assert_eq!(gradients.weights, plain.weights);
    assert_eq!(all.weights * 128.0, plain.weights);
    let time = |zero| with(&one, |w| w.job.zero = zero).step(&machine).unwrap();
    let before_jitter = |zero| time(zero).seconds() - time(zero).jitter;
    let (first, second) = (before_jitter(1), before_jitter(2));
    assert!((first / second - 1.0).abs() < 1e-12, "{first} {second}");
    let more = |zero| {
        let more = with(&one, |w| {
            (w.job.zero, w.job.global_batch, w.job.overlap) = (zero, 1280, false)
        });
        more.step(&machine).unwrap()
    };
    // Ten micro-batches are reduced ten times.
    let tied_and_norm = more(2).data - 10.0 * (more(2).data - more(1).data) / 9.0;
    assert!(
        tied_and_norm.abs() < 0.2 * more(1).data,
        "{:?} {:?}",
        more(1),
        more(2)
    );
    assert!(more(3).gather > 0.0);
}

#[test]
fn the_trainer_and_the_planner_refuse_what_is_not_there_in_the_same_words() {
    let machine = Machine::load("frontier").unwrap();
    for zero in [2, 3] {
        let job = Job {
            zero,
            ..of_175b((8, 1, 8), (64, 1)).job
        };
        let refusals = [
            job.validate().unwrap_err(),
            layouts::judge(&job, &machine).unwrap_err(),
            memory::stages(&job, &machine).unwrap_err(),
            time::step(&job, &machine).unwrap_err(),
            Report::new(&job, &machine).unwrap_err(),
            Report::with_what_if(&job, &machine).unwrap_err(),
        ];
        for error in refusals {
            let text = error.to_string();
            assert!(
                text.contains(&format!("ZeRO {zero} is not there")),
                "{text}"
            );
            assert!(text.contains("use ZeRO 0 to 1"), "{text}");
        }
    }
    let error = "zb-h1".parse::<Kind>().unwrap_err().to_string();
    assert!(error.contains("choose gpipe, 1f1b, interleaved"), "{error}");
}

#[test]
fn what_could_not_run_either_way_is_refused_with_what_would() {
    let good = of_175b((8, 4, 2), (64, 1));
    let refused = |change: fn(&mut WhatIf<GptConfig>), words: [&str; 2]| {
        let error = with(&good, change).validate().unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "{error}");
        }
    };
    good.validate().unwrap();
    refused(|w| w.context = 0, ["0 context-parallel ranks", "use 1"]);
    refused(|w| w.context = 3, ["sequence of 2048", "multiple of 6"]);
    refused(
        |w| (w.context, w.exchange) = (8, Exchange::Ulysses),
        ["96 attention heads", "use the ring"],
    );
    refused(|w| w.job.zero = 4, ["no ZeRO stage 4", "use 0 to 3"]);
    refused(|w| w.job.zero = 3, ["4 pipeline stages", "use ZeRO 2"]);
    refused(
        |w| (w.zero_bubble, w.job.schedule) = (true, Kind::GPipe),
        ["gpipe over 4", "1f1b"],
    );
    refused(|w| w.job.model.layers = 3, ["3 layers", "use pp 3 or less"]);
}

#[test]
fn the_outlook_beats_what_runs_where_it_says_so_and_the_search_stays_as_it_is() {
    let machine = Machine::load("frontier").unwrap();
    let job = of_175b((4, 16, 2), (256, 1)).job;
    let found = search(&job, &machine, 128).unwrap();
    for candidate in &found.ranked {
        assert_eq!(WhatIf::from(candidate.job.clone()).lacks().count(), 0);
    }
    let outlook = outlook(&job, &machine, 128, &found).unwrap();
    assert_eq!(outlook.note, "not in this runtime yet");
    assert_eq!(outlook.prospects.len(), Lack::ALL.len() + 1);
    let mut best = 0.0f64;
    for prospect in &outlook.prospects {
        assert!(
            prospect.tried > 0 && prospect.fitting > 0,
            "{}",
            prospect.name()
        );
        let fastest = prospect.fastest.as_ref().unwrap();
        let lacks: Vec<_> = fastest.what_if.lacks().collect();
        assert!(!lacks.is_empty() && lacks.iter().all(|lack| prospect.lacks.contains(lack)));
        assert!(fastest.bytes <= machine.usable_bytes() && prospect.least_bytes <= fastest.bytes);
        assert_eq!(fastest.what_if.world(), 128);
        assert_eq!(&judge(&fastest.what_if, &machine).unwrap(), fastest);
        let speed = fastest.tokens_per_second_per_rank;
        let gain = speed / found.ranked[0].tokens_per_second_per_rank - 1.0;
        assert_eq!(prospect.gain, Some(gain));
        best = best.max(speed);
    }
    let all = outlook.prospects.last().unwrap();
    assert_eq!(
        all.fastest.as_ref().unwrap().tokens_per_second_per_rank,
        best
    );
}

#[test]
fn a_report_speaks_of_it_only_when_asked_and_after_what_runs() {
    let machine = Machine::load("frontier").unwrap();
    let job = of_175b((4, 16, 2), (256, 1)).job;
    let texts = |report: &Report<GptConfig>| {
        let folder = tempfile::tempdir().unwrap();
        report.write(folder.path()).unwrap();
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        [report.page(), read("plan.html"), read("plan.json")]
    };
    let plain = texts(&Report::new(&job, &machine).unwrap());
    let asked = texts(&Report::with_what_if(&job, &machine).unwrap());
    for text in &plain {
        for word in [
            "what if",
            "not_in_this_runtime_yet",
            "ZeRO 2",
            "ZB-H1",
            "context",
        ] {
            assert!(!text.contains(word), "{word}");
        }
    }
    let [page, html, json] = &asked;
    let after = page.strip_prefix(plain[0].as_str()).unwrap();
    for (text, mark) in [
        (after, MARK.to_uppercase()),
        (html.as_str(), format!("What if: {MARK}")),
    ] {
        assert!(text.contains(&mark));
        for lack in Lack::ALL {
            assert!(text.contains(&lack.to_string()), "{lack}");
        }
    }
    assert!(page.lines().count() < 70);
    assert!(html.rfind("<svg") < html.find("<table"));
    let value: serde_json::Value = serde_json::from_str(json).unwrap();
    let what_if = &value["not_in_this_runtime_yet"];
    assert_eq!(what_if["note"], MARK);
    assert_eq!(what_if["prospects"].as_array().unwrap().len(), 5);
}

#[test]
fn a_what_if_is_read_back_from_its_text() {
    let what_if = with(&of_175b((4, 1, 2), (64, 1)), |w| {
        (w.context, w.exchange, w.job.zero) = (2, Exchange::Ulysses, 3);
        w.job.layout = Layout {
            tp: 4,
            dp: 4,
            ..Layout::single()
        };
    });
    let text = serde_json::to_string(&what_if).unwrap();
    assert_eq!(
        serde_json::from_str::<WhatIf<GptConfig>>(&text).unwrap(),
        what_if
    );
    let words = what_if.to_string();
    assert!(
        words.contains("cp 2 (Ulysses)") && words.contains("ZeRO 3"),
        "{words}"
    );
}
