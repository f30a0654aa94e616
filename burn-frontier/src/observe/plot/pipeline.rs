//! The timeline of a pipeline: a Gantt chart of what each stage did when.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use plotters::chart::{ChartBuilder, LabelAreaPosition};
use plotters::element::{Rectangle, Text};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, RGBColor, WHITE};

use super::{
    Canvas, GRID, INK, Mark, SOFT_INK, broken, draw_legend, draw_title, text, text_width, write_svg,
};
use crate::error::{Error, Result};
use crate::observe::trace::{Category, Span, bubble_fraction};

const WIDTH: u32 = 1240;
/// Left edge of the axes, in pixels.
const LEFT: i32 = 110;
/// Height of title and legend.
const HEAD: u32 = 84;
/// Height of the time axis and its description.
const FOOT: u32 = 56;
/// Height of a stage's row and of the boxes in it.
const ROW: u32 = 40;
const BOX: i32 = 30;
/// Height of the boxes of communication, lower so that waiting does not look like work.
const LOW_BOX: i32 = 14;

const IDLE: RGBColor = RGBColor(0xee, 0xf0, 0xf3);

/// Colour and legend of a category.
const fn look(category: Category) -> (RGBColor, &'static str) {
    match category {
        Category::Forward => (RGBColor(0x35, 0x6f, 0xae), "forward"),
        Category::Backward => (RGBColor(0x2f, 0x8f, 0x6b), "backward"),
        Category::BackwardWeight => (RGBColor(0x8a, 0x6f, 0x2a), "weight gradients"),
        Category::Send | Category::Receive => (RGBColor(0xb9, 0xa4, 0xdc), "send and receive"),
        Category::Reduce => (RGBColor(0xe0, 0x94, 0x2e), "reduce"),
        Category::Step => (RGBColor(0xb8, 0x4a, 0x5a), "optimizer step"),
    }
}

/// Writes a Gantt chart of `spans` as SVG: a row for each rank, named after its stage, with every span as a box and the
/// number of its micro-batch where it fits. Give it the spans of one step and one pipeline. Time starts at the first
/// span. The title ends with the bubble (see [`bubble_fraction`]).
///
/// # Errors
/// There are no spans, or the file cannot be written.
pub fn write_pipeline_plot(path: impl AsRef<Path>, title: &str, spans: &[Span]) -> Result<()> {
    let start = spans
        .iter()
        .map(|span| span.start_us)
        .min_by(f64::total_cmp);
    let end = spans.iter().map(|span| span.end_us).max_by(f64::total_cmp);
    let (Some(start), Some(end)) = (start, end) else {
        return Err(Error::config(
            "no spans to plot",
            "record a step with tracing switched on",
        ));
    };
    let rows = rows(spans);
    let height = HEAD + ROW * rows.len() as u32 + FOOT;
    // An axis needs a length even if all spans are instants.
    let milliseconds = ((end - start) / 1e3).max(1e-3);
    write_svg(path.as_ref(), (WIDTH, height), |canvas| {
        draw_title(canvas, LEFT, &full_title(title, spans))?;
        draw_legend(canvas, (LEFT, 58), &legend(spans))?;
        let to_pixels = draw_axis(canvas, rows.len(), milliseconds)?;
        let edges = |span: &Span| {
            let at = |us: f64| to_pixels((us - start) / 1e3);
            (at(span.start_us), at(span.end_us))
        };
        let size = number_size(spans, |span| edges(span).1 - edges(span).0);
        for (row, ((stage, rank), spans)) in rows.iter().enumerate() {
            let middle = (HEAD + ROW / 2) as i32 + ROW as i32 * row as i32;
            let alone = rows.keys().filter(|(other, _)| other == stage).count() == 1;
            let label = match alone {
                true => format!("stage {stage}"),
                false => format!("stage {stage}, rank {rank}"),
            };
            let whole = (to_pixels(0.0), to_pixels(milliseconds));
            draw_row(canvas, middle, &label, whole)?;
            for span in spans {
                draw_span(canvas, span, middle, edges(span), size)?;
            }
        }
        Ok(())
    })
}

/// The spans of each rank, by stage and rank; communication first, so that computation is drawn over it.
fn rows(spans: &[Span]) -> BTreeMap<(usize, usize), Vec<Span>> {
    let mut rows: BTreeMap<_, Vec<Span>> = BTreeMap::new();
    for span in spans {
        rows.entry((span.stage, span.rank)).or_default().push(*span);
    }
    for row in rows.values_mut() {
        row.sort_by_key(|span| span.category.is_compute());
    }
    rows
}

fn full_title(title: &str, spans: &[Span]) -> String {
    let stages: BTreeSet<_> = spans.iter().map(|span| span.stage).collect();
    let micro_batches: BTreeSet<_> = spans.iter().filter_map(|span| span.micro_batch).collect();
    let count = |n: usize, word: &str| format!("{n} {word}{}", if n == 1 { "" } else { "s" });
    let bubble = match bubble_fraction(spans) {
        Some(bubble) => format!(", bubble {:.1} %", 100.0 * bubble),
        None => String::new(),
    };
    format!(
        "{title}: {}, {}{bubble}",
        count(stages.len(), "stage"),
        count(micro_batches.len(), "micro-batch").replace("batchs", "batches"),
    )
}

