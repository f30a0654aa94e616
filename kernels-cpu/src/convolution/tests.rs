use super::*;

/// A sequence of numbers that look random, from its seed.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        // Knuth's MMIX generator; its high bits are the better ones.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn within(&mut self, least: usize, most: usize) -> usize {
        least + self.next() as usize % (most - least + 1)
    }

    fn values(&mut self, count: usize) -> Vec<f32> {
        let value = |_| self.next() as f32 / (1_u64 << 30) as f32 - 1.0;
        (0..count).map(value).collect()
    }
}

fn random(numbers: &mut Numbers) -> Option<Convolution> {
    let groups = [1, 1, 1, 2, 3, 5][numbers.within(0, 5)];
    // A group an input channel is every other one of these.
    let most = if groups > 1 && numbers.within(0, 1) == 0 {
        1
    } else {
        40
    };
    let dimensions = numbers.within(1, 3);
    let mut of = |least: usize, most: usize, otherwise: usize| {
        [0, 1, 2].map(|i| match i + dimensions {
            3.. => numbers.within(least, most),
            _ => otherwise,
        })
    };
    let (input, kernel, stride) = (of(1, 9, 1), of(1, 4, 1), of(1, 3, 1));
    let (dilation, before, behind) = (of(1, 3, 1), of(0, 5, 0), of(0, 5, 0));
    let problem = Problem {
        batch: numbers.within(0, 3),
        inputs: groups * numbers.within(1, most),
        outputs: groups * numbers.within(1, 40),
        groups,
        input,
        kernel,
        stride,
        padding: [0, 1, 2].map(|i| [before[i], behind[i]]),
        dilation,
    };
    Convolution::new(problem).ok()
}

fn close(own: &[f32], expected: &[f64], terms: usize, what: &str) {
    assert_eq!(own.len(), expected.len());
    let bound = 1e-6 * (terms as f64 + 1.0);
    for (i, (&own, expected)) in own.iter().zip(expected).enumerate() {
        let error = (f64::from(own) - expected).abs();
        assert!(error <= bound, "{what}, place {i}: {own} for {expected}");
    }
}

/// All three directions against their definition.
fn agrees(of: &Convolution, numbers: &mut Numbers, what: &str) {
    let p = *of.problem();
    let [inputs, taps] = [p.inputs / p.groups, p.kernel.iter().product()];
    let pixels: [usize; 2] = [p.input.iter().product(), of.output().iter().product()];
    let x = numbers.values(p.batch * p.inputs * pixels[0]);
    let dy = numbers.values(p.batch * p.outputs * pixels[1]);
    let weight = numbers.values(p.outputs * inputs * taps);
    let biases = [numbers.values(p.outputs), numbers.values(p.inputs)];
    for biased in [false, true] {
        let [out, back] = [0, 1].map(|i| biased.then_some(&biases[i][..]));
        let mut y = vec![f32::NAN; dy.len()];
        of.forward(&x, &weight, out, &mut y);
        let expected = reference::forward(of, &x, &weight, out);
        close(&y, &expected, inputs * taps, &format!("forward, {what}"));
        let mut dx = vec![f32::NAN; x.len()];
        of.data_gradient(&dy, &weight, back, &mut dx);
        let expected = reference::data_gradient(of, &dy, &weight, back);
        let terms = p.outputs / p.groups * taps;
        close(&dx, &expected, terms, &format!("data gradient, {what}"));
    }
    let mut dweight = vec![f32::NAN; weight.len()];
    of.weight_gradient(&x, &dy, &mut dweight);
    let expected = reference::weight_gradient(of, &x, &dy);
    let terms = p.batch * pixels[1];
    close(&dweight, &expected, terms, &format!("weights, {what}"));
    let mut dbias = vec![f32::NAN; p.outputs];
    of.bias_gradient(&dy, &mut dbias);
    for (channel, sum) in dbias.iter().enumerate() {
        let images =
            (0..p.batch).map(|n| &dy[(n * p.outputs + channel) * pixels[1]..][..pixels[1]]);
        let expected: f64 = images.flatten().map(|&x| f64::from(x)).sum();
        close(&[*sum], &[expected], terms, &format!("bias, {what}"));
    }
}

#[test]
fn random_convolutions_equal_their_definition() {
    for seed in 0..400 {
        let mut numbers = Numbers(seed);
        if let Some(of) = random(&mut numbers) {
            let what = format!("seed {seed}, {:?}", of.problem());
            agrees(&of, &mut numbers, &what);
        }
    }
}

