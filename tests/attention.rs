//! Attention with biases, packed sequences and dropout gives its definition and published values: on the CPU in double
//! precision, and on the GPU that the graphics driver offers, where one is compiled in.

#[cfg(any(feature = "wgpu", feature = "cuda", feature = "rocm"))]
#[path = "harness/gpu.rs"]
mod gpu;
#[path = "attention/log_sum_exp.rs"]
mod log_sum_exp;
mod numbers;
#[path = "attention/self_attention.rs"]
mod self_attention;

use burn::tensor::{DType, Device, Tensor, TensorData, activation};
use burn_frontier::ops::attention::{
    AttentionOptions, Biases, Sequences, attention, attention_with_biases, evoformer_attention,
    packed_attention,
};
use burn_frontier::ops::dropout::Dropout;
use numbers::numbers;

/// Devices with the type that they compute in, and the error that it allows.
fn places() -> Vec<(Device, DType, f64)> {
    let mut places = on_gpu();
    places.insert(0, (Device::flex(), DType::F64, 1e-12));
    places
}

#[cfg(not(any(feature = "wgpu", feature = "cuda", feature = "rocm")))]
fn on_gpu() -> Vec<(Device, DType, f64)> {
    Vec::new()
}

#[cfg(any(feature = "wgpu", feature = "cuda", feature = "rocm"))]
fn on_gpu() -> Vec<(Device, DType, f64)> {
    let mut places = Vec::new();
    let Some(gpu) = gpu::gpu() else { return places };
    let gpu = gpu.of_rank(0);
    for (dtype, limit) in [(DType::F32, 3e-6), (DType::F16, 1e-3)] {
        match gpu.supports_dtype(dtype) {
            true => places.push((gpu.clone(), dtype, limit)),
            false => eprintln!("skipped for {dtype:?}: the device does not have it"),
        }
    }
    places
}

fn tensor<const D: usize>(values: Vec<f64>, shape: [usize; D], at: &(Device, DType)) -> Tensor<D> {
    let data = TensorData::new(values, shape).convert_dtype(at.1);
    Tensor::from_data(data, (&at.0, at.1))
}

