//! Launches of the plans that are fastest on the device.

use cubecl_core::client::Client;

use super::super::problem::Problem;
use super::ends::GradientStrides;
use super::launch::{Buffers, check, launch as launch_plans};
use super::plans::Plans;
use crate::argument::{again, scratch};
use crate::error::Result;
use crate::matrix::instruction::Element;
use crate::tune::{Question, Tuner};

/// As [`launch`](super::launch()), by the plans among [`Plans::candidates`] that `tuner` knows, or finds, to be the fastest:
/// the results are the same, bit for bit.
///
/// While candidates are timed, they write to memory of their own, as much as the results and the workspace take.
///
/// # Errors
/// Those of [`launch`](super::launch()).
pub fn launch(
    tuner: &Tuner,
    client: &Client,
    plans: &Plans,
    problem: &Problem,
    gradient: &GradientStrides,
    buffers: &Buffers,
) -> Result<()> {
    check(client, plans, problem, gradient, buffers)?;
    if problem.sizes().contains(&0) {
        return launch_plans(client, plans, problem, gradient, buffers);
    }
    let candidates = plans.candidates();
    let wanted = buffers.bias_gradient.each_ref().map(Option::is_some);
    let question = Question {
        what: format!("{}, gradients of biases {wanted:?}", plans.key_value.name()),
        sizes: problem.sizes(),
        candidates: candidates.iter().map(Plans::division).collect(),
    };
    let chosen = tuner.fastest(client, &question, || {
        let trial = buffers.on_scratch(client, plans.query.element);
        let (client, problem, gradient) = (client.clone(), *problem, *gradient);
        let plans = candidates.clone();
        move |number: usize| launch_plans(&client, &plans[number], &problem, &gradient, &trial)
    });
    launch_plans(client, &candidates[chosen], problem, gradient, buffers)
}

impl Plans {
    /// What candidates differ by, in words.
    fn division(&self) -> String {
        let [kv, q] = [self.key_value, self.query]
            .map(|plan| format!("{} waves and {} rows", plan.waves, plan.rows()));
        format!("{kv} for K and V, {q} for Q")
    }
}

impl Buffers {
    /// The same inputs, with results and workspace that nobody reads.
    fn on_scratch(&self, client: &Client, element: Element) -> Self {
        let result = |like| scratch(client, like, element.bytes());
        let sums = |like| scratch(client, like, Element::F32.bytes());
        let input = |buffer: &Option<_>| buffer.as_ref().map(again);
        Self {
            q: again(&self.q),
            k: again(&self.k),
            v: again(&self.v),
            o: again(&self.o),
            o_gradient: again(&self.o_gradient),
            lse: again(&self.lse),
            bias: self.bias.each_ref().map(input),
            sequences: self.sequences.clone(),
            samples: input(&self.samples),
            statistics: sums(&self.statistics),
            key_sums: self.key_sums.as_ref().map(sums),
            q_gradient: result(&self.q_gradient),
            k_gradient: result(&self.k_gradient),
            v_gradient: result(&self.v_gradient),
            bias_gradient: self.bias_gradient.each_ref().map(|x| x.as_ref().map(sums)),
        }
    }
}
