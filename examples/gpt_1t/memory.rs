//! Whether a run fits into what memory there is.

use std::path::Path;

use anyhow::{Result, bail};
use burn_frontier::models::gpt::GptConfig;
use burn_frontier::observe::flops::Recompute;
use burn_frontier::plan::report::flags;
use burn_frontier::plan::{Job, Machine, memory, search};

use crate::settings::Settings;

/// Refuses what would run out of memory: the ranks are threads that share what the system has free.
pub fn refuse_what_does_not_fit(settings: &Settings, model: &GptConfig) -> Result<()> {
    let Some(free) = free_bytes() else {
        return Ok(());
    };
    let job = settings.job(model);
    let mut machine = Machine::load("laptop")?;
    let ranks = job.layout.world() as f64;
    machine.device.reserved_gib = 0.0;
    machine.device.memory_gib = free / ranks / 2f64.powi(30);
    let stages = memory::stages(&job, &machine)?;
    let shared = ranks / stages.len().max(1) as f64;
    let need = shared * stages.iter().map(|stage| stage.bytes()).sum::<f64>();
    if need <= free {
        return Ok(());
    }
    let remedy = match search::nearest(&job, &machine)? {
        Some(near) => format!("the nearest layout that fits: {}", flags(&near.job)),
        None => smaller_model(settings, model, free),
    };
    bail!(
        "this model has {:.1} billion parameters; {} ranks of {} need {:.1} GiB at their peak, and this machine has {:.1} GiB free; {remedy}",
        model.parameters() as f64 / 1e9,
        job.layout.world(),
        job.layout,
        gib(need),
        gib(free),
    )
}

pub fn gib(bytes: f64) -> f64 {
    bytes / 2f64.powi(30)
}

fn smaller_model(settings: &Settings, model: &GptConfig, free: f64) -> String {
    let fits = GptConfig::PRESETS.into_iter().rev().find(|name| {
        GptConfig::preset(name, Some(model.vocabulary)).is_ok_and(|preset| {
            let job = Job {
                recompute: Recompute::Full,
                ..settings.job(&preset)
            };
            let machine = Machine::load("laptop").ok();
            let stages = machine.and_then(|machine| memory::stages(&job, &machine).ok());
            stages.is_some_and(|stages| {
                let all: f64 = stages.iter().map(|stage| stage.bytes()).sum();
                all * job.layout.world() as f64 / stages.len() as f64 <= 0.8 * free
            })
        })
    });
    match fits {
        Some(name) => format!("use --model {name}, or a larger machine"),
        None => "use a larger machine".into(),
    }
}

/// Bytes that the system can still give out; `None` where it does not say.
pub fn free_bytes() -> Option<f64> {
    let text = std::fs::read_to_string(Path::new("/proc/meminfo")).ok()?;
    let line = text
        .lines()
        .find(|line| line.starts_with("MemAvailable:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(1024.0 * kib)
}
