//! Dropout of elements by frontier-kernels: no mask in memory.

use burn::tensor::{DType, Tensor};
use frontier_kernels::dropout::launch::{Buffers, add};
use frontier_kernels::dropout::{Dropout as Dropped, Plan};

use super::refusal::refused;
use super::{Buffer, accepted, number, taken};
use crate::ops::problem::dropout::Dropout;

const OPERATION: &str = "dropout";

/// `dropout(x) + residual` of x and residual `[batch, seq, hidden]`.
pub(super) fn dropout(
    x: &Tensor<3>,
    residual: Option<&Tensor<3>>,
    site: &Dropout,
) -> Option<Tensor<3>> {
    let dims = x.dims();
    let x = Buffer::of(x)?;
    let residual = match residual {
        Some(residual) => Some(Buffer::of(residual)?),
        None => None,
    };
    let site = Site::new(OPERATION, site, &x, dims)?;
    let plan = Plan::choose(
        x.target(),
        x.element(OPERATION)?,
        dims[2],
        residual.is_some(),
    );
    let y = x.beside(dims, x.dtype());
    let buffers = Buffers {
        x: x.argument(),
        residual: residual.as_ref().map(Buffer::argument),
        samples: site.samples.argument(),
        y: y.argument(),
    };
    let rows = dims[0] * dims[1];
    let done = add(x.client(), &plan, buffers, rows, &site.dropped);
    accepted(OPERATION, done)?;
    taken(OPERATION);
    Some(y.tensor())
}

/// A site of x `[batch, seq, hidden]` as kernels take it.
#[derive(Debug)]
pub(super) struct Site {
    /// Each sample's number in the global batch as two `u32`, the low half first.
    pub samples: Buffer,
    /// The rest.
    pub dropped: Dropped,
}

impl Site {
    /// `None` where it is not of all of x's rows in their length.
    pub fn new(
        operation: &'static str,
        site: &Dropout,
        x: &Buffer,
        [batch, seq, hidden]: [usize; 3],
    ) -> Option<Self> {
        if site.samples.len() != batch || site.len != [1, seq, hidden] || site.start[2] != 0 {
            return refused(operation, "dropout of a part of the rows");
        }
        let (global, first) = (site.global as u64, site.start[0] as u64);
        let of_all = |sample: u64| sample.wrapping_mul(global).wrapping_add(first);
        let halves = |n: u64| [n as u32, (n >> 32) as u32];
        let samples: Vec<u32> = site
            .samples
            .iter()
            .flat_map(|&sample| halves(of_all(sample)))
            .collect();
        Some(Self {
            samples: x.with_values(&samples, DType::U32),
            dropped: Dropped {
                key: site.words().key,
                probability: site.probability,
                tokens: number(operation, seq)?,
                first: number(operation, site.start[1])?,
            },
        })
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    use crate::ops::dropout::{add_dropout, dropout as ops_dropout};
    use crate::ops::gradient::seed;
    use crate::ops::testing::{Place, assert_close, gpu, numbers, types};

    /// The site of two samples, on a rank that has tokens 3 to 5 of the sequence, and part 2 of 4 of what else there is.
    fn site(hidden: usize) -> Dropout {
        Dropout {
            probability: 0.25,
            seed: 5,
            step: 3,
            name: "site".into(),
            samples: vec![7, (1 << 33) + 2],
            global: 4,
            start: [2, 3, 0],
            len: [1, 3, hidden],
        }
    }

    #[test]
    fn a_gpu_drops_the_elements_that_the_host_drops() {
        let Some(gpu) = gpu() else { return };
        for dtype in types(&gpu) {
            for hidden in [5, 6, 64] {
                let ones = Tensor::<3>::ones([2, 3, hidden], (&gpu, dtype));
                let own = dropout(&ones, None, &site(hidden)).expect("the kernels refused");
                let mask = site(hidden).mask(&gpu, dtype);
                assert_eq!(numbers(own), numbers(mask), "{dtype:?} {hidden}");
            }
        }
    }

    #[test]
    fn dropout_on_a_gpu_equals_the_composition() {
        let Some(gpu) = gpu() else { return };
        let results = |residual: bool, place: &Place| {
            let [x, added] = [1, 2].map(|seed| place.leaf([2, 3, 37], seed));
            let y = match residual {
                true => add_dropout(x.clone(), added.clone(), Some(&site(37))).unwrap(),
                false => ops_dropout(x.clone(), Some(&site(37))).unwrap() + added.clone(),
            };
            let gradients = seed(y.clone(), place.constant([2, 3, 37], 4)).backward();
            let gradients = [x, added].map(|x| numbers(x.grad(&gradients).unwrap()));
            [vec![numbers(y)], gradients.to_vec()].concat()
        };
        for dtype in types(&gpu) {
            for residual in [false, true] {
                let own = results(residual, &Place::new(&gpu, dtype));
                let expected = results(residual, &Place::reference(dtype));
                for (own, expected) in own.iter().zip(&expected) {
                    assert_close("dropout", dtype, own, expected);
                }
            }
        }
    }

    #[test]
    fn a_part_of_the_rows_is_left_to_the_host() {
        let Some(gpu) = gpu() else { return };
        let mut site = site(8);
        site.start[2] = 4;
        let x = Tensor::<3>::ones([2, 3, 8], &gpu);
        assert!(dropout(&x, None, &site).is_none());
        let mask = site.mask(&gpu, DType::F32);
        assert_eq!(numbers(ops_dropout(x, Some(&site)).unwrap()), numbers(mask));
    }
}
