//! What the runtime lacks and would gain, after everything that runs and marked as not there.

use std::fmt::Write;

use super::page::gib;
use super::svg::escape;
use crate::plan::outlook::{Outlook, Possible, Prospect};

pub(super) fn page<M>(outlook: &Outlook<M>) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    _ = section(&mut text, outlook);
    text
}

fn tried<M>(outlook: &Outlook<M>) -> usize {
    outlook.prospects.last().map_or(0, |all| all.tried)
}

fn gain<M>(prospect: &Prospect<M>) -> String {
    match prospect.gain {
        Some(gain) => format!("{:+.1} %", 100.0 * gain),
        None => "fits".into(),
    }
}

const fn nothing<M>(prospect: &Prospect<M>) -> &'static str {
    match prospect.tried {
        0 => "no layout of so many ranks has it",
        _ => "nothing would fit",
    }
}

/// What of its step it is about.
fn costs<M>(fastest: &Possible<M>) -> String {
    let time = &fastest.time;
    let costs = [
        ("bubble", time.bubble),
        ("gradient reduction", time.data),
        ("exposed context-parallel communication", time.context),
        ("exposed parameter gathering", time.gather),
    ];
    let costs: Vec<_> = costs
        .into_iter()
        .filter(|(_, seconds)| *seconds > 0.0)
        .map(|(name, seconds)| format!("{name} {:.1} %", 100.0 * seconds / time.seconds()))
        .collect();
    costs.join(", ")
}

fn least<M>(outlook: &Outlook<M>) -> String {
    let runs = outlook.runnable_least_bytes;
    let runs = runs.map(|bytes| ("what runs".to_string(), bytes));
    let all = outlook.prospects.iter().map(|p| (p.name(), p.least_bytes));
    let least: Vec<_> = runs
        .into_iter()
        .chain(all.filter(|(_, bytes)| bytes.is_finite()))
        .map(|(name, bytes)| format!("{name} {:.1}", gib(bytes)))
        .collect();
    least.join(", ")
}

fn section<M>(text: &mut String, outlook: &Outlook<M>) -> std::fmt::Result {
    writeln!(
        text,
        "\nwhat if ({}): what the runtime lacks, and would gain over the best above, of {} layouts",
        outlook.note.to_uppercase(),
        tried(outlook)
    )?;
    writeln!(
        text,
        "{:>30} {:>18} {:>6}",
        "gain", "tokens/s a rank", "GiB"
    )?;
    for prospect in &outlook.prospects {
        let name = prospect.name();
        let Some(fastest) = &prospect.fastest else {
            writeln!(text, "  {name:<20} {}", nothing(prospect))?;
            continue;
        };
        writeln!(
            text,
            "  {name:<20} {:>7} {:>18.2} {:>6.1}  {}",
            gain(prospect),
            fastest.tokens_per_second_per_rank,
            gib(fastest.bytes),
            fastest.what_if
        )?;
        let costs = costs(fastest);
        if !costs.is_empty() {
            writeln!(text, "  {:<20} of its step: {costs}", "")?;
        }
    }
    writeln!(text, "  least memory (GiB)   {}", least(outlook))
}

/// The same as a table for a browser.
pub(super) fn html<M>(outlook: &Outlook<M>) -> String {
    let row = |tag: &str, cells: &[String]| {
        let cells = cells.iter();
        let cells: String = cells
            .map(|cell| format!("<{tag}>{}</{tag}>", escape(cell)))
            .collect();
        format!("<tr>{cells}</tr>\n")
    };
    let head = [
        "with",
        "gain",
        "tokens/s a rank",
        "GiB",
        "layout",
        "of its step",
    ];
    let rows = outlook.prospects.iter().map(|prospect| {
        let name = prospect.name();
        match &prospect.fastest {
            None => row("td", &[name, nothing(prospect).into()]),
            Some(fastest) => row(
                "td",
                &[
                    name,
                    gain(prospect),
                    format!("{:.2}", fastest.tokens_per_second_per_rank),
                    format!("{:.1}", gib(fastest.bytes)),
                    fastest.what_if.to_string(),
                    costs(fastest),
                ],
            ),
        }
    });
    format!(
        "<p><b>None of these layouts can be run: they are {}.</b> The fastest that would fit of {} layouts, and its gain over the fastest that runs.</p>\n\
         <table>\n{}{}</table>\n<p>Least memory, GiB: {}</p>\n",
        outlook.note,
        tried(outlook),
        row("th", &head.map(String::from)),
        rows.collect::<String>(),
        escape(&least(outlook))
    )
}
