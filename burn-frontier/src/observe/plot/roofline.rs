//! Kernels under the ceilings of their device (roofline model, doi 10.1145/1498765.1498785).

use std::ops::Range;
use std::path::Path;

use plotters::backend::SVGBackend;
use plotters::chart::{ChartBuilder, ChartContext, LabelAreaPosition};
use plotters::coord::cartesian::Cartesian2d;
use plotters::coord::combinators::{IntoLogRange, LogCoord};
use plotters::element::{Circle, PathElement, Text};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, RGBColor, WHITE};

use super::{
    Canvas, GRID, INK, SOFT_INK, broken, draw_title, draw_vertical, text, text_width, write_svg,
};
use crate::error::{Error, Result};

const WIDTH: u32 = 1280;
/// Height at least, in pixels.
const HEIGHT: i32 = 640;
const LEFT: i32 = 84;
const TOP: i32 = 62;
/// Right edge of the axes; the list of points is beside it.
const RIGHT: i32 = 860;
/// Height of a line of the list.
const LINE: i32 = 17;

const CEILING: RGBColor = RGBColor(0x26, 0x2d, 0x37);
const POINT: RGBColor = RGBColor(0x1f, 0x5f, 0xa8);

type Chart<'a> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<LogCoord<f64>, LogCoord<f64>>>;

/// What a device reaches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Roofline {
    /// Rate of its matrix products, FLOP/s.
    pub flops_per_second: f64,
    /// Bandwidth of its memory, bytes/s.
    pub bytes_per_second: f64,
}

/// A measured kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct RooflinePoint {
    /// What it is called.
    pub label: String,
    /// Operations.
    pub flops: f64,
    /// Bytes moved at least.
    pub bytes: f64,
    /// Time of both.
    pub seconds: f64,
}

impl RooflinePoint {
    /// FLOP per byte, and FLOP/s.
    fn at(&self) -> (f64, f64) {
        (self.flops / self.bytes, self.flops / self.seconds)
    }
}

/// Writes a roofline plot as SVG: FLOP/s over FLOP per byte, both logarithmic, the two ceilings of the device, and the points,
/// numbered as in the list beside them, which gives each one's share of its ceiling.
///
/// # Errors
/// No point; a figure that is not positive and finite; the file cannot be written.
pub fn write_roofline_plot(
    path: impl AsRef<Path>,
    title: &str,
    roofline: &Roofline,
    points: &[RooflinePoint],
) -> Result<()> {
    check(roofline, points)?;
    let height = HEIGHT.max(TOP + 40 + LINE * points.len() as i32);
    write_svg(path.as_ref(), (WIDTH, height as u32), |canvas| {
        draw_title(canvas, 30, title)?;
        draw_vertical(canvas, (20, (TOP + height) / 2), "GFLOP/s")?;
        let chart = draw_axes(canvas, roofline, points)?;
        draw_ceilings(canvas, &chart, roofline)?;
        draw_points(canvas, &chart, points)?;
        draw_list(canvas, roofline, points)
    })
}

fn check(roofline: &Roofline, points: &[RooflinePoint]) -> Result<()> {
    let ceilings = [roofline.flops_per_second, roofline.bytes_per_second];
    let figures = points.iter().flat_map(|p| [p.flops, p.bytes, p.seconds]);
    let bad = ceilings
        .into_iter()
        .chain(figures)
        .find(|x| !(x.is_finite() && *x > 0.0));
    let what = match (bad, points.is_empty()) {
        (Some(x), _) => format!("a roofline plot cannot show {x}"),
        (None, true) => "a roofline plot has no point".into(),
        (None, false) => return Ok(()),
    };
    Err(Error::config(
        what,
        "give at least one kernel, with operations, bytes and times above zero",
    ))
}

/// From the decade below the least to that above the largest.
fn decades(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (least, most) = values.fold((f64::INFINITY, 0.0f64), |(a, b), x| (a.min(x), b.max(x)));
    // A point on the very edge would be half a point.
    let power = |x: f64| 10f64.powf(x);
    power((least * 0.8).log10().floor())..power((most * 1.25).log10().ceil())
}

fn draw_axes<'a>(
    canvas: &Canvas<'a>,
    roofline: &Roofline,
    points: &[RooflinePoint],
) -> Result<Chart<'a>> {
    let ridge = roofline.flops_per_second / roofline.bytes_per_second;
    let x = decades(points.iter().map(|p| p.at().0).chain([ridge]));
    let y = points.iter().map(|p| p.at().1);
    let y = decades(y.chain([roofline.flops_per_second]).map(|y| y / 1e9));
    let mut chart = ChartBuilder::on(canvas)
        .margin_top(TOP)
        .margin_right(WIDTH as i32 - RIGHT)
        .margin_bottom(10)
        .margin_left(30)
        .set_label_area_size(LabelAreaPosition::Left, LEFT - 30)
        .set_label_area_size(LabelAreaPosition::Bottom, 52)
        .build_cartesian_2d(x.log_scale(), y.log_scale())
        .map_err(broken)?;
    (chart.configure_mesh())
        .x_labels(10)
        .y_labels(10)
        .x_label_formatter(&|x| x.to_string())
        .y_label_formatter(&|y| y.to_string())
        .x_desc("FLOP per byte")
        .axis_desc_style(text(13.0, SOFT_INK))
        .label_style(text(12.0, SOFT_INK))
        .axis_style(SOFT_INK)
        .bold_line_style(GRID)
        .light_line_style(WHITE.mix(0.0))
        .draw()
        .map_err(broken)?;
    Ok(chart)
}

