//! Whether a run fits into what memory there is.

use anyhow::{Result, bail};
use burn_frontier::Recompute;
use burn_frontier::device::Choice;
use burn_frontier::device::memory::{self as host, Room};
use burn_frontier::models::gpt::GptConfig;
use burn_frontier::plan::{Job, Machine, memory, search};

use crate::flags::flags;

/// Bytes of a token of a step, and of the one that it is to predict, which every rank reads beforehand.
const TOKEN: f64 = 16.0;

/// Refuses what would run out of the memory of the devices that are used, or of the host's. Gives what is needed of what there
/// is, for the user.
pub fn refuse_what_does_not_fit(job: &Job<GptConfig>, device: &Choice) -> Result<String> {
    let machine = Machine::load("laptop")?;
    let needs = needs(job, &machine, device)?;
    let on_host = samples(job);
    let host = host::host();
    if let Some(room) = host.filter(|room| on_host > room.bytes as f64) {
        bail!(
            "the {} samples of a step need {:.1} GiB on {} ranks, and there are {room}; use a smaller --global-batch",
            job.global_batch,
            gib(on_host),
            job.layout.world(),
        );
    }
    let mut said = Vec::new();
    for (index, need) in needs.into_iter().enumerate() {
        let need = need + if device.is_processor() { on_host } else { 0.0 };
        let ranks = job.layout.world().div_ceil(device.count());
        let Some(room) = device.room(index) else {
            said.push(format!(
                "tensors need {}; {} does not say how much it has, so it may run out of memory",
                size(need),
                device.name(),
            ));
            continue;
        };
        if need <= room.bytes as f64 {
            said.push(format!("tensors need {} of {room}", size(need)));
            continue;
        }
        let here = machine
            .clone()
            .with_memory(room.bytes as f64 / ranks as f64);
        let remedy = match search::nearest(job, &here)? {
            Some(near) => format!("the nearest layout that fits: {}", flags(&near.job)),
            None => smaller_model(job, &machine, device, room),
        };
        bail!(
            "this model has {}; {ranks} ranks of {} need {:.1} GiB at their peak, and there are {room}; {remedy}",
            parameters(&job.model),
            job.layout,
            gib(need),
        );
    }
    said.dedup();
    Ok(said.join("; "))
}

pub fn gib(bytes: f64) -> f64 {
    bytes / 2f64.powi(30)
}

/// As in "12 MiB".
fn size(bytes: f64) -> String {
    match gib(bytes) {
        n if n < 1.0 => format!("{:.0} MiB", 1024.0 * n),
        n => format!("{n:.1} GiB"),
    }
}

/// As in "1.3 billion parameters".
fn parameters(model: &GptConfig) -> String {
    match model.parameters() as f64 {
        n if n < 1e9 => format!("{:.2} million parameters", n / 1e6),
        n => format!("{:.1} billion parameters", n / 1e9),
    }
}

/// Bytes that the ranks of every device need together at their peak.
fn needs(
    job: &Job<GptConfig>,
    machine: &Machine,
    device: &Choice,
) -> burn_frontier::Result<Vec<f64>> {
    let stages = memory::stages(job, machine)?;
    let mut needs = vec![0.0; device.count().min(job.layout.world())];
    for rank in 0..job.layout.world() {
        let stage = job.layout.coordinate(rank).pp;
        needs[device.index_of_rank(rank)] += stages[stage].bytes();
    }
    Ok(needs)
}

/// Bytes of the samples that all ranks together hold of a step: each those of its replica.
fn samples(job: &Job<GptConfig>) -> f64 {
    let replicas = (job.layout.tp * job.layout.pp) as f64;
    replicas * job.tokens() * TOKEN
}

/// The largest preset that fits into most of a device.
fn smaller_model(job: &Job<GptConfig>, machine: &Machine, device: &Choice, room: Room) -> String {
    let fits = GptConfig::PRESETS.into_iter().rev().find(|name| {
        GptConfig::preset(name, Some(job.model.vocabulary)).is_ok_and(|model| {
            let job = Job {
                model,
                recompute: Recompute::Full,
                ..job.clone()
            };
            needs(&job, machine, device)
                .is_ok_and(|needs| needs.iter().all(|need| *need <= 0.8 * room.bytes as f64))
        })
    });
    match fits {
        Some(name) => format!("use --model {name}, or a larger machine"),
        None => "use fewer ranks, or a larger machine".into(),
    }
}
