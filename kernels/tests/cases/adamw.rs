//! Problems of AdamW.

use frontier_kernels::adamw::launch::Step;
use frontier_kernels::adamw::{CONTROL, Plan, Table, Tensor, reference};
use frontier_kernels::matrix::instruction::{Element, Target};

use super::{assert_close, draw};

/// What executes the kernels.
pub trait Run {
    /// The sum of squares of the gradients that count.
    fn squares(&self, case: &Case, gradient: &[f64]) -> Vec<u8>;

    /// The numbers of the next step.
    fn control(&self, case: &Case, square: Vec<u8>, control: &[f64], largest_norm: f64)
    -> Vec<f64>;

    /// Parameters, both moments and, if there are any, the weights after an update.
    fn update(
        &self,
        case: &Case,
        gradient: &[f64],
        state: &[Vec<f64>; 3],
        control: &[f64],
    ) -> Vec<Vec<f64>>;
}

pub const STEP: Step = Step {
    learning_rate: 1e-2,
    weight_decay: 0.1,
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
};
pub const LOSS_SCALE: f64 = 8.0;

/// Tensors of several tiles, of one element, of none, with gaps between them.
fn tensors(aligned: bool) -> Vec<Tensor> {
    let mut offset = 0;
    let lengths = [5000, 1, 0, 4096, 333, 9000];
    lengths
        .into_iter()
        .enumerate()
        .map(|(i, length)| {
            let tensor = Tensor {
                offset,
                length,
                decays: i % 2 == 0,
                counts: i % 3 != 1,
            };
            offset += if aligned {
                length.next_multiple_of(4)
            } else {
                length
            };
            tensor
        })
        .collect()
}

pub struct Case {
    pub plan: Plan,
    pub table: Table,
    tensors: Vec<Tensor>,
    pub count: usize,
}

impl Case {
    pub fn new(target: Target, gradient: Element, weights: Option<Element>, aligned: bool) -> Self {
        let tensors = tensors(aligned);
        let table = Table::new(&tensors).unwrap();
        assert_eq!(table.vector(), if aligned { 4 } else { 1 });
        let count = table.reach().next_multiple_of(4);
        let plan = Plan::choose(target, gradient, weights, &table, count);
        Self {
            plan,
            table,
            tensors,
            count,
        }
    }

    /// Numbers of every element that a tensor has; 0 in the gaps.
    pub fn draw(&self, element: Element, seed: u64) -> Vec<f64> {
        let drawn = draw(element, self.count, seed);
        let mut numbers = vec![0.0; self.count];
        for t in &self.tensors {
            let range = t.offset..t.offset + t.length;
            numbers[range.clone()].copy_from_slice(&drawn[range]);
        }
        numbers
    }

    /// Three steps, clipped and counted on the device, are those of the definition.
    pub fn check(&self, run: &impl Run) {
        let name = format!("{:?}", self.plan);
        let mut state = [0, 1, 2].map(|i| match i {
            0 => self.draw(Element::F32, 1),
            _ => vec![0.0; self.count],
        });
        let (mut exact, mut control) = (state.clone(), vec![0.0; CONTROL]);
        for step in 1..=3 {
            let gradient = self.draw(self.plan.gradient(), 10 + step as u64);
            let counted = self.tensors.iter().filter(|t| t.counts);
            let square: f64 = counted
                .flat_map(|t| &gradient[t.offset..t.offset + t.length])
                .map(|g| g * g)
                .sum();
            let norm = square.sqrt() / LOSS_SCALE;
            let largest = 0.5 * norm;
            control = run.control(self, run.squares(self, &gradient), &control, largest);
            assert!(
                (control[4] / norm - 1.0).abs() < 1e-6,
                "norm {} for {norm}",
                control[4]
            );

            let after = run.update(self, &gradient, &state, &control);
            let factor = 0.5 / LOSS_SCALE;
            for t in &self.tensors {
                for i in t.offset..t.offset + t.length {
                    let old = [exact[0][i], exact[1][i], exact[2][i]];
                    let new = reference::adamw(old, gradient[i] * factor, t.decays, step, &STEP);
                    (exact[0][i], exact[1][i], exact[2][i]) = (new[0], new[1], new[2]);
                }
            }
            for (i, what) in ["parameters", "first moments", "second moments"]
                .iter()
                .enumerate()
            {
                assert_close(
                    &format!("{what} of step {step}, {name}"),
                    Element::F32,
                    &after[i],
                    &exact[i],
                );
                state[i].clone_from(&after[i]);
            }
            if let Some(element) = self.plan.weights() {
                for t in &self.tensors {
                    let range = t.offset..t.offset + t.length;
                    assert_close(
                        "weights",
                        element,
                        &after[3][range.clone()],
                        &exact[0][range],
                    );
                }
            }
        }
    }

    /// A step whose gradient overflowed changes nothing and is not counted.
    pub fn check_skip(&self, run: &impl Run) {
        let before = [0.25, 0.0, 0.19, 0.002, 1.0];
        for fault in [f64::INFINITY, f64::NAN] {
            let mut gradient = self.draw(self.plan.gradient(), 1);
            gradient[77] = fault;
            let control = run.control(self, run.squares(self, &gradient), &before, 1.0);
            assert_eq!(control[1], 1.0);
            let f32 = |x: f64| f64::from(x as f32);
            assert_eq!(control[2..4], [f32(0.19), f32(0.002)]);
            let state = [1, 2, 3].map(|seed| self.draw(Element::F32, seed));
            let after = run.update(self, &gradient, &state, &control);
            assert_eq!(after[..3], state);
        }
    }
}