/// The bandwidth's slope up to the ridge and the rate from there on, each with its figure.
fn draw_ceilings(canvas: &Canvas<'_>, chart: &Chart<'_>, roofline: &Roofline) -> Result<()> {
    let Roofline {
        flops_per_second: rate,
        bytes_per_second: bandwidth,
    } = *roofline;
    let (left, right) = (chart.x_range().start, chart.x_range().end);
    let bottom = chart.y_range().start * 1e9;
    let at = |x: f64, y: f64| chart.backend_coord(&(x, y / 1e9));
    let ridge = rate / bandwidth;
    let start = left.max(bottom / bandwidth);
    let line = [
        at(start, start * bandwidth),
        at(ridge, rate),
        at(right, rate),
    ];
    let line = PathElement::new(line.to_vec(), CEILING.stroke_width(2));
    canvas.draw(&line).map_err(broken)?;
    let label = |of: String, at: (i32, i32), side: HPos| {
        let style = text(12.0, INK).pos(Pos::new(side, VPos::Bottom));
        canvas.draw(&Text::new(of, at, style)).map_err(broken)
    };
    let of = format!("matrix products {} GFLOP/s", figure(rate / 1e9));
    label(of, (RIGHT - 8, at(right, rate).1 - 6), HPos::Right)?;
    let (x, y) = at(start, start * bandwidth);
    let (to, top) = at(ridge, rate);
    let of = format!("copy {} GB/s", figure(bandwidth / 1e9));
    let along = |part: f64, of: (i32, i32)| of.0 + (f64::from(of.1 - of.0) * part).round() as i32;
    // Above the slope, where no kernel can be, if that leaves room to its left.
    let (x, y) = (along(0.75, (x, to)), along(0.75, (y, top)));
    if x - LEFT > text_width(12.0, &of) + 16 {
        label(of, (x - 10, y), HPos::Right)
    } else {
        label(of, (x + 12, y + 20), HPos::Left)
    }
}

/// Three digits that count.
fn figure(x: f64) -> String {
    let decimals = (2.0 - x.log10().floor()).clamp(0.0, 6.0) as usize;
    format!("{x:.decimals$}")
}

/// Half the width and height of a number beside a point, in pixels.
const NUMBER: (i32, i32) = (9, 7);

fn draw_points(canvas: &Canvas<'_>, chart: &Chart<'_>, points: &[RooflinePoint]) -> Result<()> {
    let at = |point: &RooflinePoint| {
        let (x, y) = point.at();
        chart.backend_coord(&(x, y / 1e9))
    };
    let dots: Vec<(i32, i32)> = points.iter().map(at).collect();
    let numbers = places(&dots);
    for (&from, &to) in dots.iter().zip(&numbers) {
        let line = PathElement::new(vec![from, to], SOFT_INK.mix(0.35).stroke_width(1));
        canvas.draw(&line).map_err(broken)?;
    }
    for (i, (&dot, &number)) in dots.iter().zip(&numbers).enumerate() {
        let mark = Circle::new(dot, 4, POINT.filled());
        canvas.draw(&mark).map_err(broken)?;
        let style = text(11.0, INK).pos(Pos::new(HPos::Center, VPos::Center));
        let number = Text::new((i + 1).to_string(), number, style);
        canvas.draw(&number).map_err(broken)?;
    }
    Ok(())
}

/// Where each dot's number is read without another in its way: on the nearest of some circles around the dot.
fn places(dots: &[(i32, i32)]) -> Vec<(i32, i32)> {
    let mut taken: Vec<(i32, i32)> = Vec::new();
    for &(x, y) in dots {
        let ring = |i: i32| {
            let radius = f64::from(13 + 9 * (i / 16));
            let angle = f64::from(i % 16) * std::f64::consts::TAU / 16.0;
            let (dx, dy) = (radius * angle.cos(), radius * angle.sin());
            (x + dx.round() as i32, y - dy.round() as i32)
        };
        let near = |a: (i32, i32), b: (i32, i32), (w, h): (i32, i32)| {
            (a.0 - b.0).abs() < w && (a.1 - b.1).abs() < h
        };
        let (w, h) = NUMBER;
        let free = |place: &(i32, i32)| {
            !taken
                .iter()
                .any(|&other| near(*place, other, (2 * w, 2 * h)))
                && !dots.iter().any(|&dot| near(*place, dot, (w + 4, h + 4)))
        };
        taken.push((0..16 * 12).map(ring).find(free).unwrap_or(ring(0)));
    }
    taken
}

fn draw_list(canvas: &Canvas<'_>, roofline: &Roofline, points: &[RooflinePoint]) -> Result<()> {
    let write = |of: String, at: (i32, i32), side: HPos, color| {
        let style = text(12.0, color).pos(Pos::new(side, VPos::Center));
        canvas.draw(&Text::new(of, at, style)).map_err(broken)
    };
    let (number, label, share) = (RIGHT + 40, RIGHT + 50, WIDTH as i32 - 20);
    write("% of ceiling".into(), (share, TOP), HPos::Right, SOFT_INK)?;
    for (i, point) in points.iter().enumerate() {
        let y = TOP + LINE * (i as i32 + 1);
        let least =
            (point.flops / roofline.flops_per_second).max(point.bytes / roofline.bytes_per_second);
        let of = 100.0 * least / point.seconds;
        write((i + 1).to_string(), (number, y), HPos::Right, SOFT_INK)?;
        write(point.label.clone(), (label, y), HPos::Left, INK)?;
        write(figure(of), (share, y), HPos::Right, INK)?;
    }
    Ok(())
}
