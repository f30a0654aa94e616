//! The loss curve of a run.

use std::path::Path;

use plotters::backend::SVGBackend;
use plotters::chart::{ChartBuilder, ChartContext, LabelAreaPosition};
use plotters::coord::cartesian::Cartesian2d;
use plotters::coord::types::{RangedCoordf64, RangedCoordu64};
use plotters::element::{Circle, PathElement, Rectangle, Text};
use plotters::series::LineSeries;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, RGBColor, WHITE};

use super::{
    Canvas, GRID, INK, Mark, SOFT_INK, broken, draw_legend, draw_title, draw_vertical, text,
    text_width, write_svg,
};
use crate::error::{Error, Result};
use crate::observe::metrics::StepRecord;

const SIZE: (u32, u32) = (960, 540);
/// Left edge of the axes, in pixels.
const LEFT: i32 = 72;
/// Points drawn of a curve at most: more than one a pixel only makes the file larger.
const MOST_POINTS: usize = 2_000;

const RAW: RGBColor = RGBColor(0xa9, 0xc6, 0xe4);
const SMOOTH: RGBColor = RGBColor(0x1f, 0x5f, 0xa8);
const VALIDATION: RGBColor = RGBColor(0xe0, 0x6c, 0x1f);
const BASELINE: RGBColor = RGBColor(0x6b, 0x72, 0x80);

/// A loss at a step.
type Point = (u64, f64);
type Chart<'a> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<RangedCoordu64, RangedCoordf64>>;

/// Writes the loss curve of `records` as SVG: every step's training loss, its moving average, the validation losses,
/// and, of text, `unigram`, the loss in nats of guessing each token by its frequency, as a dashed line. Losses that are not
/// finite are left out.
///
/// # Errors
/// No record has a finite loss, or the file cannot be written.
pub fn write_loss_plot(
    path: impl AsRef<Path>,
    title: &str,
    records: &[StepRecord],
    unigram: Option<f64>,
) -> Result<()> {
    let finite = |&(_, loss): &Point| loss.is_finite();
    let curves = Curves {
        training: (records.iter().map(|r| (r.step, r.loss)))
            .filter(finite)
            .collect(),
        validation: (records.iter())
            .filter_map(|r| Some((r.step, r.validation_loss?)))
            .filter(finite)
            .collect(),
        unigram: unigram.filter(|loss| loss.is_finite()),
    };
    if curves.training.is_empty() {
        return Err(Error::config(
            format!(
                "none of {} step records has a finite loss to plot",
                records.len()
            ),
            "plot a run that has done at least one step without overflow",
        ));
    }
    write_svg(path.as_ref(), SIZE, |canvas| {
        draw_title(canvas, LEFT, title)?;
        draw_legend(canvas, (LEFT, 58), &curves.legend())?;
        let of_tokens = records.iter().any(|record| record.tokens.is_some());
        let unit = if of_tokens { " (nats per token)" } else { "" };
        draw_vertical(canvas, (20, 295), &format!("loss{unit}"))?;
        draw_curves(canvas, &curves)
    })
}

/// What is drawn; finite losses only.
struct Curves {
    training: Vec<Point>,
    validation: Vec<Point>,
    unigram: Option<f64>,
}

impl Curves {
    /// Steps of the moving average, an odd number; none for a run so short that its raw curve is clear enough.
    fn window(&self) -> Option<usize> {
        let steps = self.training.len();
        (steps >= 100).then_some((steps / 50) | 1)
    }

    fn legend(&self) -> Vec<(Mark, String)> {
        let mut entries = Vec::new();
        match self.window() {
            Some(window) => {
                entries.push((Mark::Line(RAW, 2), "training loss".to_string()));
                let label = format!("moving average of {window} steps");
                entries.push((Mark::Line(SMOOTH, 3), label));
            }
            None => entries.push((Mark::Line(SMOOTH, 2), "training loss".to_string())),
        }
        if !self.validation.is_empty() {
            entries.push((Mark::Dot(VALIDATION), "validation loss".to_string()));
        }
        if self.unigram.is_some() {
            entries.push((Mark::Dashes(BASELINE), "unigram baseline".to_string()));
        }
        entries
    }

    /// Last step and range of losses, with some air.
    fn bounds(&self) -> (u64, std::ops::Range<f64>) {
        let all = || self.training.iter().chain(&self.validation);
        let last = all().map(|&(step, _)| step).max().unwrap_or(0).max(1);
        let losses = || all().map(|&(_, loss)| loss).chain(self.unigram);
        let low = losses().fold(f64::INFINITY, f64::min);
        let high = losses().fold(f64::NEG_INFINITY, f64::max);
        let air = (0.06 * (high - low)).max(0.01);
        (last, low - air..high + air)
    }
}

