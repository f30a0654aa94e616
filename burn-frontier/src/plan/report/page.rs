//! The page in the terminal.

use std::fmt::Write;

use super::Report;
use crate::plan::Planned;
use crate::plan::advice::Gain;
use crate::plan::search::Candidate;

const BAR: usize = 30;

/// Bytes in GiB.
pub(super) fn gib(bytes: f64) -> f64 {
    bytes / 2f64.powi(30)
}

/// A number of parameters, in words.
pub(super) fn parameters(count: usize) -> String {
    match count as f64 {
        n if n < 1e9 => format!("{:.1} million parameters", n / 1e6),
        n => format!("{:.1} billion parameters", n / 1e9),
    }
}

/// Seconds with three digits that count.
pub(super) fn duration(seconds: f64) -> String {
    match seconds {
        s if s >= 100.0 => format!("{s:.0} s"),
        s if s >= 1.0 => format!("{s:.2} s"),
        s => format!("{:.1} ms", 1e3 * s),
    }
}

fn bar(share: f64) -> String {
    "#".repeat((share * BAR as f64).round() as usize)
}

pub(super) fn page<M: Planned>(report: &Report<M>) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    _ = head(&mut text, report)
        .and_then(|()| memory(&mut text, report))
        .and_then(|()| step(&mut text, report))
        .and_then(|()| advice(&mut text, report))
        .and_then(|()| others(&mut text, report));
    text
}

fn head<M: Planned>(text: &mut String, report: &Report<M>) -> std::fmt::Result {
    let job = &report.job;
    writeln!(
        text,
        "model     {}: {}",
        job.model.describe(),
        parameters(report.parameters)
    )?;
    let plural = if report.nodes == 1 { "" } else { "s" };
    writeln!(
        text,
        "machine   {}, {} node{plural}, {} ranks ({})",
        report.machine,
        report.nodes,
        job.layout.world(),
        report.about
    )?;
    writeln!(text, "layout    {}", (report.words)(job))?;
    writeln!(
        text,
        "batch     {} samples a step, {} micro-batches of {} a replica, {:.2} million tokens",
        job.global_batch,
        job.micro_batches(),
        job.micro_batch,
        job.tokens() / 1e6
    )
}

fn memory<M: Planned>(text: &mut String, report: &Report<M>) -> std::fmt::Result {
    let most = report.stages.iter().enumerate();
    let Some((stage, memory)) = most.max_by(|a, b| a.1.bytes().total_cmp(&b.1.bytes())) else {
        return Ok(());
    };
    let verdict = if report.fits { "fits" } else { "DOES NOT FIT" };
    writeln!(
        text,
        "\nmemory    {verdict}: stage {stage} needs {:.1} of {:.1} GiB a rank",
        gib(memory.bytes()),
        gib(report.usable_bytes)
    )?;
    for (name, bytes) in memory.kinds().into_iter().filter(|(_, bytes)| *bytes > 0.0) {
        let share = bytes / memory.bytes();
        writeln!(text, "  {name:<30} {:>9.2} GiB  {}", gib(bytes), bar(share))?;
    }
    if let Some(near) = &report.nearest {
        writeln!(
            text,
            "  nearest that fits: {} ({:.1} GiB, {} a step)",
            (report.words)(&near.job),
            gib(near.bytes),
            duration(near.time.seconds())
        )?;
    }
    Ok(())
}

fn step<M: Planned>(text: &mut String, report: &Report<M>) -> std::fmt::Result {
    writeln!(
        text,
        "\nstep      {} (give or take {:.0} %)",
        duration(report.seconds),
        100.0 * report.uncertainty
    )?;
    let mut terms = report.time.terms();
    terms.sort_by(|a, b| b.1.total_cmp(&a.1));
    for (name, seconds) in terms {
        let share = seconds / report.seconds;
        if share >= 0.0005 {
            let percent = 100.0 * share;
            writeln!(
                text,
                "  {name:<30} {:>10} {percent:>5.1} %  {}",
                duration(seconds),
                bar(share)
            )?;
        }
    }
    writeln!(
        text,
        "\nspeed     {:.2} tokens/s a rank, {:.0} in all; MFU {:.1} %, HFU {:.1} % ({:.1} TFLOP/s a rank)",
        report.tokens_per_second_per_rank,
        report.tokens_per_second,
        100.0 * report.mfu,
        100.0 * report.hfu,
        report.hardware_flops / 1e12
    )
}

fn gains(gains: &[Gain], least: f64) -> impl Iterator<Item = &Gain> {
    gains.iter().filter(move |gain| gain.gain > least).take(4)
}

fn advice<M: Planned>(text: &mut String, report: &Report<M>) -> std::fmt::Result {
    writeln!(text, "\nfaster by changing one thing")?;
    for gain in gains(&report.switches, 0.005) {
        let fits = if gain.fits { "" } else { ", but does not fit" };
        writeln!(
            text,
            "  {:<46} {:+6.1} %{fits}",
            gain.change,
            100.0 * gain.gain
        )?;
    }
    writeln!(text, "faster on a machine with")?;
    for gain in gains(&report.better_machine, 0.005) {
        writeln!(text, "  {:<58} {:+6.1} %", gain.change, 100.0 * gain.gain)?;
    }
    Ok(())
}

fn others<M: Planned>(text: &mut String, report: &Report<M>) -> std::fmt::Result {
    writeln!(
        text,
        "\nbest of {} layouts, {} of which fit{}",
        report.tried,
        report.fitting,
        if report.best.is_empty() {
            ""
        } else {
            " (tokens/s a rank, GiB)"
        }
    )?;
    for Candidate {
        job,
        bytes,
        tokens_per_second_per_rank: speed,
        ..
    } in &report.best
    {
        writeln!(
            text,
            "  {speed:>9.2} {:>6.1}  {}",
            gib(*bytes),
            (report.words)(job)
        )?;
    }
    for (name, points) in [("weak", &report.weak), ("strong", &report.strong)] {
        if points.len() > 1 {
            let points: Vec<_> = points
                .iter()
                .map(|p| format!("{} nodes {:.0} %", p.nodes, 100.0 * p.efficiency))
                .collect();
            writeln!(text, "{name} scaling: {}", points.join(", "))?;
        }
    }
    Ok(())
}
