//! Against f64.

use super::*;

/// Numbers in [-1, 1) about an offset.
fn numbers(count: usize, seed: u32, offset: f32) -> Vec<f32> {
    let mut word = seed;
    let next = |_| {
        word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (f64::from(word) / 2f64.powi(31) - 1.0) as f32 + offset
    };
    (0..count).map(next).collect()
}

/// What `of` gives of the elements of each feature, in sample and place order.
fn features(size: Size, of: impl Fn(usize) -> f64) -> Vec<Vec<f64>> {
    let feature = |feature: usize| {
        let of = |sample| {
            let at = (sample * size.features + feature) * size.places;
            (at..at + size.places).map(&of)
        };
        (0..size.samples).flat_map(of).collect()
    };
    (0..size.features).map(feature).collect()
}

fn assert_close(what: &str, found: f64, expected: f64, scale: f64) {
    let error = (found - expected).abs() / scale.max(1e-30);
    assert!(
        error < 2e-6,
        "{what}: {found} for {expected}, off by {error:e}"
    );
}

const SIZES: [[usize; 3]; 9] = [
    [1, 1, 1],
    [9, 3, 4],
    [700, 33, 1],
    [3000, 2, 5],
    [4, 3, 50],
    [40, 17, 49],
    [3, 2, 5000],
    [2, 3, 40_000],
    [0, 3, 7],
];

fn sizes() -> impl Iterator<Item = Size> {
    SIZES.into_iter().map(|[samples, features, places]| Size {
        samples,
        features,
        places,
    })
}

#[test]
fn moments_are_those_of_f64_however_far_the_mean_is() {
    for size in sizes() {
        for offset in [0.0, -0.7, 3e3] {
            let x = numbers(size.count(), 1, offset);
            let [means, squares] = moments(size, &x);
            let features = features(size, |i| f64::from(x[i]));
            for (feature, x) in features.iter().enumerate() {
                let what = format!("{size:?}, offset {offset}, feature {feature}");
                let mean = x.iter().sum::<f64>() / x.len().max(1) as f64;
                let square = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
                assert_close(
                    &format!("mean of {what}"),
                    means[feature],
                    mean,
                    mean.abs().max(1.0),
                );
                assert_close(
                    &format!("squares of {what}"),
                    squares[feature],
                    square,
                    square.max(1e-9),
                );
            }
        }
    }
}

#[test]
fn values_sums_and_gradients_are_those_of_f64() {
    for size in sizes() {
        let (x, g) = (numbers(size.count(), 1, 2.0), numbers(size.count(), 2, 0.1));
        let draw = |seed, offset| {
            numbers(size.features, seed, offset)
                .into_iter()
                .map(f64::from)
        };
        let centers: Vec<f64> = draw(3, 2.0).map(|x| x + 1e-9).collect();
        let maps: Vec<Affine> = centers
            .iter()
            .zip(draw(4, 1.0).zip(draw(5, 0.0)))
            .map(|(&center, (scale, shift))| Affine {
                center,
                scale,
                shift,
            })
            .collect();
        let slopes: Vec<f64> = draw(6, 0.0).collect();
        let (mut y, mut dx) = (vec![f32::NAN; x.len()], vec![f32::NAN; x.len()]);
        apply(size, &x, &maps, &mut y);
        let both: Vec<_> = maps.iter().copied().zip(slopes.iter().copied()).collect();
        gradient(size, &x, &g, &both, &mut dx);
        let of = |i: usize| (i / size.places.max(1)) % size.features;
        for i in 0..x.len() {
            let Affine {
                center,
                scale,
                shift,
            } = maps[of(i)];
            let value = scale * (f64::from(x[i]) - center) + shift;
            assert_close(
                &format!("value {i} of {size:?}"),
                f64::from(y[i]),
                value,
                4.0,
            );
            let slope = value + slopes[of(i)] * f64::from(g[i]);
            assert_close(
                &format!("gradient {i} of {size:?}"),
                f64::from(dx[i]),
                slope,
                4.0,
            );
        }
        let [sums, products] = gradient_sums(size, &x, &g, &centers);
        let plain = features(size, |i| f64::from(g[i]));
        let times = features(size, |i| {
            f64::from(g[i]) * (f64::from(x[i]) - centers[of(i)])
        });
        for feature in 0..size.features {
            let what = format!("{size:?}, feature {feature}");
            let scale = plain[feature].iter().map(|x| x.abs()).sum::<f64>();
            assert_close(
                &format!("sum of {what}"),
                sums[feature],
                plain[feature].iter().sum(),
                scale,
            );
            let expected = times[feature].iter().sum();
            assert_close(
                &format!("products of {what}"),
                products[feature],
                expected,
                scale,
            );
        }
    }
}

#[test]
fn how_many_threads_there_are_changes_no_bit() {
    for size in sizes() {
        let (x, g) = (numbers(size.count(), 1, 2.0), numbers(size.count(), 2, 0.1));
        let centers = vec![2.0; size.features];
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let sums = || (moments(size, &x), gradient_sums(size, &x, &g, &centers));
            pool.build().unwrap().install(sums)
        };
        assert_eq!(run(1), run(3), "{size:?}");
    }
}
