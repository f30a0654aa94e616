//! The text of docs/frontier.md.

use std::fmt::Write;

use burn_frontier::Recompute;
use burn_frontier::models::gpt::GptConfig;
use burn_frontier::plan::search::{Candidate, judge, search};
use burn_frontier::plan::{Job, Machine, time};
use burn_frontier::{Layout, Result};

#[path = "../common/flags.rs"]
mod flags;
#[path = "what_if.rs"]
mod what_if;

use flags::flags;

/// A published run of arXiv 2312.12705.
struct Headline {
    name: &'static str,
    preset: &'static str,
    layout: [usize; 3],
    global_batch: u64,
    tflops: f64,
    tokens: f64,
}

const HEADLINES: [Headline; 3] = [
    Headline {
        name: "22B",
        preset: "22b",
        layout: [1, 8, 2],
        global_batch: 320,
        tflops: 73.5,
        tokens: 396.0,
    },
    Headline {
        name: "175B",
        preset: "175b",
        layout: [4, 16, 16],
        global_batch: 640 * 16,
        tflops: 69.2,
        tokens: 48.3,
    },
    Headline {
        name: "1T",
        preset: "1t",
        layout: [8, 64, 6],
        global_batch: 1600 * 6,
        tflops: 61.2,
        tokens: 7.49,
    },
];

/// Megatron-DeepSpeed as published: fp16, ZeRO 1, full recompute, dropout, gradients reduced after the backward pass.
fn published(
    preset: &str,
    [tp, pp, dp]: [usize; 3],
    batch: u64,
    micro_batch: u64,
) -> Result<Job<GptConfig>> {
    let model = GptConfig::preset(preset, None)?.with_dropout(0.1);
    Ok(Job {
        global_batch: batch,
        micro_batch,
        overlap: false,
        ..Job::new(model, Layout { tp, pp, dp }.validated()?)
    })
}

/// What a row says of a job: TFLOP/s by HFU, MFU in per cent, tokens/s a GCD, and the memory.
struct Row {
    tflops: f64,
    mfu: f64,
    tokens: f64,
    gib: f64,
    fits: bool,
}

fn row(job: &Job<GptConfig>, machine: &Machine) -> Result<Row> {
    let judged = judge(job, machine)?;
    let speed = time::throughput(job, machine, judged.time.seconds())?;
    Ok(Row {
        tflops: speed.hfu.unwrap_or_default() * machine.peak(job.precision) / 1e12,
        mfu: 100.0 * speed.mfu.unwrap_or_default(),
        tokens: speed.tokens_per_second_per_rank,
        gib: judged.bytes / 2f64.powi(30),
        fits: judged.bytes <= machine.usable_bytes(),
    })
}

/// The whole document.
///
/// # Errors
/// A machine file or a job that cannot be.
pub fn document() -> Result<String> {
    let machine = Machine::load("frontier")?;
    let mut text = format!(
        "# Frontier, planned\n\n\
         Written by `cargo xtask frontier`; do not edit. Nothing here was run on Frontier by this project: the planner executes each\n\
         schedule with the costs of `burn-frontier/machines/frontier.toml`, which four published rows calibrate. Times are\n\
         uncertain by about {:.0} %; differences between two rows of one table are less so. TFLOP/s are per GCD and count full recompute as\n\
         work (HFU), as arXiv 2312.12705 does; of 191.5. Where the paper gives no number in what this project has of it, its\n\
         finding is quoted instead.\n\n",
        100.0 * machine.uncertainty
    );
    headlines(&mut text, &machine)?;
    effects(&mut text, &machine)?;
    scaling(&mut text, &machine)?;
    better(&mut text, &machine)?;
    what_if::lacking(&mut text, &machine)?;
    what_if::long_sequences(&mut text, &machine)?;
    Ok(text)
}

fn line(text: &mut String, cells: &[String]) {
    // Writing to a string does not fail.
    _ = writeln!(text, "| {} |", cells.join(" | "));
}

fn table(text: &mut String, head: &[&str]) {
    line(
        text,
        &head.iter().map(ToString::to_string).collect::<Vec<_>>(),
    );
    line(text, &vec!["---".to_string(); head.len()]);
}

