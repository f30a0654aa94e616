//! What can be measured, and at which shapes.

use anyhow::{Result, bail, ensure};

use crate::case::{Case, Pass, Place};
use crate::options::Options;
use crate::{attention, layers, rows, windows};

/// How large the shapes are that nobody chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// Ends at once.
    Tiny,
    /// Ends within minutes on two cores.
    Small,
    /// Fills a GPU.
    Large,
}

/// An operation, of which each pass is a kernel to measure.
pub struct Operation {
    pub name: &'static str,
    /// What the numbers of a shape are.
    pub form: &'static [&'static str],
    /// Shapes by [`Size`].
    pub shapes: [&'static [&'static [usize]]; 3],
    pub passes: &'static [Pass],
    /// A shape has as many numbers as the form, none of them zero.
    pub make: fn(&[usize], Pass, &Place) -> Result<Case>,
}

pub const BOTH: &[Pass] = &[Pass::Forward, Pass::Backward];

fn operations() -> impl Iterator<Item = &'static Operation> {
    let all = [
        attention::OPERATIONS,
        layers::OPERATIONS,
        rows::OPERATIONS,
        windows::OPERATIONS,
    ];
    all.into_iter().flatten()
}

/// A pass of an operation at a shape.
pub struct Job {
    operation: &'static Operation,
    pass: Pass,
    shape: Vec<usize>,
}

impl Job {
    pub fn name(&self) -> String {
        name(self.operation, self.pass)
    }

    pub fn shape_text(&self) -> String {
        let numbers: Vec<String> = self.shape.iter().map(ToString::to_string).collect();
        numbers.join("x")
    }

    pub fn label(&self) -> String {
        format!("{} {}", self.name(), self.shape_text())
    }

    pub fn case(&self, place: &Place) -> Result<Case> {
        (self.operation.make)(&self.shape, self.pass, place)
    }
}

fn name(operation: &Operation, pass: Pass) -> String {
    match pass {
        Pass::Forward => operation.name.into(),
        Pass::Backward => format!("{}_backward", operation.name),
    }
}

/// The jobs that the command line asks for.
pub fn select(options: &Options, size: Size) -> Result<Vec<Job>> {
    let mut jobs = Vec::new();
    for operation in operations() {
        for &pass in operation.passes {
            let kernel = name(operation, pass);
            if !options.wants(&kernel) {
                continue;
            }
            for shape in shapes(operation, &kernel, options, size)? {
                jobs.push(Job {
                    operation,
                    pass,
                    shape,
                });
            }
        }
    }
    if jobs.is_empty() {
        let filter = options.filter.as_deref().unwrap_or_default();
        bail!("no kernel is named like '{filter}'; --list without a filter names them all");
    }
    Ok(jobs)
}

fn shapes(
    operation: &Operation,
    kernel: &str,
    options: &Options,
    size: Size,
) -> Result<Vec<Vec<usize>>> {
    if options.shape.is_empty() {
        let shapes = operation.shapes[size as usize];
        return Ok(shapes.iter().map(|shape| shape.to_vec()).collect());
    }
    for shape in &options.shape {
        ensure!(
            shape.0.len() == operation.form.len(),
            "{kernel} has shapes {}, but a --shape has {} numbers; name one kernel, with --exact if others contain its name",
            operation.form.join(" x "),
            shape.0.len()
        );
    }
    Ok(options.shape.iter().map(|shape| shape.0.clone()).collect())
}

/// A line a job.
pub fn list(jobs: &[Job]) -> String {
    let line = |job: &Job| {
        let form = job.operation.form.join(" x ");
        format!("{:<32}{:<22}{form}\n", job.name(), job.shape_text())
    };
    jobs.iter().map(line).collect()
}

/// A line an operation: the form of its shapes.
pub fn forms() -> String {
    let line = |operation: &Operation| {
        let form = operation.form.join(" x ");
        format!("  {:<22}{form}\n", operation.name)
    };
    operations().map(line).collect()
}
