//! `D = A B + C` on fragments: the one operation that a kernel sees, whatever executes it.

use cubecl_core as cubecl;
use cubecl_core::ir::attributes::IndexAttr;
use cubecl_core::ir::{CanMaterialize, NoMemoryEffect, NoSideEffects, pliron, prelude::*};
use cubecl_core::prelude::*;
use cubecl_cpp::shared::ty::TypeExtCPP;
use cubecl_cpp::shared::{CppValue, operation::OpToCPP};
use cubecl_cpp::target::{Cuda, Hip};

use super::instruction::{Element, INSTRUCTIONS, Instruction, Unit};
use super::ptx::embedded;

/// An instruction of a matrix unit: entry `index` of [`INSTRUCTIONS`].
#[cube_op(name = "frontier.matrix")]
#[result_ty(same_as = c)]
#[op_traits(CanMaterialize, NoMemoryEffect, NoSideEffects)]
pub struct MatrixOp {
    /// The fragment of A.
    pub a: Value,
    /// The fragment of B.
    pub b: Value,
    /// The fragment of C.
    pub c: Value,
    /// Which instruction.
    pub index: IndexAttr,
}

/// A compiler's vector type of `count` elements, or the scalar if there is one.
fn vector(scalar: &str, count: usize) -> String {
    match count {
        1 => scalar.to_owned(),
        _ => format!("__attribute__((__ext_vector_type__({count}))) {scalar}"),
    }
}

/// How the builtin wants its operand.
fn operand_type(element: Element, count: usize) -> String {
    match element {
        Element::F16 => vector("_Float16", count),
        // The builtins take the bits of a bf16 as a short.
        Element::Bf16 => vector("short", count),
        Element::F32 => vector("float", count),
        Element::F64 => vector("double", count),
        Element::I8 if count == 4 => "int".to_owned(),
        Element::I8 => "long".to_owned(),
        Element::I32 => vector("int", count),
    }
}

#[op_interface_impl]
impl OpToCPP<Hip> for MatrixOp {
    fn to_cpp(&self, ctx: &Context) -> String {
        let instruction = &INSTRUCTIONS[self.index(ctx).0];
        // MFMA broadcasts and permutes blocks by three more arguments: none here.
        let (builtin, rest) = match instruction.unit {
            Unit::Mfma { builtin, .. } => (builtin, ", 0, 0, 0"),
            Unit::Wmma { builtin } => (builtin, ""),
            Unit::Mma | Unit::Fma => unreachable!("no AMD GPU has it"),
        };
        let result = self.get_result(ctx);
        let bits =
            |ty: &str, value: Value| format!("__builtin_bit_cast({ty}, {})", value.name(ctx));
        let operand = operand_type(instruction.operand, instruction.a.elements);
        let accumulator = operand_type(instruction.accumulator, instruction.d.elements);
        format!(
            "{} = __builtin_bit_cast({}, {builtin}({}, {}, {}{rest}));\n",
            result.fmt_left(ctx),
            result.get_type(ctx).to_cpp(ctx),
            bits(&operand, self.a(ctx)),
            bits(&operand, self.b(ctx)),
            bits(&accumulator, self.c(ctx)),
        )
    }
}

/// `mma.sync`, whose A is our B and whose B is our A: `D^T = B^T A^T + C^T`, in the same registers.
#[op_interface_impl]
impl OpToCPP<Cuda> for MatrixOp {
    fn to_cpp(&self, ctx: &Context) -> String {
        let instruction = &INSTRUCTIONS[self.index(ctx).0];
        let element = match instruction.operand {
            Element::Bf16 => "bf16",
            _ => "f16",
        };
        let (a, b, c) = (self.a(ctx), self.b(ctx), self.c(ctx));
        let words = |value: Value, count: usize| {
            let name = value.name(ctx);
            let word = |i| format!("\"r\"(reinterpret_cast<unsigned const*>(&{name})[{i}])");
            (0..count).map(word).collect::<Vec<_>>().join(", ")
        };
        let shape = format!("m{}n{}k{}", instruction.n, instruction.m, instruction.k);
        embedded(
            &self.get_result(ctx).fmt_left(ctx),
            &format!("{} d = {};", c.get_type(ctx).to_cpp(ctx), c.name(ctx)),
            &format!(
                "asm volatile(\"mma.sync.aligned.{shape}.row.col.f32.{element}.{element}.f32 \
                 {{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}, {{%8, %9}}, {{%0, %1, %2, %3}};\"\n\
                 : \"+f\"(d.i_0), \"+f\"(d.i_1), \"+f\"(d.i_2), \"+f\"(d.i_3) : {}, {});",
                words(b, 4),
                words(a, 2)
            ),
            &format!(
                "frontier::mma(frontier::Form::{}_{element}, {}, {}, d);",
                shape,
                b.name(ctx),
                a.name(ctx)
            ),
        )
    }
}

#[cube]
fn builtin<E: Numeric, D: Numeric, NA: Size, NB: Size, ND: Size>(
    a: Vector<E, NA>,
    b: Vector<E, NB>,
    c: Vector<D, ND>,
    #[comptime] instruction: Instruction,
) -> Vector<D, ND> {
    intrinsic!(|scope| {
        let index = INSTRUCTIONS.iter().position(|i| *i == instruction);
        let index = index.expect("kernels take their instructions from the table");
        let (a, b, c) = (
            a.read_value(scope),
            b.read_value(scope),
            c.read_value(scope),
        );
        let op = MatrixOp::new(scope.ctx_mut(), a, b, c, IndexAttr(index));
        scope.register_with_result(&op).into()
    })
}

/// A product by multiply-adds: every element of D is of the lane's own fragments.
#[cube]
fn fma<E: Numeric, D: Numeric, NA: Size, NB: Size, ND: Size>(
    a: Vector<E, NA>,
    b: Vector<E, NB>,
    c: Vector<D, ND>,
) -> Vector<D, ND> {
    let b = Vector::<D, ND>::new(D::cast_from(b.extract(0usize)));
    Vector::<D, ND>::cast_from(a) * b + c
}

/// `a b + c`, of the fragments that the lanes of a wave hold by the maps of `instruction`.
///
/// Vector sizes are those of the maps: `NA` = `a.elements`, `NB` = `b.elements`, `ND` = `d.elements`. Every lane of the wave
/// must take part. Accumulates in `D`; with f16 and bf16, gfx90a flushes subnormal numbers.
#[cube]
pub fn product<E: Numeric, D: Numeric, NA: Size, NB: Size, ND: Size>(
    a: Vector<E, NA>,
    b: Vector<E, NB>,
    c: Vector<D, ND>,
    #[comptime] instruction: Instruction,
) -> Vector<D, ND> {
    match instruction.unit {
        Unit::Mfma { .. } | Unit::Wmma { .. } | Unit::Mma => {
            builtin::<E, D, NA, NB, ND>(a, b, c, instruction)
        }
        Unit::Fma => fma::<E, D, NA, NB, ND>(a, b, c),
    }
}