fn headlines(text: &mut String, machine: &Machine) -> Result<()> {
    *text += "## The headline rows\n\n";
    table(
        text,
        &[
            "model",
            "layout",
            "GCDs",
            "published TFLOP/s",
            "planned",
            "error",
            "MFU",
            "tokens/s a GCD, published",
            "planned",
            "GiB of the fullest stage",
        ],
    );
    for headline in &HEADLINES {
        let job = published(headline.preset, headline.layout, headline.global_batch, 1)?;
        let row = row(&job, machine)?;
        let [tp, pp, dp] = headline.layout;
        line(
            text,
            &[
                headline.name.into(),
                format!(
                    "TP{tp} PP{pp} DP{dp}, MBS 1, {} micro-batches",
                    job.micro_batches()
                ),
                job.layout.world().to_string(),
                headline.tflops.to_string(),
                format!("{:.1}", row.tflops),
                format!("{:+.1} %", 100.0 * (row.tflops / headline.tflops - 1.0)),
                format!("{:.1} %", row.mfu),
                headline.tokens.to_string(),
                format!("{:.2}", row.tokens),
                format!("{:.1}", row.gib),
            ],
        );
    }
    *text += "\n";
    Ok(())
}

/// A table of one experiment: a column of names, and what the planner says.
fn experiment(
    text: &mut String,
    machine: &Machine,
    (title, finding, column): (&str, &str, &str),
    rows: Vec<(String, Job<GptConfig>)>,
) -> Result<()> {
    *text += &format!("### {title}\n\nPublished: {finding}\n\n");
    table(
        text,
        &[column, "planned TFLOP/s", "GiB of the fullest stage"],
    );
    for (name, job) in rows {
        let row = row(&job, machine)?;
        let note = if row.fits { "" } else { " (does not fit)" };
        line(
            text,
            &[
                name,
                format!("{:.1}", row.tflops),
                format!("{:.1}{note}", row.gib),
            ],
        );
    }
    *text += "\n";
    Ok(())
}

fn effects(text: &mut String, machine: &Machine) -> Result<()> {
    *text += "## What the layout does (22B)\n\n";
    let many = |layouts: &[([usize; 3], u64)],
                name: &dyn Fn(&Job<GptConfig>) -> String|
     -> Result<Vec<(String, Job<GptConfig>)>> {
        layouts
            .iter()
            .map(|&(layout, batch)| {
                let job = published("22b", layout, batch, 1)?;
                Ok((name(&job), job))
            })
            .collect()
    };
    experiment(
        text,
        machine,
        (
            "Tensor parallelism",
            "larger TP lowers throughput, sharply past one node of 8 GCDs.",
            "TP (PP1, batch 64)",
        ),
        many(&[1, 2, 4, 8, 16].map(|tp| ([tp, 1, 1], 64)), &|job| {
            job.layout.tp.to_string()
        })?,
    )?;
    experiment(
        text,
        machine,
        (
            "Micro-batches",
            "more micro-batches raise throughput.",
            "micro-batches (TP2 PP8)",
        ),
        many(
            &[8, 16, 32, 64, 128, 256].map(|batch| ([2, 8, 1], batch)),
            &|job| job.micro_batches().to_string(),
        )?,
    )?;
    experiment(
        text,
        machine,
        (
            "Stages at a fixed batch",
            "more stages lower throughput.",
            "stages (TP2, batch 64)",
        ),
        many(&[2, 4, 8, 12, 16, 24].map(|pp| ([2, pp, 1], 64)), &|job| {
            job.layout.pp.to_string()
        })?,
    )?;
    experiment(
        text,
        machine,
        (
            "Stages at a fixed ratio to micro-batches",
            "throughput holds.",
            "stages (TP2, 8 micro-batches a stage)",
        ),
        many(
            &[8, 12, 16, 24].map(|pp| ([2, pp, 1], 8 * pp as u64)),
            &|job| job.layout.pp.to_string(),
        )?,
    )
}

fn scaling(text: &mut String, machine: &Machine) -> Result<()> {
    *text += "## Scaling\n\nEfficiency relative to the smallest number of GCDs; more GCDs are more replicas.\n\n";
    table(
        text,
        &[
            "model",
            "GCDs",
            "weak, published",
            "weak, planned",
            "strong, published",
            "strong, planned",
        ],
    );
    let curves = [
        (
            "175B",
            "175b",
            [4, 16],
            640u64,
            vec![2usize, 4, 8, 16],
            "89 %",
        ),
        ("1T", "1t", [8, 64], 1600, vec![2, 4, 6], "87 %"),
    ];
    for (name, preset, [tp, pp], share, replicas, strong) in curves {
        let most = *replicas.last().unwrap_or(&1) as u64;
        let mut first = None;
        for &dp in &replicas {
            let tokens = |batch| {
                Ok::<_, burn_frontier::Error>(
                    row(&published(preset, [tp, pp, dp], batch, 1)?, machine)?.tokens,
                )
            };
            let found = [tokens(share * dp as u64)?, tokens(share * most / 2)?];
            let start = *first.get_or_insert(found);
            let last = dp as u64 == most;
            let published = |value: &str| {
                if last {
                    value.to_string()
                } else {
                    String::new()
                }
            };
            let percent = |i: usize| format!("{:.0} %", 100.0 * found[i] / start[i]);
            line(
                text,
                &[
                    name.into(),
                    (tp * pp * dp).to_string(),
                    published("100 %"),
                    percent(0),
                    published(strong),
                    percent(1),
                ],
            );
        }
    }
    *text += "\nThe strong curves keep half the batch of the largest weak run; the publication's batch is not in this project's facts.\n\n";
    Ok(())
}

