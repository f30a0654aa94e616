//! Launches of the plan that is fastest on the device.

use cubecl_core::client::Client;

use super::launch::{Buffers, check, launch as launch_plan};
use super::plan::Plan;
use super::problem::Problem;
use crate::argument::{again, scratch};
use crate::error::Result;
use crate::matrix::instruction::Element;
use crate::tune::{Question, Tuner};

/// As [`launch`](super::launch()), by the plan among [`Plan::candidates`] that `tuner` knows, or finds, to be the fastest: the
/// results are the same, bit for bit.
///
/// While candidates are timed, they write to memory of their own, as much as the results take.
///
/// # Errors
/// Those of [`launch`](super::launch()).
pub fn launch(
    tuner: &Tuner,
    client: &Client,
    plan: &Plan,
    problem: &Problem,
    buffers: Buffers,
) -> Result<()> {
    check(client, plan, problem, &buffers)?;
    if problem.sizes().contains(&0) {
        return launch_plan(client, plan, problem, buffers);
    }
    let candidates = plan.candidates();
    let question = Question {
        what: plan.name(),
        sizes: problem.sizes(),
        candidates: candidates
            .iter()
            .map(|plan| format!("{} waves", plan.waves))
            .collect(),
    };
    let chosen = tuner.fastest(client, &question, || {
        let trial = Buffers {
            o: scratch(client, &buffers.o, plan.element.bytes()),
            lse: scratch(client, &buffers.lse, Element::F32.bytes()),
            ..buffers.again()
        };
        let (client, problem, plans) = (client.clone(), *problem, candidates.clone());
        move |number: usize| launch_plan(&client, &plans[number], &problem, trial.again())
    });
    launch_plan(client, &candidates[chosen], problem, buffers)
}

impl Problem {
    /// The sizes that timing depends on.
    pub(crate) fn sizes(&self) -> Vec<usize> {
        let all = [
            self.batch,
            self.heads,
            self.kv_heads,
            self.queries,
            self.keys,
        ];
        all.map(|size| size as usize).to_vec()
    }
}

impl Buffers {
    /// The same buffers once more.
    fn again(&self) -> Self {
        Self {
            q: again(&self.q),
            k: again(&self.k),
            v: again(&self.v),
            o: again(&self.o),
            lse: again(&self.lse),
            bias: self.bias.each_ref().map(|bias| bias.as_ref().map(again)),
            sequences: self.sequences.clone(),
            samples: self.samples.as_ref().map(again),
        }
    }
}
