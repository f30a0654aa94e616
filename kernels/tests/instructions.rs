//! Each matrix instruction, executed, gives a plain matrix product.

#![allow(missing_docs, clippy::useless_conversion)]

use cubecl_core as cubecl;
use cubecl_core::ir::ElemType;
use cubecl_core::prelude::*;
use frontier_kernels::hip::emit::{Source, buffer, elem_type, emit};
use frontier_kernels::hip::run::Launch;
use frontier_kernels::matrix::instruction::{Element, INSTRUCTIONS, Instruction, Target};
use frontier_kernels::matrix::lanes::coordinate;
use frontier_kernels::matrix::map::Map;
use frontier_kernels::matrix::product::product;
use frontier_kernels::matrix::vector::from_elements;
use half::{bf16, f16};

/// One instruction: A `[m, k]`, B `[k, n]`, D `[m, n]`, row-major.
#[cube(launch)]
fn single<E: Numeric, D: Numeric, NA: Size, NB: Size, ND: Size>(
    a: &[E],
    b: &[E],
    d: &mut [D],
    #[comptime] instruction: Instruction,
    #[define(E, D)] _types: [ElemType; 2],
    #[define(NA, NB, ND)] _sizes: [usize; 3],
) {
    let fragment_a = load::<E, NA>(a, instruction.a, instruction.k);
    let fragment_b = load::<E, NB>(b, instruction.b, instruction.n);
    let c = Vector::<D, ND>::zero();
    let result = product::<E, D, NA, NB, ND>(fragment_a, fragment_b, c, instruction);
    #[unroll]
    for e in 0..result.vector_size() {
        let row = coordinate(UNIT_POS, e, instruction.d.row);
        let column = coordinate(UNIT_POS, e, instruction.d.column);
        d[(row * instruction.n as u32 + column) as usize] = result.extract(e);
    }
}

#[cube]
fn load<E: Numeric, N: Size>(
    matrix: &[E],
    #[comptime] map: Map,
    #[comptime] columns: usize,
) -> Vector<E, N> {
    let mut elements = Sequence::<E>::new();
    #[unroll]
    for e in 0..map.elements {
        let row = coordinate(UNIT_POS, e, map.row);
        let column = coordinate(UNIT_POS, e, map.column);
        elements.push(matrix[(row * columns as u32 + column) as usize]);
    }
    from_elements::<E, N>(&elements)
}

fn source(instruction: Instruction, target: Target) -> Source {
    let Instruction {
        operand, m, n, k, ..
    } = instruction;
    let types = [elem_type(operand), elem_type(instruction.accumulator)];
    let maps = [instruction.a, instruction.b, instruction.d];
    let sizes = maps.map(|map| map.elements);
    let name = format!("single_{operand:?}_{m}x{n}x{k}");
    emit(name, target, [instruction.lanes as u32, 1, 1], |s| {
        single::Single::new(
            s.settings,
            s.device,
            s.target,
            buffer(),
            buffer(),
            buffer(),
            instruction,
            types,
            sizes,
        )
    })
    .unwrap()
}

/// Small whole numbers, whose products and sums are exact in every type.
fn whole_numbers(count: usize, seed: i64) -> Vec<i64> {
    let count = count as i64;
    (0..count)
        .map(|i| (i * 7 + i * i * seed) % 13 - 6)
        .collect()
}

fn to_bytes(values: &[i64], element: Element) -> Vec<u8> {
    let as_f32 = values.iter().map(|&v| v as f32);
    match element {
        Element::F16 => as_f32
            .flat_map(|v| f16::from_f32(v).to_le_bytes())
            .collect(),
        Element::Bf16 => as_f32
            .flat_map(|v| bf16::from_f32(v).to_le_bytes())
            .collect(),
        Element::F32 => as_f32.flat_map(f32::to_le_bytes).collect(),
        Element::F64 => values
            .iter()
            .flat_map(|&v| (v as f64).to_le_bytes())
            .collect(),
        Element::I8 => values.iter().map(|&v| v as i8 as u8).collect(),
        Element::I32 => values
            .iter()
            .flat_map(|&v| (v as i32).to_le_bytes())
            .collect(),
    }
}

/// `A B`, row-major.
fn plain_product(a: &[i64], b: &[i64], Instruction { m, n, k, .. }: Instruction) -> Vec<i64> {
    let entry = |i: usize, j: usize| (0..k).map(|l| a[i * k + l] * b[l * n + j]).sum();
    (0..m * n).map(|e| entry(e / n, e % n)).collect()
}

/// The elements with +0 for -0, which a product with zero may give.
fn positive_zeros(bytes: &[u8], element: Element) -> Vec<u8> {
    let zero = |x: &[u8]| {
        let (last, rest) = x.split_last().unwrap();
        *last == 0x80 && rest.iter().all(|&b| b == 0)
    };
    let float = element != Element::I32;
    let chunks = bytes.chunks(element.bytes());
    let of = chunks.map(|x| {
        if float && zero(x) {
            vec![0; x.len()]
        } else {
            x.to_vec()
        }
    });
    of.flatten().collect()
}

fn executed_equals_the_plain_product(target: Target) {
    for instruction in INSTRUCTIONS.into_iter().filter(|i| i.exists_on(target)) {
        let Instruction {
            m,
            n,
            k,
            operand,
            accumulator,
            ..
        } = instruction;
        let (a, b) = (whole_numbers(m * k, 3), whole_numbers(k * n, 5));
        let source = source(instruction, target);
        let buffers = vec![
            to_bytes(&a, operand),
            to_bytes(&b, operand),
            vec![0xff; m * n * accumulator.bytes()],
        ];
        let result = Launch::new(&source, [1, 1, 1], buffers).run().unwrap();
        let expected = to_bytes(&plain_product(&a, &b, instruction), accumulator);
        let found = positive_zeros(&result[2], accumulator);
        assert!(found == expected, "{instruction:?} on {target:?}");
    }
}

#[test]
fn every_instruction_of_gfx90a_gives_the_plain_product() {
    executed_equals_the_plain_product(Target::Gfx90a);
}

#[test]
fn every_instruction_of_gfx942_gives_the_plain_product() {
    executed_equals_the_plain_product(Target::Gfx942);
}

#[test]
fn every_instruction_of_gfx1100_gives_the_plain_product() {
    executed_equals_the_plain_product(Target::Gfx1100);
}

#[test]
fn every_instruction_of_nvidia_gives_the_plain_product() {
    executed_equals_the_plain_product(Target::Cuda);
}
