//! The page for a browser: one file, nothing fetched.

use super::page::{duration, gib};
use super::svg::{COLORS, Svg, escape, round_up};
use super::{Point, Report};
use crate::error::Result;
use crate::pipeline::check::{Costs, check};
use crate::pipeline::schedule::{Instruction, Kind, Schedule};
use crate::plan::Planned;
use crate::plan::advice::ScalingPoint;

const WIDTH: f64 = 960.0;
/// Room for labels at the left.
const LEFT: f64 = 70.0;
/// Most micro-batches of the pipeline chart, and twice the stages if that is less: enough to see how it fills, settles and
/// drains.
const DRAWN: usize = 48;

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;color:#262d37;max-width:980px;margin:2em auto;padding:0 1em}\
svg{font:12px system-ui,sans-serif;max-width:100%;height:auto}pre{background:#f4f6f8;padding:1em;overflow-x:auto;font-size:12.5px}\
h2{margin-top:1.6em}td,th{text-align:left;vertical-align:top;padding:.2em .6em;border-bottom:1px solid #e6e9ed}";

pub(super) fn html<M: Planned>(report: &Report<M>) -> Result<String> {
    let title = format!(
        "{} on {}: {} ranks",
        super::page::parameters(report.parameters),
        report.machine,
        report.job.layout.world()
    );
    let section = |name: &str, body: String| format!("<h2>{name}</h2>\n{body}");
    let what_if = report.what_if.as_ref().map(|outlook| {
        let title = format!("What if: {}", outlook.note);
        section(&title, super::what_if::html(outlook))
    });
    let sections = [
        format!("<pre>{}</pre>\n", escape(&super::page::page(report))),
        section("Memory of every stage", memory(report)),
        section("Where a step's time goes", step(report)),
        section("The pipeline", pipeline(report)?),
        section("More nodes", scaling(report)),
        section("All layouts that fit", scatter(report)),
        what_if.unwrap_or_default(),
    ];
    Ok(format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n<style>{STYLE}</style></head>\n\
         <body><h1>{title}</h1>\n{}</body></html>\n",
        sections.concat()
    ))
}

/// A stacked bar a stage.
fn memory<M: Planned>(report: &Report<M>) -> String {
    let (height, bottom, top) = (320.0, 260.0, 20.0);
    let mut svg = Svg::new(WIDTH, height, "memory of every stage by kind");
    let most = report
        .stages
        .iter()
        .map(|stage| stage.bytes())
        .fold(report.usable_bytes, f64::max);
    let scale = (bottom - top) / most;
    let step = (WIDTH - LEFT) / report.stages.len().max(1) as f64;
    for (i, stage) in report.stages.iter().enumerate() {
        let (x, mut y) = (LEFT + step * i as f64, bottom);
        for ((name, bytes), color) in stage.kinds().into_iter().zip(COLORS) {
            y -= bytes * scale;
            let title = format!("stage {i}, {name}: {:.2} GiB", gib(bytes));
            svg.rectangle([x, y, step * 0.85, bytes * scale], color, &title);
        }
        if report.stages.len() <= 32 || i.is_multiple_of(8) {
            svg.text(x + step * 0.42, bottom + 14.0, "middle", &i.to_string());
        }
    }
    let limit = bottom - report.usable_bytes * scale;
    svg.line(&[(LEFT, limit), (WIDTH, limit)], "#c0392b");
    svg.text(
        LEFT - 6.0,
        limit + 4.0,
        "end",
        &format!("{:.0} GiB", gib(report.usable_bytes)),
    );
    let names = report
        .stages
        .first()
        .map(|stage| stage.kinds().map(|(name, _)| name));
    svg.legend(LEFT, bottom + 36.0, 4, &names.unwrap_or_default());
    svg.finish()
}

/// One stacked bar.
fn step<M: Planned>(report: &Report<M>) -> String {
    let mut svg = Svg::new(WIDTH, 130.0, "a step by what it is spent on");
    // The terms of a job that runs; what is not there yet has no colour.
    let terms = report.time.terms();
    let terms = &terms[..COLORS.len()];
    let mut x = 0.0;
    for (&(name, seconds), color) in terms.iter().zip(COLORS) {
        let width = WIDTH * seconds / report.seconds;
        let share = 100.0 * seconds / report.seconds;
        let title = format!("{name}: {} ({share:.1} %)", duration(seconds));
        svg.rectangle([x, 5.0, width, 40.0], color, &title);
        if share > 6.0 {
            svg.text(x + width / 2.0, 60.0, "middle", &format!("{share:.0} %"));
        }
        x += width;
    }
    let names: Vec<_> = terms.iter().map(|(name, _)| *name).collect();
    svg.legend(0.0, 82.0, 4, &names);
    svg.finish()
}

/// The first micro-batches of the schedule, stage by stage.
fn pipeline<M: Planned>(report: &Report<M>) -> Result<String> {
    let (kind, stages) = (report.job.schedule, report.job.layout.pp);
    let all = report.job.micro_batches();
    let few = match kind {
        Kind::Interleaved { .. } => (DRAWN / stages).clamp(1, 2) * stages,
        Kind::GPipe | Kind::OneForwardOneBackward => DRAWN.min(2 * stages).max(8),
    };
    let micro_batches = few.min(all);
    let schedule = Schedule::new(kind, stages, micro_batches)?;
    let costs = Costs {
        forward: report.passes.forward.clone(),
        backward: report.passes.backward.clone(),
        send: report.passes.send,
        ..Costs::uniform(&schedule, 0.0, 0.0)
    };
    let run = check(&schedule, &costs)?;
    let row = (320.0 / stages as f64).clamp(3.0, 22.0);
    let height = row * stages as f64 + 40.0;
    let mut svg = Svg::new(WIDTH, height, "passes of every stage in time");
    let scale = (WIDTH - LEFT) / run.makespan.max(1e-30);
    for event in &run.timeline {
        let (color, what, micro_batch) = match event.instruction {
            Instruction::Forward { micro_batch, .. } => (COLORS[1], "forward", micro_batch),
            Instruction::Backward { micro_batch, .. } => (COLORS[4], "backward", micro_batch),
            _ => continue,
        };
        let width = (event.end - event.start) * scale;
        let at = [
            LEFT + event.start * scale,
            row * event.stage as f64,
            width - 0.4,
            row * 0.9,
        ];
        svg.rectangle(
            at,
            color,
            &format!("stage {}: {what} of micro-batch {micro_batch}", event.stage),
        );
    }
    svg.text(LEFT - 6.0, row, "end", "stage 0");
    svg.text(
        LEFT - 6.0,
        row * stages as f64,
        "end",
        &format!("stage {}", stages - 1),
    );
    let note = format!(
        "{micro_batches} of {all} micro-batches, {}; in all of them the bubble is {:.1} % of a step",
        duration(run.makespan),
        100.0 * report.time.bubble / report.seconds
    );
    svg.text(LEFT, height - 12.0, "start", &note);
    Ok(svg.finish())
}

/// Efficiency over nodes.
fn scaling<M: Planned>(report: &Report<M>) -> String {
    let curves: [(&str, &Vec<ScalingPoint>); 2] =
        [("weak", &report.weak), ("strong", &report.strong)];
    let (height, bottom, top) = (300.0, 250.0, 20.0);
    let mut svg = Svg::new(WIDTH, height, "efficiency over nodes");
    let nodes = curves
        .iter()
        .flat_map(|(_, points)| points.iter().map(|p| p.nodes as f64));
    let (least, most) = nodes.fold((f64::INFINITY, 1.0f64), |(a, b), n| (a.min(n), b.max(n)));
    let octaves = (most / least).log2().max(1.0);
    let x = |nodes: usize| LEFT + (WIDTH - LEFT - 40.0) * (nodes as f64 / least).log2() / octaves;
    let best = curves
        .iter()
        .flat_map(|(_, points)| points.iter().map(|p| p.efficiency))
        .fold(1.0, f64::max);
    let y = |share: f64| bottom - (bottom - top) * share / best;
    for tick in [0.0, 0.25, 0.5, 0.75, 1.0] {
        svg.line(&[(LEFT, y(tick)), (WIDTH, y(tick))], "#e6e9ed");
        svg.text(
            LEFT - 6.0,
            y(tick) + 4.0,
            "end",
            &format!("{:.0} %", 100.0 * tick),
        );
    }
    for ((name, points), color) in curves.into_iter().zip([COLORS[0], COLORS[3]]) {
        let line: Vec<_> = points
            .iter()
            .map(|p| (x(p.nodes), y(p.efficiency)))
            .collect();
        svg.line(&line, color);
        for p in points {
            let title = format!(
                "{name}, {} nodes: {:.1} %, {} a step",
                p.nodes,
                100.0 * p.efficiency,
                duration(p.seconds)
            );
            svg.circle(x(p.nodes), y(p.efficiency), 4.0, color, &title);
            svg.text(x(p.nodes), bottom + 16.0, "middle", &p.nodes.to_string());
        }
    }
    svg.text(
        LEFT,
        height - 10.0,
        "start",
        "nodes; blue: a batch that grows with them (weak), brown: the same batch (strong)",
    );
    svg.finish()
}

/// Radius, color and title of a layout's point.
fn mark(point: &Point) -> (f64, &'static str, String) {
    let (radius, color) = if point.pareto {
        (4.0, "#c0392b")
    } else {
        (2.0, COLORS[1])
    };
    let title = format!(
        "tp {}: {:.2} tokens/s a rank, {:.1} GiB",
        point.tp,
        point.tokens_per_second_per_rank,
        gib(point.bytes)
    );
    (radius, color, title)
}

/// Speed over memory.
fn scatter<M: Planned>(report: &Report<M>) -> String {
    let (height, bottom, top) = (380.0, 330.0, 20.0);
    let mut svg = Svg::new(WIDTH, height, "speed over memory of all layouts that fit");
    let fastest = report
        .points
        .iter()
        .map(|p| p.tokens_per_second_per_rank)
        .fold(0.0, f64::max);
    let fastest = round_up(fastest);
    let x = |bytes: f64| LEFT + (WIDTH - LEFT - 20.0) * bytes / report.usable_bytes;
    let y = |speed: f64| bottom - (bottom - top) * speed / fastest;
    for i in 0..=4 {
        let share = f64::from(i) / 4.0;
        let (speed, bytes) = (share * fastest, share * report.usable_bytes);
        svg.line(&[(LEFT, y(speed)), (WIDTH, y(speed))], "#e6e9ed");
        let name = format!("{speed:.1}");
        svg.text(LEFT - 6.0, y(speed) + 4.0, "end", &name);
        let name = format!("{:.0} GiB", gib(bytes));
        svg.text(x(bytes), bottom + 16.0, "middle", &name);
    }
    for point in &report.points {
        let (radius, color, title) = mark(point);
        let speed = point.tokens_per_second_per_rank;
        svg.circle(x(point.bytes), y(speed), radius, color, &title);
    }
    let bytes = report
        .stages
        .iter()
        .map(|stage| stage.bytes())
        .fold(0.0, f64::max)
        .min(report.usable_bytes);
    svg.circle(
        x(bytes),
        y(report.tokens_per_second_per_rank.min(fastest)),
        6.0,
        COLORS[3],
        "this plan",
    );
    svg.text(
        LEFT,
        height - 8.0,
        "start",
        "tokens/s a rank over memory a rank; red: beaten by none in both; brown: this plan",
    );
    svg.finish()
}