/// Mean of the `window` points around each point, of fewer at the ends. Centred, so that it does not lag behind a loss
/// that falls fast, as an average of past steps only would.
fn moving_average(points: &[Point], window: usize) -> Vec<Point> {
    let mut sums = vec![0.0];
    sums.extend(points.iter().scan(0.0, |sum, &(_, loss)| {
        *sum += loss;
        Some(*sum)
    }));
    (points.iter().enumerate())
        .map(|(i, &(step, _))| {
            let reach = (window / 2).min(i).min(points.len() - 1 - i);
            let count = (2 * reach + 1) as f64;
            (step, (sums[i + reach + 1] - sums[i - reach]) / count)
        })
        .collect()
}

/// Evenly chosen points of a curve, the last one included.
fn thin(points: &[Point]) -> impl Iterator<Item = Point> {
    let stride = points.len().div_ceil(MOST_POINTS).max(1);
    let last = points.len().saturating_sub(1);
    (points.iter().enumerate())
        .filter(move |&(i, _)| i % stride == 0 || i == last)
        .map(|(_, &point)| point)
}

fn draw_curves(canvas: &Canvas<'_>, curves: &Curves) -> Result<()> {
    let (last, losses) = curves.bounds();
    // More digits where the axis spans little.
    let digits = if losses.end - losses.start < 1.0 {
        3
    } else {
        1
    };
    let mut chart: Chart<'_> = ChartBuilder::on(canvas)
        .margin_top(84)
        .margin_right(28)
        .margin_bottom(10)
        .margin_left(30)
        .set_label_area_size(LabelAreaPosition::Left, LEFT - 30)
        .set_label_area_size(LabelAreaPosition::Bottom, 52)
        .build_cartesian_2d(0..last, losses)
        .map_err(broken)?;
    (chart.configure_mesh())
        .x_labels(10)
        .y_labels(8)
        .y_label_formatter(&|loss| format!("{loss:.digits$}"))
        .x_desc("step")
        .axis_desc_style(text(13.0, SOFT_INK))
        .label_style(text(12.0, SOFT_INK))
        .axis_style(SOFT_INK)
        .bold_line_style(GRID)
        .light_line_style(WHITE.mix(0.0))
        .draw()
        .map_err(broken)?;
    if let Some(window) = curves.window() {
        let smooth = moving_average(&curves.training, window);
        draw_line(&mut chart, &curves.training, RAW, 1)?;
        draw_line(&mut chart, &smooth, SMOOTH, 3)?;
    } else {
        draw_line(&mut chart, &curves.training, SMOOTH, 2)?;
    }
    if let Some(loss) = curves.unigram {
        draw_baseline(canvas, &chart, last, loss)?;
    }
    draw_line(&mut chart, &curves.validation, VALIDATION, 1)?;
    let dots = thin(&curves.validation).map(|at| Circle::new(at, 4, VALIDATION.filled()));
    chart.draw_series(dots).map_err(broken)?;
    Ok(())
}

fn draw_line(chart: &mut Chart<'_>, points: &[Point], color: RGBColor, width: u32) -> Result<()> {
    let line = LineSeries::new(thin(points), color.stroke_width(width));
    chart.draw_series(line).map_err(broken)?;
    Ok(())
}

/// A dashed line across the axes at `loss`, labelled at its right end.
fn draw_baseline(canvas: &Canvas<'_>, chart: &Chart<'_>, last: u64, loss: f64) -> Result<()> {
    let ((left, y), (right, _)) = (
        chart.backend_coord(&(0, loss)),
        chart.backend_coord(&(last, loss)),
    );
    for x in (left..right).step_by(11) {
        let dash = vec![(x, y), ((x + 7).min(right), y)];
        let dash = PathElement::new(dash, BASELINE.stroke_width(2));
        canvas.draw(&dash).map_err(broken)?;
    }
    let label = format!("unigram baseline {loss:.3}");
    let corners = [
        (right - 12 - text_width(12.0, &label), y - 22),
        (right - 4, y - 4),
    ];
    // A veil, so that a curve behind the label does not cross it out.
    let veil = Rectangle::new(corners, WHITE.mix(0.8).filled());
    canvas.draw(&veil).map_err(broken)?;
    let style = text(12.0, INK).pos(Pos::new(HPos::Right, VPos::Center));
    let label = Text::new(label, (right - 8, y - 12), style);
    canvas.draw(&label).map_err(broken)
}
