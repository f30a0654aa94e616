//! Plots as SVG files: the loss of a run, the timeline of a pipeline, kernels under their device's ceilings. No font or graphics library is needed.

mod loss;
mod pipeline;
mod roofline;

use std::fmt::Display;
use std::path::Path;

use plotters::backend::SVGBackend;
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{Circle, PathElement, Rectangle, Text};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{
    Color, FontStyle, FontTransform, IntoFont, RGBColor, ShapeStyle, TextStyle, WHITE,
};

use crate::error::{Error, Result};

pub use loss::write_loss_plot;
pub use pipeline::write_pipeline_plot;
pub use roofline::{Roofline, RooflinePoint, write_roofline_plot};

/// A drawing in pixels.
type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Text and axes.
const INK: RGBColor = RGBColor(0x26, 0x2d, 0x37);
/// Axis descriptions and tick labels.
const SOFT_INK: RGBColor = RGBColor(0x5a, 0x64, 0x72);
/// Grid lines.
const GRID: RGBColor = RGBColor(0xe6, 0xe9, 0xed);

/// The error of a drawing operation. Drawing into a string has no reason to fail.
fn broken(error: impl Display) -> Error {
    Error::Internal(format!("drawing a plot: {error}"))
}

/// Draws on a white canvas of `size` pixels and writes it as SVG.
fn write_svg(
    path: &Path,
    size: (u32, u32),
    draw: impl FnOnce(&Canvas<'_>) -> Result<()>,
) -> Result<()> {
    let mut svg = String::new();
    {
        let canvas = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        canvas.fill(&WHITE).map_err(broken)?;
        draw(&canvas)?;
        canvas.present().map_err(broken)?;
    }
    std::fs::write(path, svg).map_err(|e| Error::io("write", path, e))
}

/// Text of a height in pixels, as an SVG viewer shows it; plotters divides by 1.24.
fn text(pixels: f64, color: RGBColor) -> TextStyle<'static> {
    ("sans-serif", pixels * 1.24).into_font().color(&color)
}

/// Width of a text in pixels, about: the viewer chooses the font, so this takes the widths of a wide one.
fn text_width(pixels: f64, label: &str) -> i32 {
    let em = |c: char| match c {
        'f' | 'i' | 'j' | 'l' | 'r' | 't' | ' ' | '.' | ',' | ':' => 0.36,
        'm' | 'w' | '%' => 0.95,
        _ => 0.63,
    };
    (pixels * label.chars().map(em).sum::<f64>()).ceil() as i32
}

/// Writes a bold title at the top left.
fn draw_title(canvas: &Canvas<'_>, left: i32, title: &str) -> Result<()> {
    let font = ("sans-serif", 18.0 * 1.24)
        .into_font()
        .style(FontStyle::Bold);
    let style = font.color(&INK);
    canvas
        .draw(&Text::new(title.to_string(), (left, 16), style))
        .map_err(broken)
}

/// Writes the description of a vertical axis, reading upwards, centred at `at`.
fn draw_vertical(canvas: &Canvas<'_>, at: (i32, i32), label: &str) -> Result<()> {
    let style = text(13.0, SOFT_INK)
        .transform(FontTransform::Rotate270)
        .pos(Pos::new(HPos::Center, VPos::Center));
    canvas
        .draw(&Text::new(label.to_string(), at, style))
        .map_err(broken)
}

/// How a legend shows what its label means.
#[derive(Clone, Copy)]
enum Mark {
    Box(RGBColor),
    Line(RGBColor, u32),
    Dashes(RGBColor),
    Dot(RGBColor),
}

/// Draws a legend in one row that starts at `left` and is centred on `middle`.
fn draw_legend(
    canvas: &Canvas<'_>,
    (left, middle): (i32, i32),
    entries: &[(Mark, String)],
) -> Result<()> {
    let style = text(13.0, INK).pos(Pos::new(HPos::Left, VPos::Center));
    let mut x = left;
    for (mark, label) in entries {
        let width = draw_mark(canvas, (x, middle), *mark)?;
        x += width + 7;
        canvas
            .draw(&Text::new(label.clone(), (x, middle), style.clone()))
            .map_err(broken)?;
        x += text_width(13.0, label) + 18;
    }
    Ok(())
}

/// Draws a legend's mark from `x` on; returns its width.
fn draw_mark(canvas: &Canvas<'_>, (x, y): (i32, i32), mark: Mark) -> Result<i32> {
    let line = |from: i32, to: i32, style: ShapeStyle| {
        canvas
            .draw(&PathElement::new(vec![(x + from, y), (x + to, y)], style))
            .map_err(broken)
    };
    match mark {
        Mark::Box(color) => {
            let corners = [(x, y - 6), (x + 18, y + 6)];
            let style = color.filled();
            canvas
                .draw(&Rectangle::new(corners, style))
                .map_err(broken)?;
            Ok(18)
        }
        Mark::Line(color, width) => {
            line(0, 26, color.stroke_width(width))?;
            Ok(26)
        }
        Mark::Dashes(color) => {
            line(0, 7, color.stroke_width(2))?;
            line(11, 18, color.stroke_width(2))?;
            Ok(18)
        }
        Mark::Dot(color) => {
            let dot = Circle::new((x + 5, y), 5, color.filled());
            canvas.draw(&dot).map_err(broken)?;
            Ok(10)
        }
    }
}
