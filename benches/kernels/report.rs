//! What was measured: as a table, as a file of figures, as a roofline plot, and beside a peer.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use burn_frontier::observe::plot::{Roofline, RooflinePoint, write_roofline_plot};

use crate::case::Work;
use crate::ceiling::Ceiling;
use crate::clock::Timing;
use crate::events::By;
use crate::options::Dtype;

/// One kernel at one shape.
pub struct Row {
    pub kernel: String,
    pub shape: String,
    pub work: Work,
    pub timing: Timing,
    pub by: By,
}

impl Row {
    fn flops_per_second(&self) -> f64 {
        self.work.flops / self.timing.seconds
    }

    fn bytes_per_second(&self) -> f64 {
        self.work.bytes / self.timing.seconds
    }

    /// For a line that says that it is done.
    pub fn summary(&self, ceiling: &Ceiling) -> String {
        let share = 100.0 * ceiling.share(&self.work, &self.timing);
        let time = time(self.timing.seconds);
        format!("{time}, {} % of the ceiling", digits(share))
    }
}

/// The table, and why Burn's kernels were taken where they were.
pub fn table(rows: &[Row], ceiling: &Ceiling, peer: Option<&Peer>) -> String {
    let width = |text: fn(&Row) -> &str, least| {
        let longest = rows.iter().map(|row| text(row).len()).max().unwrap_or(0);
        longest.max(least) + 2
    };
    let (name, shape) = (width(|row| &row.kernel, 6), width(|row| &row.shape, 5));
    let mut text = format!(
        "{:<name$}{:<shape$}{:<10}{:>10}{:>9}{:>12}{:>11}{:>12}{}\n",
        "kernel",
        "shape",
        "by",
        "time",
        "spread",
        "TFLOP/s",
        "GB/s",
        "of ceiling",
        if peer.is_some() { "  ours / peer" } else { "" }
    );
    for row in rows {
        let compared = peer.map_or(String::new(), |peer| {
            let ratio = peer.seconds(row).map(|peer| peer / row.timing.seconds);
            format!("{:>13}", ratio.map_or("-".into(), digits))
        });
        text += &format!(
            "{:<name$}{:<shape$}{:<10}{:>10}{:>7.0} %{:>12}{:>11}{:>10} %{compared}\n",
            row.kernel,
            row.shape,
            row.by,
            time(row.timing.seconds),
            100.0 * row.timing.spread,
            digits(row.flops_per_second() / 1e12),
            digits(row.bytes_per_second() / 1e9),
            digits(100.0 * ceiling.share(&row.work, &row.timing)),
        );
    }
    let refusals: BTreeSet<&String> = rows.iter().flat_map(|row| &row.by.refusals).collect();
    for refusal in refusals {
        text += &format!("{refusal}\n");
    }
    text
}

/// A line a row, the ceilings first. benches/peer.py reads it.
pub fn csv(rows: &[Row], ceiling: &Ceiling, dtype: Dtype) -> String {
    let mut text = String::from(
        "kernel,shape,dtype,by,seconds,spread,runs,flops,bytes,tflops,gbs,of_ceiling\n",
    );
    let mut line = |[kernel, shape, dtype, by]: [&str; 4], work: &Work, timing: &Timing| {
        // Writing into a string does not fail.
        _ = writeln!(
            text,
            "{kernel},{shape},{dtype},{by},{:e},{:.4},{},{},{},{:e},{:e},{:.4}",
            timing.seconds,
            timing.spread,
            timing.runs,
            work.flops,
            work.bytes,
            work.flops / timing.seconds / 1e12,
            work.bytes / timing.seconds / 1e9,
            ceiling.share(work, timing)
        );
    };
    let (Ceiling { product, copy }, dtype) = (ceiling, dtype.to_string());
    for (name, dtype, best) in [
        ("ceiling_product", dtype.as_str(), product),
        ("ceiling_copy", "f32", copy),
    ] {
        line([name, &best.shape, dtype, "burn"], &best.work, &best.timing);
    }
    for row in rows {
        let names = [&row.kernel, &row.shape, &dtype, &row.by.to_string()];
        line(names.map(String::as_str), &row.work, &row.timing);
    }
    text
}

/// Draws the rows under the ceilings.
pub fn plot(path: &Path, title: &str, rows: &[Row], ceiling: &Ceiling) -> Result<()> {
    let roofline = Roofline {
        flops_per_second: ceiling.product.rate,
        bytes_per_second: ceiling.copy.rate,
    };
    let point = |row: &Row| RooflinePoint {
        label: format!("{} {}", row.kernel, row.shape),
        flops: row.work.flops,
        bytes: row.work.bytes,
        seconds: row.timing.seconds,
    };
    let points: Vec<RooflinePoint> = rows.iter().map(point).collect();
    Ok(write_roofline_plot(path, title, &roofline, &points)?)
}

/// Another library's times, by kernel, shape and type.
pub struct Peer {
    seconds: BTreeMap<(String, String), f64>,
}

impl Peer {
    /// Reads what benches/peer.py wrote, as far as it is of type `dtype`.
    pub fn read(path: &Path, dtype: Dtype) -> Result<Self> {
        let text = burn_frontier::utf8::read(path).context("the peer's figures")?;
        Self::parse(&text, &dtype.to_string()).with_context(|| {
            format!(
                "{} is not what benches/peer.py writes; run it on a kernels.csv of type {dtype}",
                path.display()
            )
        })
    }

    fn parse(text: &str, dtype: &str) -> Result<Self> {
        let mut lines = text.lines();
        let header: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
        let column = |name: &str| {
            let found = header.iter().position(|&column| column == name);
            found.with_context(|| format!("there is no column '{name}'"))
        };
        let columns = [
            column("kernel")?,
            column("shape")?,
            column("dtype")?,
            column("seconds")?,
        ];
        let mut seconds = BTreeMap::new();
        for line in lines {
            let fields: Vec<&str> = line.split(',').collect();
            let [kernel, shape, of, time] =
                columns.map(|i| fields.get(i).copied().unwrap_or_default());
            if of == dtype {
                let time = time
                    .parse()
                    .with_context(|| format!("'{time}' is no time, in '{line}'"))?;
                seconds.insert((kernel.into(), shape.into()), time);
            }
        }
        anyhow::ensure!(!seconds.is_empty(), "it has no figures of type {dtype}");
        Ok(Self { seconds })
    }

    fn seconds(&self, row: &Row) -> Option<f64> {
        let key = (row.kernel.clone(), row.shape.clone());
        self.seconds.get(&key).copied()
    }
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{} µs", digits(s * 1e6)),
        s if s < 1.0 => format!("{} ms", digits(s * 1e3)),
        s => format!("{} s", digits(s)),
    }
}

/// Three digits that count.
fn digits(x: f64) -> String {
    if x <= 0.0 || !x.is_finite() {
        return format!("{x:.0}");
    }
    let decimals = (2.0 - x.log10().floor()).clamp(0.0, 9.0) as usize;
    format!("{x:.decimals$}")
}
