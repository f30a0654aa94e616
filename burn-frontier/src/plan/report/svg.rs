//! The few shapes that the page's charts are made of.

use std::fmt::Write;

/// Colours of categories, distinguishable without hue.
pub(super) const COLORS: [&str; 11] = [
    "#1f4e79", "#2e86c1", "#85c1e9", "#b9770e", "#f5b041", "#7d3c98", "#c39bd3", "#1e8449",
    "#82e0aa", "#922b21", "#85929e",
];
const INK: &str = "#262d37";

/// A drawing of fixed size.
pub(super) struct Svg {
    text: String,
}

impl Svg {
    pub fn new(width: f64, height: f64, label: &str) -> Self {
        Self {
            text: format!(
                "<svg role=\"img\" aria-label=\"{}\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\">\n",
                escape(label)
            ),
        }
    }

    fn add(&mut self, shape: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        _ = writeln!(self.text, "{shape}");
    }

    pub fn rectangle(&mut self, [x, y, width, height]: [f64; 4], color: &str, title: &str) {
        self.add(format_args!(
            "<rect x=\"{x:.2}\" y=\"{y:.2}\" width=\"{:.2}\" height=\"{height:.2}\" fill=\"{color}\"><title>{}</title></rect>",
            width.max(0.0),
            escape(title)
        ));
    }

    pub fn circle(&mut self, x: f64, y: f64, radius: f64, color: &str, title: &str) {
        self.add(format_args!(
            "<circle cx=\"{x:.2}\" cy=\"{y:.2}\" r=\"{radius}\" fill=\"{color}\" fill-opacity=\"0.7\"><title>{}</title></circle>",
            escape(title)
        ));
    }

    pub fn line(&mut self, points: &[(f64, f64)], color: &str) {
        let points: Vec<_> = points
            .iter()
            .map(|(x, y)| format!("{x:.2},{y:.2}"))
            .collect();
        self.add(format_args!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.5\"/>",
            points.join(" ")
        ));
    }

    /// `anchor` is start, middle or end.
    pub fn text(&mut self, x: f64, y: f64, anchor: &str, text: &str) {
        self.add(format_args!(
            "<text x=\"{x:.2}\" y=\"{y:.2}\" text-anchor=\"{anchor}\" fill=\"{INK}\">{}</text>",
            escape(text)
        ));
    }

    /// Coloured names in rows of `per_row`, from (x, y) on.
    pub fn legend(&mut self, x: f64, y: f64, per_row: usize, names: &[&str]) {
        for (i, name) in names.iter().enumerate() {
            let (column, row) = (i % per_row, i / per_row);
            let (x, y) = (x + 235.0 * column as f64, y + 18.0 * row as f64);
            self.rectangle([x, y - 10.0, 12.0, 12.0], COLORS[i % COLORS.len()], name);
            self.text(x + 17.0, y, "start", name);
        }
    }

    pub fn finish(self) -> String {
        self.text + "</svg>\n"
    }
}

/// A round number at or above `value`.
pub(super) fn round_up(value: f64) -> f64 {
    if value <= 0.0 || !value.is_finite() {
        return 1.0;
    }
    let unit = 10f64.powf(value.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .find(|step| step * unit >= value);
    step.unwrap_or(10.0) * unit
}

pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
