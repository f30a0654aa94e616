//! Launches of the plan that is fastest on the device.

use cubecl_core::client::Client;

use super::launch::{Arguments, Extras, check, launch as launch_plan};
use super::plan::Plan;
use super::problem::Shape;
use crate::argument::{again, scratch};
use crate::error::Result;
use crate::matrix::instruction::Element;
use crate::tune::{Question, Tuner};

/// As [`launch`](super::launch::launch), by the plan among [`Plan::candidates`] that `tuner` knows, or finds, to be the
/// fastest: the results are the same, bit for bit.
///
/// While candidates are timed, they write to memory of their own, as much as the results take.
///
/// # Errors
/// Those of [`launch`](super::launch::launch).
pub fn launch(
    tuner: &Tuner,
    client: &Client,
    plan: &Plan,
    shape: &Shape,
    parts: usize,
    arguments: Arguments,
) -> Result<()> {
    check(client, plan, shape, parts, &arguments)?;
    let mut candidates = plan.candidates(shape);
    candidates.retain(|candidate| check(client, candidate, shape, parts, &arguments).is_ok());
    let chosen = if shape.batches * shape.m * shape.n == 0 {
        0
    } else {
        let question = question(&candidates, shape, parts);
        tuner.fastest(client, &question, || {
            let trial = arguments.on_scratch(client, plan);
            let (client, shape, plans) = (client.clone(), *shape, candidates.clone());
            move |number: usize| launch_plan(&client, &plans[number], &shape, parts, trial.again())
        })
    };
    launch_plan(client, &candidates[chosen], shape, parts, arguments)
}

/// What is asked of a tuner.
fn question(candidates: &[Plan], shape: &Shape, parts: usize) -> Question {
    let plan = &candidates[0];
    let Shape {
        batches, m, n, k, ..
    } = *shape;
    let summed = plan
        .sums_of
        .map_or(String::new(), |role| format!(" and sums of {role:?}"));
    Question {
        what: format!(
            "gemm {:?} of {:?} to {:?} by {} x {} x {} and accesses of {:?}, K in {parts} parts, {:?}{summed}",
            plan.layout,
            plan.element,
            plan.output,
            plan.instruction.m,
            plan.instruction.n,
            plan.tiling.depth,
            plan.width,
            plan.epilogue,
        ),
        sizes: vec![batches, m, n, k],
        candidates: candidates.iter().map(Plan::division).collect(),
    }
}

impl Plan {
    /// How C is divided, in words.
    fn division(&self) -> String {
        let ((a, b), (c, d)) = (self.tiling.waves, self.tiling.tiles);
        format!("{a} x {b} waves of {c} x {d} tiles")
    }
}

impl Arguments {
    /// The same arguments once more.
    fn again(&self) -> Self {
        let Extras {
            bias,
            other,
            saved,
            scale,
        } = &self.extras;
        Self {
            a: again(&self.a),
            b: again(&self.b),
            out: again(&self.out),
            extras: Extras {
                bias: bias.as_ref().map(again),
                other: other.as_ref().map(again),
                saved: saved.as_ref().map(again),
                scale: *scale,
            },
            sums: self.sums.as_ref().map(again),
        }
    }

    /// The same arguments, with results that nobody reads: a launch may run many times, even one that adds to C.
    fn on_scratch(&self, client: &Client, plan: &Plan) -> Self {
        let mut all = self.again();
        all.out = scratch(client, &self.out, plan.output.bytes());
        let saved = self.extras.saved.as_ref();
        all.extras.saved = saved.map(|saved| scratch(client, saved, plan.element.bytes()));
        let sums = self.sums.as_ref();
        all.sums = sums.map(|sums| scratch(client, sums, Element::F32.bytes()));
        all
    }
}