/// Steps from the published job to a faster one, each on top of the one before.
fn steps(job: &Job<GptConfig>) -> Vec<(&'static str, Job<GptConfig>)> {
    let mut all = vec![("as published", job.clone())];
    let mut add = |name, set: &dyn Fn(&mut Job<GptConfig>)| {
        let mut next = all[all.len() - 1].1.clone();
        set(&mut next);
        if next != all[all.len() - 1].1 {
            all.push((name, next));
        }
    };
    add("+ sequence parallel", &|job| {
        job.sequence_parallel = job.layout.tp > 1
    });
    add("+ selective recompute", &|job| {
        job.recompute = Recompute::Selective
    });
    add("+ attention in one fused kernel", &|job| {
        job.fused_attention = true
    });
    all
}

fn better(text: &mut String, machine: &Machine) -> Result<()> {
    *text += "## Plans that beat them\n\n\
        The same model, GCDs and batch under the same machine model; each line adds to the one above. The last two lines are the fastest\n\
        layouts that fit, of all that the planner tries, without and with fused attention.\n";
    for headline in &HEADLINES {
        *text += &format!(
            "\n### {}: published {} tokens/s a GCD\n\n",
            headline.name, headline.tokens
        );
        table(
            text,
            &[
                "change",
                "layout and switches",
                "tokens/s a GCD",
                "gain",
                "MFU",
                "GiB",
                "fits",
            ],
        );
        let start = published(headline.preset, headline.layout, headline.global_batch, 1)?;
        let first = row(&start, machine)?.tokens;
        let mut rows: Vec<(String, Job<GptConfig>)> = steps(&start)
            .into_iter()
            .map(|(name, job)| (name.to_string(), job))
            .collect();
        for (name, fused_attention) in [
            ("best layout", false),
            ("best layout, fused attention", true),
        ] {
            let like = Job {
                fused_attention,
                ..start.clone()
            };
            let found = search(&like, machine, start.layout.world())?;
            if let Some(Candidate { job, .. }) = found.ranked.first() {
                rows.push((name.into(), job.clone()));
            }
        }
        for (name, job) in rows {
            let row = row(&job, machine)?;
            line(
                text,
                &[
                    name,
                    format!("`{}`", flags(&job)),
                    format!("{:.2}", row.tokens),
                    format!("{:+.0} %", 100.0 * (row.tokens / first - 1.0)),
                    format!("{:.1} %", row.mfu),
                    format!("{:.1}", row.gib),
                    if row.fits { "yes" } else { "no" }.into(),
                ],
            );
        }
        *text += &why(&start, machine)?;
    }
    Ok(())
}

/// Where the published job's time goes, and where the best plan's.
fn why(start: &Job<GptConfig>, machine: &Machine) -> Result<String> {
    let like = Job {
        fused_attention: true,
        ..start.clone()
    };
    let found = search(&like, machine, start.layout.world())?;
    let Some(best) = found.ranked.first() else {
        return Ok(String::new());
    };
    let (before, after) = (judge(start, machine)?.time, best.time);
    let mut changes: Vec<_> = before
        .terms()
        .into_iter()
        .zip(after.terms())
        .map(|((name, a), (_, b))| (name, 100.0 * (a - b) / before.seconds()))
        .collect();
    changes.sort_by(|a, b| b.1.total_cmp(&a.1));
    let saved: Vec<_> = changes
        .iter()
        .filter(|(_, percent)| *percent > 0.5)
        .map(|(name, percent)| format!("{name} {percent:.0} %"))
        .collect();
    let spent: Vec<_> = changes
        .iter()
        .filter(|(_, percent)| *percent < -0.5)
        .map(|(name, percent)| format!("{name} {:.0} %", -percent))
        .collect();
    let spent = if spent.is_empty() {
        String::new()
    } else {
        format!("; it spends more on {}", spent.join(", "))
    };
    Ok(format!(
        "\nWhy: of the published step's time the last plan saves {}{spent}.\n",
        saved.join(", ")
    ))
}
