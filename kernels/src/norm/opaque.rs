//! A value of which the compiler forgets how it was computed.
//!
//! A row that waits for its statistics in half precision is converted to f32 before and after. LLVM sees that both
//! conversions give the same and keeps the f32 numbers instead, in twice the registers; and it keeps the addresses of all
//! accesses from row to row rather than compute them again. At hidden 25600 that spilled 140 registers of 256.

use cubecl_core as cubecl;
use cubecl_core::ir::interfaces::TypedExt;
use cubecl_core::ir::prelude::*;
use cubecl_core::prelude::*;
use cubecl_cpp::shared::ty::TypeExtCPP;
use cubecl_cpp::shared::{CppValue, operation::OpToCPP};
use cubecl_cpp::target::{Cuda, Hip};

use crate::matrix::instruction::Target;

/// The input, of 4, 8 or 16 bytes.
#[cube_op(name = "frontier.opaque")]
#[result_ty(same_as = input)]
pub struct OpaqueOp {
    /// The value.
    pub input: Value,
}

#[op_interface_impl]
impl OpToCPP<Hip> for OpaqueOp {
    fn to_cpp(&self, ctx: &Context) -> String {
        let (result, input) = (self.get_result(ctx), self.input(ctx).name(ctx));
        let (left, ty) = (result.fmt_left(ctx), result.get_type(ctx).to_cpp(ctx));
        // A type of that size for which GPUs and CPUs have a register.
        let four = "(__attribute__((__ext_vector_type__(4))) float){}";
        let size = format!("sizeof({ty})");
        let carrier = format!(
            "__typeof__(__builtin_choose_expr({size} == 4, 0.0f, __builtin_choose_expr({size} == 8, 0.0, {four})))"
        );
        // Volatile, so that two passes over a row do not share one.
        format!(
            "{left} = __builtin_bit_cast({ty}, ({{ {carrier} kept = __builtin_bit_cast({carrier}, {input}); \
             __asm__ volatile(\"\" : \"+v\"(kept)); kept; }}));\n"
        )
    }
}

#[op_interface_impl]
impl OpToCPP<Cuda> for OpaqueOp {
    fn to_cpp(&self, ctx: &Context) -> String {
        let (result, input) = (self.get_result(ctx), self.input(ctx));
        let (left, ty) = (result.fmt_left(ctx), result.get_type(ctx).to_cpp(ctx));
        let words = (0..input.size(ctx) / 4).map(|i| format!("\"+r\"(words[{i}])"));
        format!(
            "{left} = [&]{{ {ty} kept = {}; unsigned* const words = reinterpret_cast<unsigned*>(&kept); \
             asm volatile(\"\" : {}); return kept; }}();\n",
            input.name(ctx),
            words.collect::<Vec<_>>().join(", ")
        )
    }
}

#[cube]
fn keep_opaque<T: CubePrimitive>(value: T) -> T {
    intrinsic!(|scope| {
        let value = value.read_value(scope);
        let op = OpaqueOp::new(scope.ctx_mut(), value);
        scope.register_with_result(&op).into()
    })
}

/// `value`, of 4, 8 or 16 bytes, as if it came from elsewhere; as it is where a kernel has no operations of ours.
#[cube]
pub(super) fn opaque<T: CubePrimitive>(value: T, #[comptime] target: Target) -> T {
    if comptime!(target.has_operations()) {
        keep_opaque::<T>(value)
    } else {
        value
    }
}
