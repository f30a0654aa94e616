//! What the tests of a kernel on the CPU harness and on a device share: problems, numbers drawn from a seed, and the
//! comparison with the reference in f64.

// Each test uses a part of them.
#![allow(dead_code, missing_docs)]

pub mod adamw;
pub mod attention;
pub mod biases;
pub mod cross_entropy;
pub mod dropout;
pub mod norm;
pub mod rotary;

use frontier_kernels::hip::run::{Plain, bytes, values};
use frontier_kernels::matrix::instruction::Element;
use half::{bf16, f16};

pub const ELEMENTS: [Element; 3] = [Element::F32, Element::F16, Element::Bf16];

/// The largest relative l2 error of a result of this type: what docs/kernels.md says.
pub fn limit(element: Element) -> f64 {
    match element {
        Element::F16 => 1e-3,
        Element::Bf16 => 8e-3,
        _ => 3e-6,
    }
}

/// `count` numbers spread evenly over (-1, 1), of the type's precision.
pub fn draw(element: Element, count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f64 / f64::from(1 << 30) - 1.0
    };
    let numbers: Vec<f64> = (0..count).map(|_| next()).collect();
    unpack(element, &pack(element, &numbers))
}

/// Numbers as a buffer of `element`.
pub fn pack(element: Element, numbers: &[f64]) -> Vec<u8> {
    fn all<T: Plain>(numbers: &[f64], convert: impl Fn(f64) -> T) -> Vec<u8> {
        bytes(&numbers.iter().map(|&x| convert(x)).collect::<Vec<_>>())
    }
    match element {
        Element::F16 => all(numbers, f16::from_f64),
        Element::Bf16 => all(numbers, bf16::from_f64),
        Element::F32 => all(numbers, |x| x as f32),
        other => panic!("{other:?} is no type of these kernels"),
    }
}

/// What a buffer of `element` holds.
pub fn unpack(element: Element, buffer: &[u8]) -> Vec<f64> {
    match element {
        Element::F16 => values::<f16>(buffer)
            .unwrap()
            .into_iter()
            .map(f64::from)
            .collect(),
        Element::Bf16 => values::<bf16>(buffer)
            .unwrap()
            .into_iter()
            .map(f64::from)
            .collect(),
        Element::F32 => values::<f32>(buffer)
            .unwrap()
            .into_iter()
            .map(f64::from)
            .collect(),
        other => panic!("{other:?} is no type of these kernels"),
    }
}

/// A buffer that a kernel has to fill: NaN everywhere.
pub fn unwritten(element: Element, count: usize) -> Vec<u8> {
    pack(element, &vec![f64::NAN; count])
}

/// Asserts that `found` is `expected`, up to the limit of `element`.
#[track_caller]
pub fn assert_close(what: &str, element: Element, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let square = |x: f64| x * x;
    let error: f64 = found.iter().zip(expected).map(|(f, e)| square(f - e)).sum();
    let norm: f64 = expected.iter().copied().map(square).sum();
    let relative = (error / norm.max(f64::MIN_POSITIVE)).sqrt();
    assert!(
        relative <= limit(element),
        "{what}: relative error {relative:.2e}"
    );
}