fn leaf<const D: usize>(seed: u32, shape: [usize; D], at: &(Device, DType)) -> Tensor<D> {
    let values = numbers(seed, shape.iter().product());
    tensor(values, shape, at).autodiff().require_grad()
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f64> {
    x.without_autodiff().into_data().iter::<f64>().collect()
}

fn assert_close(what: &str, found: &[f64], expected: &[f64], limit: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
    let error = difference / norm(&mut expected.iter().copied()).max(1e-30);
    assert!(error <= limit, "{what}: relative error {error:e}");
}

/// A result, and the gradients of its sum weighted with numbers of seed 9.
fn with_gradients<const D: usize, const E: usize>(
    y: Tensor<D>,
    at: &(Device, DType),
    leaves: &[&Tensor<E>],
) -> Vec<Vec<f64>> {
    let weights = tensor(numbers(9, y.shape().num_elements()), y.dims(), at).autodiff();
    let gradients = (y.clone() * weights).sum().backward();
    let of = leaves.iter().map(|x| values(x.grad(&gradients).unwrap()));
    std::iter::once(values(y)).chain(of).collect()
}

fn options(causal: bool) -> AttentionOptions {
    AttentionOptions {
        causal,
        scale: 0.7,
        recompute: false,
        dropout: None,
    }
}

#[test]
fn the_evoformers_attention_and_its_five_gradients_are_the_golden_ones() {
    let golden: serde_json::Value = serde_json::from_str(include_str!(
        "../kernels/tests/goldens/evoformer_golden.json"
    ))
    .unwrap();
    let cases = golden.as_array().unwrap();
    let case = cases.iter().find(|case| case["name"] == "both").unwrap();
    let expected = |tensor: &str| -> Vec<f64> {
        let data = case["tensors"][tensor]["data"].as_array().unwrap();
        data.iter().map(|x| x.as_f64().unwrap()).collect()
    };
    let (b, n, s, h, d) = (1, 2, 18, 2, 4);
    for (device, dtype, limit) in places() {
        // The golden inputs are no halves.
        if dtype == DType::F16 {
            continue;
        }
        let at = (device, dtype);
        let [q, k, v] = [1, 2, 3].map(|seed| leaf(seed, [b, n, s, h, d], &at));
        let (mask, pair) = (leaf(4, [b, n, 1, 1, s], &at), leaf(5, [b, 1, h, s, s], &at));
        let [x, y, z] = [&q, &k, &v].map(Clone::clone);
        let o = evoformer_attention(x, y, z, Some(mask.clone()), Some(pair.clone())).unwrap();
        let weights = tensor(numbers(6, b * n * s * h * d), [b, n, s, h, d], &at).autodiff();
        let gradients = (o.clone() * weights).sum().backward();
        let gradient = |x: &Tensor<5>| values(x.grad(&gradients).unwrap());
        let found = [
            ("o", values(o)),
            ("dq", gradient(&q)),
            ("dk", gradient(&k)),
            ("dv", gradient(&v)),
            ("dbias1", gradient(&mask)),
            ("dbias2", gradient(&pair)),
        ];
        for (name, found) in found {
            let limit = limit.max(1e-9); // The goldens have as many digits.
            assert_close(&format!("{name} {dtype:?}"), &found, &expected(name), limit);
        }
    }
}

/// Plain composition, differentiated by Burn.
fn composition(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, biases: Biases) -> Tensor<4> {
    let mut scores = q.matmul(k.swap_dims(2, 3)).mul_scalar(0.7);
    let [batch, heads, seq, keys] = scores.dims();
    for bias in biases.into_iter().flatten() {
        let [n, h, s, _] = bias.dims();
        let each = bias
            .reshape([n, 1, h * s * keys])
            .repeat_dim(1, batch / n)
            .reshape([batch, h, s, keys]);
        scores = scores + each.expand([batch, heads, seq, keys]);
    }
    activation::softmax(scores, 3).matmul(v)
}

#[test]
fn biases_of_any_broadcast_and_their_gradients_equal_the_composition() {
    let shapes = [
        ([4, 1, 1, 9], [2, 2, 7, 9]),
        ([1, 2, 7, 9], [4, 1, 7, 9]),
        ([2, 1, 1, 9], [1, 1, 1, 9]),
    ];
    for (first, second) in shapes {
        let run = |f: &dyn Fn(Tensor<4>, Tensor<4>, Tensor<4>, Biases) -> Tensor<4>,
                   at: &(Device, DType)| {
            let q = leaf(1, [4, 2, 7, 8], at);
            let (k, v) = (leaf(2, [4, 2, 9, 8], at), leaf(3, [4, 2, 9, 8], at));
            let (b1, b2) = (leaf(4, first, at), leaf(5, second, at));
            let biases = [Some(b1.clone()), Some(b2.clone())];
            let y = f(q.clone(), k.clone(), v.clone(), biases);
            with_gradients(y, at, &[&q, &k, &v, &b1, &b2])
        };
        let expected = run(&composition, &(Device::flex(), DType::F64));
        for (device, dtype, limit) in places() {
            let own =
                |q, k, v, biases| attention_with_biases(q, k, v, biases, &options(false)).unwrap();
            let found = run(&own, &(device, dtype));
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                // The inputs are rounded to halves, the reference's are not.
                let limit = if dtype == DType::F16 { 4e-3 } else { limit };
                let what = format!("{i} of {first:?} {second:?} {dtype:?}");
                assert_close(&what, found, expected, limit);
            }
        }
    }
}

#[test]
fn queries_that_see_nothing_give_zeros_and_no_gradient() {
    for (device, dtype, _) in places() {
        let at = (device, dtype);
        // More queries than keys: the first two see none.
        let [q, k, v] = [(1, 6), (2, 4), (3, 4)].map(|(seed, n)| leaf(seed, [1, 2, n, 8], &at));
        let y = attention(q.clone(), k.clone(), v.clone(), &options(true)).unwrap();
        let all = with_gradients(y, &at, &[&q, &k, &v]);
        assert!(all.iter().flatten().all(|x| x.is_finite()), "{dtype:?}");
        for (row, output) in all[0].chunks(8).enumerate() {
            let blind = row % 6 < 2;
            assert_eq!(
                output.iter().all(|&x| x == 0.0),
                blind,
                "row {row} {dtype:?}"
            );
        }
        // A mask of all keys of the second entry.
        let mask = (0..10).map(|i| if i < 5 { 0.0 } else { f64::NEG_INFINITY });
        let mask = tensor(mask.collect(), [2, 1, 1, 5], &at);
        let [q, k, v] = [1, 2, 3].map(|seed| leaf(seed, [2, 1, 5, 8], &at));
        let biases = [Some(mask), None];
        let y = attention_with_biases(q.clone(), k.clone(), v.clone(), biases, &options(false))
            .unwrap();
        let all = with_gradients(y, &at, &[&q, &k, &v]);
        for x in &all {
            assert!(x[..40].iter().all(|x| x.is_finite()), "{dtype:?}");
            assert!(x[40..].iter().all(|&x| x == 0.0), "{dtype:?}");
        }
    }
}

