//! Log-sum-exps and their gradients, and results over parts of the keys as one.

use burn::tensor::{DType, Device, Tensor};
use burn_frontier::ops::attention::{attention_with_log_sum_exp, merge_attention};

use super::{assert_close, leaf, numbers, options, places_and_single, tensor, values};

type Attended = (Tensor<4>, Tensor<3>);

/// The values, and the gradients of the sum of both, weighted with numbers.
fn with_gradients(
    (output, sums): Attended,
    at: &(Device, DType),
    leaves: &[&Tensor<4>],
) -> Vec<Vec<f64>> {
    let weights = tensor(numbers(8, output.shape().num_elements()), output.dims(), at).autodiff();
    let loss = (output.clone() * weights).sum().cast(sums.dtype());
    let of_sums = tensor(numbers(9, sums.shape().num_elements()), sums.dims(), at);
    let of_sums = of_sums.cast(sums.dtype()).autodiff();
    let gradients = (loss + (sums.clone() * of_sums).sum()).backward();
    let of = leaves.iter().map(|x| values(x.grad(&gradients).unwrap()));
    [values(output), values(sums)]
        .into_iter()
        .chain(of)
        .collect()
}

fn compare(found: &[Vec<f64>], expected: &[Vec<f64>], what: &str, (dtype, limit): (DType, f64)) {
    // The inputs are rounded to halves, the reference's are not.
    let limit = if dtype == DType::F16 { 4e-3 } else { limit };
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_close(&format!("{i} of {what}, {dtype:?}"), found, expected, limit);
    }
}

/// Sizes `[batch, heads, queries, 8]` and `[batch, kv_heads, keys, 8]`.
const SIZES: [([usize; 4], [usize; 4]); 3] = [
    ([2, 4, 7, 8], [2, 2, 10, 8]),
    ([1, 1, 40, 8], [1, 1, 140, 8]),
    ([1, 2, 1, 8], [1, 1, 2, 8]),
];

#[test]
fn log_sum_exps_and_their_gradients_are_those_of_the_scores() {
    for (queries, keys) in SIZES {
        let leaves =
            |at: &(Device, DType)| [leaf(1, queries, at), leaf(2, keys, at), leaf(3, keys, at)];
        let reference = (Device::flex(), DType::F64);
        let [q, k, v] = leaves(&reference);
        let repeated = |x: &Tensor<4>| {
            let [batch, kv_heads, keys, d] = x.dims();
            let group = queries[1] / kv_heads;
            let x = x
                .clone()
                .reshape([batch, kv_heads, 1, keys * d])
                .repeat_dim(2, group);
            x.reshape([batch, queries[1], keys, d])
        };
        let scores = q
            .clone()
            .matmul(repeated(&k).swap_dims(2, 3))
            .mul_scalar(0.7);
        let sums = scores.exp().sum_dim(3).log();
        let p = (q
            .clone()
            .matmul(repeated(&k).swap_dims(2, 3))
            .mul_scalar(0.7)
            - sums.clone())
        .exp();
        let expected = (p.matmul(repeated(&v)), sums.squeeze_dim(3));
        let expected = with_gradients(expected, &reference, &[&q, &k, &v]);
        for (device, dtype, limit) in places_and_single() {
            let at = (device, dtype);
            let [q, k, v] = leaves(&at);
            let own = attention_with_log_sum_exp(q.clone(), k.clone(), v.clone(), &options(false));
            let found = with_gradients(own.unwrap(), &at, &[&q, &k, &v]);
            compare(&found, &expected, &format!("{queries:?}"), (dtype, limit));
        }
    }
}

#[test]
fn two_halves_of_the_keys_merged_are_the_whole() {
    for (queries, keys) in SIZES {
        // Where it is causal, as many keys before the queries as beside them: the first half is seen by all.
        let beside = [keys[0], keys[1], 2 * queries[2], keys[3]];
        for (keys, causal) in [(keys, false), (beside, true)] {
            let half = keys[2] / 2;
            for (device, dtype, limit) in places_and_single() {
                let at = (device, dtype);
                let run = |halves: bool| {
                    let [q, k, v] = [
                        leaf(1, queries, &at),
                        leaf(2, keys, &at),
                        leaf(3, keys, &at),
                    ];
                    let part = |from: usize, to: usize, causal: bool| {
                        let [k, v] = [&k, &v].map(|x| x.clone().narrow(2, from, to - from));
                        attention_with_log_sum_exp(q.clone(), k, v, &options(causal)).unwrap()
                    };
                    let all = match halves {
                        false => part(0, keys[2], causal),
                        true => {
                            let (first, second) =
                                (part(0, half, false), part(half, keys[2], causal));
                            merge_attention(first, second).unwrap()
                        }
                    };
                    with_gradients(all, &at, &[&q, &k, &v])
                };
                let (found, expected) = (run(true), run(false));
                compare(
                    &found,
                    &expected,
                    &format!("{queries:?}, causal {causal}"),
                    (dtype, limit),
                );
            }
        }
    }
}

#[test]
fn a_query_that_sees_nothing_has_a_log_sum_exp_of_minus_infinity_in_parts_and_merged() {
    for (device, dtype, _) in places_and_single() {
        let at = (device, dtype);
        let [q, k, v] = [(1, 6), (2, 4), (3, 4)].map(|(seed, n)| leaf(seed, [1, 2, n, 8], &at));
        let part =
            || attention_with_log_sum_exp(q.clone(), k.clone(), v.clone(), &options(true)).unwrap();
        for merged in [false, true] {
            let (output, sums) = match merged {
                false => part(),
                true => merge_attention(part(), part()).unwrap(),
            };
            for (row, sum) in values(sums.clone()).into_iter().enumerate() {
                assert_eq!(sum == f64::NEG_INFINITY, row % 6 < 2, "row {row} {dtype:?}");
            }
            let seen = sums.narrow(2, 2, 4).sum().cast(output.dtype());
            let gradients = (output.clone().sum() + seen).backward();
            assert!(values(output)[..16].iter().all(|&x| x == 0.0), "{dtype:?}");
            for x in [&q, &k, &v] {
                let gradient = values(x.grad(&gradients).unwrap());
                assert!(gradient.iter().all(|x| x.is_finite()), "{dtype:?}");
            }
        }
    }
}
