//! One matrix product of a layer, forward or backward.

use frontier_kernels::gemm::launch::{Arguments, Extras, launch};
use frontier_kernels::gemm::tile::Role;
use frontier_kernels::gemm::{Epilogue, Layout, Plan, Shape, tuned};
use frontier_kernels::matrix::instruction::Element;

use crate::ops::backends::cube::tuning::tuner;
use crate::ops::backends::cube::{Buffer, accepted};

/// A product of two contiguous matrices of one type, and what follows it.
pub(super) struct Product {
    /// How they lie.
    pub layout: Layout,
    /// Rows and columns of the result, and what is summed over.
    pub size: [usize; 3],
    /// What follows it.
    pub epilogue: Epilogue,
    /// The operand whose sums over k are wanted.
    pub sums_of: Option<Role>,
}

impl Product {
    /// `out = epilogue(a b)`, of a's type or f32, with `sums` for [`Self::sums_of`].
    pub fn launch(
        self,
        [a, b, out]: [&Buffer; 3],
        extras: Extras,
        sums: Option<&Buffer>,
    ) -> Option<()> {
        let [m, n, k] = self.size;
        let element: Element = a.element()?;
        let paired = self.epilogue.activation.paired();
        let shape = Shape::contiguous(self.layout, 1, m, n, k, paired);
        let plan = Plan::choose(
            a.target(),
            (element, out.element()?),
            self.layout,
            &shape,
            self.epilogue,
        );
        let plan = accepted(match self.sums_of {
            Some(role) => plan.and_then(|plan| plan.with_sums_of(role)),
            None => plan,
        })?;
        let parts = plan.parts(&shape);
        let plan = if parts > 1 { plan.split() } else { plan };
        let arguments = Arguments {
            a: a.argument(),
            b: b.argument(),
            out: out.argument(),
            extras,
            sums: sums.map(Buffer::argument),
        };
        let client = a.client();
        accepted(match tuner() {
            Some(tuner) => tuned::launch(tuner, client, &plan, &shape, parts, arguments),
            None => launch(client, &plan, &shape, parts, arguments),
        })
    }
}
