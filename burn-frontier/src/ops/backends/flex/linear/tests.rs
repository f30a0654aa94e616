//! Against the compositions in f64.

use burn::tensor::{DType, Device, Tensor};

use super::*;
use crate::ops::backends::flex::{elements, open};
use crate::ops::linear::projection;
use crate::ops::testing::layers::{block, of_block, of_layer, summed};
use crate::ops::testing::{Place, assert_close, numbers};

/// The types that the kernels take.
const TYPES: [DType; 2] = [DType::F32, DType::BF16];

fn place(dtype: DType) -> Place {
    Place::new(&Device::flex(), dtype)
}

#[test]
fn a_linear_layer_is_the_kernels_and_equals_the_composition() {
    for dtype in TYPES {
        let reference = Place::reference(dtype);
        // Also sizes that several threads take.
        for sizes in [[1, 1, 1], [5, 12, 7], [70, 33, 130], [200, 300, 90]] {
            let [rows, input, output] = sizes;
            let x = place(dtype).constant([2, rows, input], 1);
            let weight = place(dtype).constant([input, output], 2);
            for weight in [
                weight,
                place(dtype).constant([output, input], 2).transpose(),
                place(dtype)
                    .constant([2 * input, 2 * output], 2)
                    .narrow(0, 1, input)
                    .narrow(1, 1, output),
            ] {
                let taken = linear(&x, &weight, None, (&LinearSums::default(), false));
                let (y, _) = taken.expect("the kernels refused");
                let [x, weight] = [x.clone().reshape([2 * rows, input]), weight];
                let expected = x.cast(DType::F64).matmul(weight.cast(DType::F64));
                assert_close("a view", dtype, &numbers(y), &numbers(expected));
            }
            for transposed in [false, true] {
                let own = of_layer(sizes, transposed, &place(dtype));
                let expected = of_layer(sizes, transposed, &reference);
                for (i, (own, expected)) in own.iter().zip(&expected).enumerate() {
                    let what = format!("result {i} of {sizes:?}, transposed {transposed}");
                    assert_close(&what, dtype, own, expected);
                }
            }
        }
    }
}

#[test]
fn a_feed_forward_block_is_the_kernels_and_equals_its_layers() {
    use Activation::{Gelu, Swiglu};
    for dtype in TYPES {
        let reference = Place::reference(dtype);
        for (sizes, activation, bias) in [
            ([5, 12, 20], Gelu, true),
            ([67, 36, 75], Gelu, false),
            ([150, 130, 270], Gelu, true),
            ([5, 12, 20], Swiglu, false),
            ([67, 36, 75], Swiglu, true),
        ] {
            let x = place(dtype).constant([2, sizes[0], sizes[1]], 1);
            let layers = block(sizes, activation, bias, &place(dtype)).without_autodiff();
            let taken = feed_forward(&x, &layers, &Default::default()).is_some();
            assert!(taken, "the kernels refused");
            let own = of_block(sizes, activation, bias, &place(dtype));
            let expected = of_block(sizes, activation, bias, &reference);
            for (i, (own, expected)) in own.iter().zip(&expected).enumerate() {
                let what = format!("result {i} of {sizes:?}, {activation:?}");
                assert_close(&what, dtype, own, expected);
            }
        }
    }
}

#[test]
fn gradients_of_micro_batches_are_added_where_their_sums_lie() {
    for (dtype, transposed) in TYPES
        .iter()
        .flat_map(|&dtype| [(dtype, false), (dtype, true)])
    {
        let [weight, bias] = [0, 1].map(|_| GradientSum::default());
        let sums = LinearSums {
            weight: Some(weight.clone()),
            bias: Some(bias.clone()),
        };
        let left = summed(&sums, transposed, &place(dtype));
        let nothing = |of: &[f64]| of.iter().all(|&x| x == 0.0);
        assert!(nothing(&left[0]), "also in the graph");
        assert_eq!(nothing(&left[1]), !transposed, "bias {transposed}");
        let reference = Place::reference(dtype);
        let expected = summed(&LinearSums::default(), transposed, &reference);
        // Behind a projection, a bias is none of the operation's.
        let found = [Some(weight), Some(bias).filter(|_| !transposed)];
        for (sum, expected) in found.into_iter().flatten().zip(&expected) {
            let own = numbers(sum.take().expect("a sum"));
            // Closer than the parameters' type could be.
            assert_close("a sum", DType::F32, &own, expected);
        }
    }
}

#[test]
fn a_sum_is_added_to_in_place_unless_it_does_not_fit() {
    let table = place(DType::F32).leaf([33, 70], 2);
    let sum = GradientSum::default();
    let backward = || {
        let x = place(DType::F32).constant([1, 5, 70], 1).autodiff();
        let y = projection(x, table.clone(), Some(&sum)).unwrap();
        let gradients = y.sum().backward();
        table.grad(&gradients)
    };
    let address = || {
        let taken = sum.take().expect("a sum");
        let address = elements(&open(&taken).unwrap()).as_ptr();
        sum.put(taken);
        address
    };
    assert!(backward().is_none());
    let before = address();
    assert!(backward().is_none());
    assert_eq!(address(), before, "it was copied");
    sum.put(Tensor::zeros([3], &Device::flex()));
    assert!(backward().is_some(), "lost");
    assert_eq!(sum.take().map(numbers), Some(vec![0.0; 3]));
}
