//! One matrix product of a layer, forward or backward.

use cubecl::client::Client;
use frontier_kernels::gemm::launch::{Arguments, Extras, check, launch};
use frontier_kernels::gemm::tile::Role;
use frontier_kernels::gemm::{Epilogue, Layout, Plan, Shape, tuned};
use frontier_kernels::matrix::instruction::Element;

use crate::ops::backends::cube::tuning::tuner;
use crate::ops::backends::cube::{Buffer, accepted};

/// A product of two contiguous matrices of one type, and what follows it.
pub(super) struct Product {
    /// What it is a part of.
    pub operation: &'static str,
    /// How they lie.
    pub layout: Layout,
    /// Rows and columns of the result, and what is summed over.
    pub size: [usize; 3],
    /// What follows it.
    pub epilogue: Epilogue,
    /// The operand whose sums over k are wanted.
    pub sums_of: Option<Role>,
}

/// A product that the kernels take.
pub(super) struct Ready {
    client: Client,
    plan: Plan,
    shape: Shape,
    parts: usize,
    arguments: Arguments,
}

impl Product {
    /// `out = epilogue(a b)`, of a's type or f32, with `sums` for [`Self::sums_of`]; nothing is computed yet.
    pub fn prepare(
        self,
        [a, b, out]: [&Buffer; 3],
        extras: Extras,
        sums: Option<&Buffer>,
    ) -> Option<Ready> {
        let ([m, n, k], operation) = (self.size, self.operation);
        let element: Element = a.element(operation)?;
        let paired = self.epilogue.activation.paired();
        let shape = Shape::contiguous(self.layout, 1, m, n, k, paired);
        let types = (element, out.element(operation)?);
        let plan = Plan::choose(a.target(), types, self.layout, &shape, self.epilogue);
        let plan = match self.sums_of {
            Some(role) => plan.and_then(|plan| plan.with_sums_of(role)),
            None => plan,
        };
        let plan = accepted(operation, plan)?;
        let parts = plan.parts(&shape);
        let plan = if parts > 1 { plan.split() } else { plan };
        let arguments = Arguments {
            a: a.argument(),
            b: b.argument(),
            out: out.argument(),
            extras,
            sums: sums.map(Buffer::argument),
        };
        let client = a.client().clone();
        let checked = check(&client, &plan, &shape, parts, &arguments);
        accepted(operation, checked)?;
        Some(Ready {
            client,
            plan,
            shape,
            parts,
            arguments,
        })
    }
}

impl Ready {
    /// Computes it.
    pub fn launch(self) {
        let Self {
            client,
            plan,
            shape,
            parts,
            arguments,
        } = self;
        let done = match tuner() {
            Some(tuner) => tuned::launch(tuner, &client, &plan, &shape, parts, arguments),
            None => launch(&client, &plan, &shape, parts, arguments),
        };
        if let Err(error) = done {
            unreachable!("what was checked is refused: {error}");
        }
    }
}