#[test]
fn a_row_masked_by_a_large_number_is_the_mean_of_the_values_and_has_finite_gradients() {
    for (device, dtype, limit) in places() {
        // As a half, the mask is -inf.
        if dtype == DType::F16 {
            continue;
        }
        let at = (device, dtype);
        let mask = tensor(vec![-1e9; 5], [1, 1, 1, 5], &at);
        let [q, k, v] = [1, 2, 3].map(|seed| leaf(seed, [1, 1, 5, 8], &at));
        // Scores that are lost beside the mask in f32.
        let q_small = q.clone().mul_scalar(1e-20);
        let biases = [Some(mask), None];
        let y =
            attention_with_biases(q_small, k.clone(), v.clone(), biases, &options(false)).unwrap();
        let mean = values(v.clone().mean_dim(2)).repeat(5);
        let all = with_gradients(y, &at, &[&q, &k, &v]);
        assert_close(&format!("{dtype:?}"), &all[0], &mean, limit.max(1e-7));
        assert!(all.iter().flatten().all(|x| x.is_finite()), "{dtype:?}");
    }
}

/// [`places`], and the CPU in single precision, which has operations of its own.
fn places_and_single() -> Vec<(Device, DType, f64)> {
    let mut places = places();
    places.push((Device::flex(), DType::F32, 1e-6));
    places
}

#[test]
fn causal_attention_is_aligned_at_the_last_query_and_the_last_key() {
    // Scores of zero: each query takes the mean of the values 1, 2, … that it sees. With the gradients of the values.
    type Fact = (usize, &'static [f64], &'static [f64]);
    let facts: [Fact; 2] = [
        (5, &[2.5, 3.0], &[0.45, 0.45, 0.45, 0.45, 0.2]),
        (2, &[0.0, 0.0, 0.0, 1.0, 1.5], &[1.5, 0.5]),
    ];
    for (device, dtype, limit) in places_and_single() {
        let at = (device, dtype);
        for (keys, expected, expected_gradient) in facts {
            let queries = expected.len();
            for packed in [false, true] {
                let what = format!("{queries} queries, {keys} keys, {dtype:?}, packed {packed}");
                let q = tensor(vec![0.0; queries * 8], [1, 1, queries, 8], &at);
                let k = leaf(2, [1, 1, keys, 8], &at);
                let v = (0..keys * 8).map(|i| (i / 8 + 1) as f64).collect();
                let v = tensor(v, [1, 1, keys, 8], &at).autodiff().require_grad();
                let y = if packed {
                    let sequences = Sequences {
                        queries: vec![0, queries as u32],
                        keys: vec![0, keys as u32],
                    };
                    packed_attention(q, k.clone(), v.clone(), &sequences, &options(true))
                } else {
                    attention(q, k.clone(), v.clone(), &options(true))
                }
                .unwrap();
                let gradients = y.clone().sum().backward();
                let found = values(y);
                let gradient = values(v.grad(&gradients).unwrap());
                let each = |x: &[f64]| -> Vec<f64> { x.iter().flat_map(|&x| [x; 8]).collect() };
                assert_close(&what, &found, &each(expected), limit);
                assert_close(&what, &gradient, &each(expected_gradient), limit);
            }
        }
    }
}

#[test]
fn a_packed_sequence_without_queries_gives_its_keys_no_gradient_and_one_without_keys_zeros() {
    let sequences = Sequences {
        queries: vec![0, 0, 256, 512],
        keys: vec![0, 503, 768, 1536],
    };
    for (device, dtype, _) in places_and_single() {
        let at = (device, dtype);
        for causal in [false, true] {
            let [q, k, v] =
                [(1, 512), (2, 1536), (3, 1536)].map(|(seed, n)| leaf(seed, [1, 1, n, 8], &at));
            let y = packed_attention(
                q.clone(),
                k.clone(),
                v.clone(),
                &sequences,
                &options(causal),
            )
            .unwrap();
            let all = with_gradients(y, &at, &[&q, &k, &v]);
            assert!(all.iter().flatten().all(|x| x.is_finite()), "{dtype:?}");
            for gradient in &all[2..] {
                let (unseen, seen) = gradient.split_at(503 * 8);
                assert!(unseen.iter().all(|&x| x == 0.0), "{dtype:?}");
                assert!(seen.iter().any(|&x| x != 0.0), "{dtype:?}");
            }
        }
        let [q, k, v] = [(1, 3), (2, 5), (3, 5)].map(|(seed, n)| leaf(seed, [1, 1, n, 8], &at));
        let sequences = Sequences {
            queries: vec![0, 3, 3],
            keys: vec![0, 0, 5],
        };
        let y = packed_attention(q.clone(), k, v, &sequences, &options(true)).unwrap();
        let all = with_gradients(y, &at, &[&q]);
        assert!(all.iter().flatten().all(|&x| x == 0.0), "{dtype:?}");
    }
}

