//! A wave's f32 results as the f16 or bf16 operands of its next product, at one instruction a pair.
//!
//! NVIDIA's instruction rounds to nearest. AMD's drops the low bits. What that loses on average, [`widening`] adds beforehand: a factor of `1 + ln(2) u`, with
//! `u` half a unit in the last place of 1, centres the error of numbers whose logarithm is spread evenly. A kernel that gets
//! its numbers from `exp2` adds it to the exponent, for nothing.

use cubecl_core as cubecl;
use cubecl_core::ir::{
    CanMaterialize, NoMemoryEffect, NoSideEffects, attributes::BoolAttr, pliron, prelude::*,
};
use cubecl_core::prelude::*;
use cubecl_cpp::shared::{CppValue, operation::OpToCPP};
use cubecl_cpp::target::{Cuda, Hip};
use pliron::builtin::types::{IntegerType, Signedness};

use super::instruction::{Element, Target};
use super::ptx::embedded;
use super::vector::from_elements;

/// Two f32 in the halves of a u32, rounded toward zero on AMD, to nearest on NVIDIA.
#[cube_op(name = "frontier.narrow")]
#[result_ty(fixed = IntegerType::get(ctx, 32, Signedness::Unsigned).to_handle())]
#[op_traits(CanMaterialize, NoMemoryEffect, NoSideEffects)]
pub struct NarrowOp {
    /// The low half.
    pub low: Value,
    /// The high half.
    pub high: Value,
    /// To bf16, else to f16.
    pub brain: BoolAttr,
}

#[op_interface_impl]
impl OpToCPP<Hip> for NarrowOp {
    fn to_cpp(&self, ctx: &Context) -> String {
        let result = self.get_result(ctx).fmt_left(ctx);
        let (low, high) = (self.low(ctx).name(ctx), self.high(ctx).name(ctx));
        let bits = |value| format!("__builtin_bit_cast(unsigned, {value})");
        match self.brain(ctx).0 {
            true => format!(
                "{result} = __builtin_amdgcn_perm({}, {}, 0x07060302u);\n",
                bits(high),
                bits(low)
            ),
            false => format!(
                "{result} = __builtin_bit_cast(unsigned, __builtin_amdgcn_cvt_pkrtz({low}, {high}));\n"
            ),
        }
    }
}

#[op_interface_impl]
impl OpToCPP<Cuda> for NarrowOp {
    fn to_cpp(&self, ctx: &Context) -> String {
        let (low, high) = (self.low(ctx).name(ctx), self.high(ctx).name(ctx));
        let (element, ty) = match self.brain(ctx).0 {
            true => ("bf16", "__nv_bfloat16"),
            false => ("f16", "__half"),
        };
        let bits = |value| format!("unsigned(__builtin_bit_cast(unsigned short, {ty}({value})))");
        embedded(
            &self.get_result(ctx).fmt_left(ctx),
            "unsigned d;",
            &format!(
                "asm(\"cvt.rn.{element}x2.f32 %0, %2, %1;\" : \"=r\"(d) : \"f\"({low}), \"f\"({high}));"
            ),
            &format!("d = {} | {} << 16;", bits(low), bits(high)),
        )
    }
}

#[cube]
#[allow(unused_variables)]
fn narrow_pair(low: f32, high: f32, #[comptime] brain: bool) -> u32 {
    intrinsic!(|scope| {
        let (low, high) = (low.read_value(scope), high.read_value(scope));
        let op = NarrowOp::new(scope.ctx_mut(), low, high, BoolAttr(brain));
        scope.register_with_result(&op).into()
    })
}

/// Whether `narrow()` converts two numbers at a time; elsewhere it is an ordinary conversion.
const fn narrows_pairs(element: Element, target: Target) -> bool {
    target.has_operations() && matches!(element, Element::F16 | Element::Bf16)
}

/// Whether `narrow()` to `element` drops bits on `target`.
pub const fn truncates(element: Element, target: Target) -> bool {
    target.is_hip() && narrows_pairs(element, target)
}

/// The logarithm to base 2 of the factor by which numbers are made greater before `narrow()`.
pub const fn widening(element: Element, target: Target) -> f32 {
    match element {
        _ if !truncates(element, target) => 0.0,
        Element::F16 => 1.0 / 2048.0,
        _ => 1.0 / 256.0,
    }
}

/// `values[first..first + N]` as a fragment of `element`. `E` is its type, `P` half of `N`.
#[cube]
pub fn narrow<E: Numeric, N: Size, P: Size>(
    values: &Array<f32>,
    #[comptime] first: usize,
    #[comptime] element: Element,
    #[comptime] target: Target,
) -> Vector<E, N> {
    if comptime!(narrows_pairs(element, target)) {
        let mut pairs = Sequence::<u32>::new();
        #[unroll]
        for i in 0..P::value().comptime() {
            let at = comptime!(first + 2 * i);
            let pair = narrow_pair(
                values[at],
                values[comptime!(at + 1)],
                comptime!(matches!(element, Element::Bf16)),
            );
            pairs.push(pair);
        }
        Vector::<E, N>::reinterpret(from_elements::<u32, P>(&pairs))
    } else {
        let mut fragment = Sequence::<E>::new();
        #[unroll]
        for i in 0..N::value().comptime() {
            fragment.push(E::cast_from(values[comptime!(first + i)]));
        }
        from_elements::<E, N>(&fragment)
    }
}