/// Images that are cut into pieces: lines, planes, images.
fn large() -> [Convolution; 10] {
    let of = |batch, channels: [usize; 3], input, kernel, stride, padding, dilation| {
        let [inputs, outputs, groups] = channels;
        let problem = Problem {
            batch,
            inputs,
            outputs,
            groups,
            input,
            kernel,
            stride,
            padding,
            dilation,
        };
        Convolution::new(problem).unwrap()
    };
    let one = [[0, 0], [1, 1], [1, 1]];
    let [plain, two] = [[1; 3], [1, 2, 2]];
    [
        of(2, [30, 20, 1], [1, 30, 33], [1, 3, 3], plain, one, plain),
        of(2, [5, 40, 1], [1, 70, 61], [1, 4, 4], two, one, plain),
        of(
            1,
            [3, 4, 1],
            [9, 20, 21],
            [3; 3],
            [2; 3],
            [[1, 1]; 3],
            plain,
        ),
        of(3, [8, 8, 8], [1, 90, 101], [1, 3, 3], two, one, plain),
        of(3, [5, 5, 5], [1, 70, 33], [1, 3, 3], plain, one, plain),
        of(2, [6, 6, 6], [1, 41, 100], [1, 3, 5], [1, 2, 3], one, plain),
        of(
            2,
            [4, 8, 4],
            [1, 40, 37],
            [1, 3, 3],
            plain,
            [[0, 0], [3, 2], [2, 3]],
            [1, 3, 2],
        ),
        of(
            9,
            [20, 33, 1],
            [1, 4, 4],
            [1, 4, 4],
            plain,
            [[0, 0]; 3],
            plain,
        ),
        of(
            2,
            [40, 3, 1],
            [1, 1, 700],
            [1, 1, 3],
            plain,
            [[0, 0], [0, 0], [1, 1]],
            plain,
        ),
        // One tap, and enough of it for a product of matrices.
        of(
            2,
            [150, 170, 1],
            [1, 14, 13],
            [1; 3],
            plain,
            [[0, 0]; 3],
            plain,
        ),
    ]
}

#[test]
fn images_in_pieces_equal_their_definition() {
    for (seed, of) in large().iter().enumerate() {
        agrees(
            of,
            &mut Numbers(seed as u64),
            &format!("{:?}", of.problem()),
        );
    }
}

#[test]
fn what_a_kernel_does_not_meet_is_in_no_gradient_of_it() {
    // The last column is met by the last element of the kernel only; lines are no whole vectors.
    for (width, stride) in [(20, 1), (21, 2), (5, 1), (37, 3)] {
        let of = Convolution::new(Problem {
            batch: 2,
            inputs: 3,
            outputs: 3,
            groups: 3,
            input: [1, 7, width],
            kernel: [1, 1, 2],
            stride: [1, 1, stride],
            padding: [[0; 2]; 3],
            dilation: [1; 3],
        })
        .unwrap();
        let dy = vec![1.0; 2 * 3 * of.output().iter().product::<usize>()];
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = vec![1.0; 2 * 3 * 7 * width];
            let last = (of.output()[2] - 1) * stride + 1;
            for line in x.chunks_exact_mut(width) {
                line[last..].fill(bad);
            }
            let mut dweight = [0.0; 6];
            of.weight_gradient(&x, &dy, &mut dweight);
            let expected = (dy.len() / 3) as f32;
            for [first, second] in dweight.as_chunks().0 {
                assert_eq!(*first, expected, "width {width}, stride {stride}");
                assert!(!second.is_finite(), "width {width}, stride {stride}");
            }
        }
    }
}

#[test]
fn threads_change_no_bit() {
    for of in large() {
        let p = of.problem();
        let pixels: [usize; 2] = [p.input.iter().product(), of.output().iter().product()];
        let taps: usize = p.kernel.iter().product();
        let mut numbers = Numbers(7);
        let x = numbers.values(p.batch * p.inputs * pixels[0]);
        let dy = numbers.values(p.batch * p.outputs * pixels[1]);
        let weight = numbers.values(p.outputs * (p.inputs / p.groups) * taps);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.unwrap().install(|| {
                let mut all = [dy.clone(), x.clone(), weight.clone(), vec![0.0; p.outputs]];
                let [y, dx, dweight, dbias] = &mut all;
                of.forward(&x, &weight, None, y);
                of.data_gradient(&dy, &weight, None, dx);
                of.weight_gradient(&x, &dy, dweight);
                of.bias_gradient(&dy, dbias);
                all
            })
        };
        let alone = run(1);
        for threads in [2, 7] {
            assert!(alone == run(threads), "{threads} threads, {p:?}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_and_named() {
    let good = Problem {
        batch: 2,
        inputs: 6,
        outputs: 4,
        groups: 2,
        input: [1, 5, 5],
        kernel: [1, 3, 3],
        stride: [1, 2, 2],
        padding: [[0, 0], [1, 1], [0, 1]],
        dilation: [1, 1, 1],
    };
    assert_eq!(Convolution::new(good).unwrap().output(), [1, 3, 2]);
    let refused = |problem: Problem, says: &str| {
        let error = Convolution::new(problem).unwrap_err();
        assert!(error.contains(says), "{error}");
    };
    refused(Problem { groups: 0, ..good }, "0 groups");
    refused(
        Problem { groups: 3, ..good },
        "3 groups for 6 input and 4 output",
    );
    refused(
        Problem {
            stride: [1, 0, 1],
            ..good
        },
        "stride [1, 0, 1]",
    );
    refused(
        Problem {
            kernel: [1, 3, 7],
            ..good
        },
        "kernel [1, 3, 7]",
    );
    let input = [1 << 40, 1 << 30, 3];
    refused(Problem { input, ..good }, "larger than memory");
}