fn site(samples: Vec<u64>, len: [usize; 3]) -> Dropout {
    Dropout {
        probability: 0.3,
        seed: 4,
        step: 2,
        name: "probabilities".into(),
        samples,
        global: 4,
        start: [2, 0, 0],
        len,
    }
}

#[test]
fn dropout_is_the_same_on_every_device_and_in_both_directions() {
    let run = |at: &(Device, DType)| {
        let q = leaf(1, [2, 2, 10, 8], at);
        let (k, v) = (leaf(2, [2, 1, 10, 8], at), leaf(3, [2, 1, 10, 8], at));
        let options = AttentionOptions {
            dropout: Some(site(vec![3, 7], [2, 10, 10])),
            ..options(true)
        };
        let y = attention(q.clone(), k.clone(), v.clone(), &options).unwrap();
        with_gradients(y, at, &[&q, &k, &v])
    };
    let expected = run(&(Device::flex(), DType::F64));
    for (device, dtype, limit) in places() {
        let limit = if dtype == DType::F16 { 4e-3 } else { limit };
        for (found, expected) in run(&(device, dtype)).iter().zip(&expected) {
            assert_close(&format!("{dtype:?}"), found, expected, limit);
        }
    }
}

#[test]
fn packed_sequences_are_attended_each_by_itself() {
    let sequences = Sequences {
        queries: vec![0, 3, 3, 10],
        keys: vec![0, 5, 6, 13],
    };
    let with_dropout = AttentionOptions {
        dropout: Some(site(vec![1, 2, 5], [2, 7, 7])),
        ..options(true)
    };
    for options in [options(true), with_dropout] {
        let leaves = |at: &(Device, DType)| {
            [(1, 2, 10), (2, 1, 13), (3, 1, 13)].map(|(seed, h, n)| leaf(seed, [1, h, n, 8], at))
        };
        let reference = (Device::flex(), DType::F64);
        let [q, k, v] = leaves(&reference);
        let part = |x: &Tensor<4>, from, n| x.clone().narrow(2, from, n);
        let one = |i: usize, [q0, qn]: [usize; 2], [k0, kn]: [usize; 2]| {
            let mut options = options.clone();
            if let Some(dropout) = &mut options.dropout {
                dropout.samples = vec![dropout.samples[i]];
                dropout.len = [2, qn, kn];
            }
            attention(
                part(&q, q0, qn),
                part(&k, k0, kn),
                part(&v, k0, kn),
                &options,
            )
            .unwrap()
        };
        let y = Tensor::cat(vec![one(0, [0, 3], [0, 5]), one(2, [3, 7], [6, 7])], 2);
        let expected = with_gradients(y, &reference, &[&q, &k, &v]);
        for (device, dtype, limit) in places() {
            let at = (device, dtype);
            let [q, k, v] = leaves(&at);
            let y =
                packed_attention(q.clone(), k.clone(), v.clone(), &sequences, &options).unwrap();
            let found = with_gradients(y, &at, &[&q, &k, &v]);
            let limit = if dtype == DType::F16 { 4e-3 } else { limit };
            for (found, expected) in found.iter().zip(&expected) {
                assert_close(&format!("{dtype:?}"), found, expected, limit);
            }
        }
    }
}

#[test]
fn gradients_are_the_same_under_gradient_checkpointing() {
    for (device, dtype, _) in places() {
        let run = |tracked: Device| {
            let x = |seed| {
                let plain = tensor(numbers(seed, 160), [1, 2, 10, 8], &(device.clone(), dtype));
                let data = plain.into_data();
                Tensor::<4>::from_data(data, (&tracked, dtype)).require_grad()
            };
            let [q, k, v, bias] = [x(1), x(2), x(3), x(4)];
            // Elementwise operations around it are what the strategy computes again.
            let pair = bias.clone().narrow(3, 0, 1).exp() * numbers_like(&bias, 10);
            let y = attention_with_biases(
                q.clone().exp(),
                k.clone().tanh(),
                v.clone().exp(),
                [Some(pair), None],
                &options(true),
            )
            .unwrap();
            let gradients = y.tanh().sum().backward();
            [q, k, v, bias].map(|x| values(x.grad(&gradients).unwrap()))
        };
        let plain = run(device.clone().autodiff());
        let again = run(device.clone().autodiff().gradient_checkpointing());
        assert_eq!(plain, again, "{dtype:?}");
    }
}

/// Constants `[1, 2, 10, keys]` beside `like`.
fn numbers_like(like: &Tensor<4>, keys: usize) -> Tensor<4> {
    let data = TensorData::new(numbers(7, 20 * keys), [1, 2, 10, keys]);
    Tensor::from_data(
        data.convert_dtype(like.dtype()),
        (&like.device(), like.dtype()),
    )
}
