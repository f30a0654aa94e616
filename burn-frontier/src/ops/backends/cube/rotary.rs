//! Rotary position embedding by frontier-kernels: one pass over queries or keys, in whatever strides they lie.

use burn::tensor::Tensor;
use frontier_kernels::rotary::launch::{Buffers, rotate};
use frontier_kernels::rotary::{Plan, Shape, Strides};

use super::{Buffer, accepted, taken};
use crate::ops::problem::rotary::RotaryTable;

const OPERATION: &str = "rotary";

/// x `[batch, heads, seq, head_dim]`, rotated by a table of as many positions, or back.
pub(super) fn rotary(x: &Tensor<4>, table: &RotaryTable, inverse: bool) -> Option<Tensor<4>> {
    let x = Buffer::with_rows(x)?;
    let [batch, heads, seq, head_dim] = x.sizes(OPERATION)?.map(|n| n as usize);
    let y = x.beside(x.shape(), x.dtype());
    let (cos, sin) = (Buffer::of(&table.cos)?, Buffer::of(&table.sin)?);
    let shape = Shape {
        batch,
        heads,
        seq,
        head_dim,
    };
    let strides = [strides(&x)?, strides(&y)?];
    let plan = Plan::choose(x.target(), x.element(OPERATION)?, shape, strides, inverse);
    let buffers = Buffers {
        x: x.argument(),
        cos: cos.argument(),
        sin: sin.argument(),
        y: y.argument(),
    };
    let done = plan.and_then(|plan| rotate(x.client(), &plan, buffers, shape, strides));
    accepted(OPERATION, done)?;
    taken(OPERATION);
    Some(y.tensor())
}

fn strides(x: &Buffer) -> Option<Strides> {
    let [batch, head, token, _] = x.strides(OPERATION)?.map(|stride| stride as usize);
    Some(Strides { batch, head, token })
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    use crate::ops::gradient::seed;
    use crate::ops::rotary as operation;
    use crate::ops::testing::{Place, assert_close, gpu, numbers, types};

    const SEQ: usize = 9;

    /// Keys and values lie behind the queries of a token, as the model has them.
    fn keys(qkv: &Tensor<3>, heads: usize, head_dim: usize) -> Tensor<4> {
        let [batch, seq, _] = qkv.dims();
        qkv.clone()
            .narrow(2, heads * head_dim, heads * head_dim)
            .reshape([batch, seq, heads, head_dim])
            .swap_dims(1, 2)
    }

    fn table(head_dim: usize, place: &Place) -> RotaryTable {
        let like = place.constant([1], 1);
        RotaryTable::new(SEQ + 3, head_dim, 10_000.0, (&like.device(), like.dtype()))
    }

    fn results(heads: usize, head_dim: usize, place: &Place) -> [Vec<f64>; 2] {
        let qkv = place.leaf([2, SEQ, 3 * heads * head_dim], 1);
        let y = operation::rotary(keys(&qkv, heads, head_dim), &table(head_dim, place)).unwrap();
        let g = place.constant([2, heads, SEQ, head_dim], 2);
        let gradients = seed(y.clone(), g).backward();
        [numbers(y), numbers(qkv.grad(&gradients).unwrap())]
    }

    #[test]
    fn rotary_positions_on_a_gpu_are_the_kernel_and_equal_the_composition() {
        let Some(gpu) = gpu() else { return };
        for dtype in types(&gpu) {
            let (place, reference) = (Place::new(&gpu, dtype), Place::reference(dtype));
            for (heads, head_dim) in [(2, 16), (3, 6), (1, 2)] {
                let x = place.constant([2, heads, SEQ, head_dim], 1);
                let exact = RotaryTable::new(SEQ, head_dim, 1e4, (&gpu, dtype));
                assert!(rotary(&x, &exact, false).is_some(), "the kernel refused");
                let own = results(heads, head_dim, &place);
                let expected = results(heads, head_dim, &reference);
                for (own, expected) in own.iter().zip(&expected) {
                    assert_close("rotary", dtype, own, expected);
                }
            }
        }
    }
}