/// One entry for each colour in use.
fn legend(spans: &[Span]) -> Vec<(Mark, String)> {
    let categories: BTreeSet<_> = spans.iter().map(|span| span.category).collect();
    let mut entries: Vec<(Mark, String)> = Vec::new();
    for (color, label) in categories.into_iter().map(look) {
        if entries.iter().all(|(_, known)| known != label) {
            entries.push((Mark::Box(color), label.to_string()));
        }
    }
    if spans.iter().any(|span| span.chunk > 0) {
        let (color, _) = look(Category::Forward);
        entries.push((
            Mark::Box(shade(color, 1)),
            "lighter: later chunks".to_string(),
        ));
    }
    entries.push((Mark::Box(IDLE), "idle".to_string()));
    entries
}

/// The time axis with its grid. Returns the map from milliseconds to the horizontal pixel.
fn draw_axis(
    canvas: &Canvas<'_>,
    rows: usize,
    milliseconds: f64,
) -> Result<impl Fn(f64) -> i32 + use<>> {
    // Ticks are a tenth of the axis or so apart: enough digits to tell them apart.
    let digits = (1.0 - milliseconds.log10().floor()).clamp(0.0, 6.0) as usize;
    let mut chart = ChartBuilder::on(canvas)
        .margin_top(HEAD)
        .margin_right(28)
        .margin_bottom(6)
        .margin_left(LEFT)
        .set_label_area_size(LabelAreaPosition::Bottom, FOOT - 6)
        .build_cartesian_2d(0.0..milliseconds, 0.0..rows as f64)
        .map_err(broken)?;
    (chart.configure_mesh())
        .disable_y_mesh()
        .disable_y_axis()
        .x_labels(12)
        .x_label_formatter(&|ms| format!("{ms:.digits$}"))
        .x_desc("time (ms)")
        .axis_desc_style(text(13.0, SOFT_INK))
        .label_style(text(12.0, SOFT_INK))
        .axis_style(SOFT_INK)
        .bold_line_style(GRID)
        .light_line_style(WHITE.mix(0.0))
        .draw()
        .map_err(broken)?;
    let (left, _) = chart.backend_coord(&(0.0, 0.0));
    let (right, _) = chart.backend_coord(&(milliseconds, 0.0));
    let scale = f64::from(right - left) / milliseconds;
    Ok(move |ms: f64| left + (ms * scale).round() as i32)
}

/// A row's name and the bar that shows where it is idle.
fn draw_row(canvas: &Canvas<'_>, middle: i32, label: &str, edges: (i32, i32)) -> Result<()> {
    let corners = [(edges.0, middle - BOX / 2), (edges.1, middle + BOX / 2)];
    canvas
        .draw(&Rectangle::new(corners, IDLE.filled()))
        .map_err(broken)?;
    let style = text(13.0, INK).pos(Pos::new(HPos::Right, VPos::Center));
    canvas
        .draw(&Text::new(label.to_string(), (LEFT - 10, middle), style))
        .map_err(broken)
}

/// Whether a number can be read inside a box of this width, in pixels.
fn fits(size: f64, number: &str, width: i32) -> bool {
    text_width(size, number) + 3 <= width
}

/// The text size of all numbers: the usual one if it fits into most boxes, a small one otherwise.
fn number_size(spans: &[Span], width: impl Fn(&Span) -> i32) -> f64 {
    let numbers: Vec<bool> = (spans.iter().filter(|span| span.category.is_compute()))
        .filter_map(|span| Some(fits(12.0, &span.micro_batch?.to_string(), width(span))))
        .collect();
    let fitting = numbers.iter().filter(|&&fits| fits).count();
    if 10 * fitting >= 9 * numbers.len() {
        12.0
    } else {
        9.0
    }
}

/// A span's box with a gap to the next one if there is room for it, and its micro-batch in a text of `size`.
fn draw_span(
    canvas: &Canvas<'_>,
    span: &Span,
    middle: i32,
    (left, right): (i32, i32),
    size: f64,
) -> Result<()> {
    let low = matches!(span.category, Category::Send | Category::Receive);
    let half = if low { LOW_BOX / 2 } else { BOX / 2 };
    let gap = i32::from(right - left >= 4);
    let corners = [
        (left, middle - half),
        ((right - gap).max(left + 1), middle + half),
    ];
    let (color, _) = look(span.category);
    let fill = shade(color, span.chunk).filled();
    canvas
        .draw(&Rectangle::new(corners, fill))
        .map_err(broken)?;
    let Some(micro_batch) = span.micro_batch.filter(|_| span.category.is_compute()) else {
        return Ok(());
    };
    let number = micro_batch.to_string();
    if !fits(size, &number, right - left) {
        return Ok(());
    }
    let ink = if span.chunk == 0 { WHITE } else { INK };
    let style = text(size, ink).pos(Pos::new(HPos::Center, VPos::Center));
    let at = ((left + right - gap) / 2, middle);
    canvas.draw(&Text::new(number, at, style)).map_err(broken)
}

/// The colour of a chunk of layers: lighter for the later ones of an interleaved schedule.
fn shade(color: RGBColor, chunk: usize) -> RGBColor {
    let white = 0.3 * (chunk.min(2) as f64);
    let mix = |c: u8| (f64::from(c) * (1.0 - white) + 255.0 * white) as u8;
    RGBColor(mix(color.0), mix(color.1), mix(color.2))
}
