//! Functions that a GPU has an instruction for: on HIP and CUDA by operations of our own, elsewhere by CubeCL's.
//!
//! Accuracy on AMD: 1 unit in the last place (`v_exp_f32`, `v_log_f32`, `v_rcp_f32`, `v_rsq_f32`), subnormal results of `exp2`
//! and subnormal arguments flushed to zero. On NVIDIA: 2 units in the last place, `lg2` 2^-22 near 1 (PTX ISA,
//! "Floating Point Instructions"), flushed as on AMD.

use cubecl_core as cubecl;
use cubecl_core::ir::{CanMaterialize, NoMemoryEffect, NoSideEffects, pliron, prelude::*};
use cubecl_core::prelude::*;
use cubecl_cpp::shared::{CppValue, operation::OpToCPP};
use cubecl_cpp::target::{Cuda, Hip};

use super::instruction::Target;
use super::ptx::embedded;

/// log2(e).
pub const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln(2).
pub const LN_2: f32 = std::f32::consts::LN_2;

macro_rules! builtin {
    ($op:ident, $function:ident, $name:literal, $builtin:literal, $ptx:literal) => {
        #[doc = concat!("`", $builtin, "`, `", $ptx, ".approx.ftz.f32`")]
        #[cube_op(name = $name)]
        #[result_ty(same_as = input)]
        #[op_traits(CanMaterialize, NoMemoryEffect, NoSideEffects)]
        pub struct $op {
            /// The argument.
            pub input: Value,
        }

        #[op_interface_impl]
        impl OpToCPP<Hip> for $op {
            fn to_cpp(&self, ctx: &Context) -> String {
                let result = self.get_result(ctx).fmt_left(ctx);
                let input = self.input(ctx).name(ctx);
                format!("{result} = {}({input});\n", $builtin)
            }
        }

        #[op_interface_impl]
        impl OpToCPP<Cuda> for $op {
            fn to_cpp(&self, ctx: &Context) -> String {
                let input = self.input(ctx).name(ctx);
                embedded(
                    &self.get_result(ctx).fmt_left(ctx),
                    "float d;",
                    &format!(
                        "asm(\"{}.approx.ftz.f32 %0, %1;\" : \"=f\"(d) : \"f\"({input}));",
                        $ptx
                    ),
                    &format!("d = {}({input});", $builtin),
                )
            }
        }

        #[cube]
        fn $function(x: f32) -> f32 {
            intrinsic!(|scope| {
                let x = x.read_value(scope);
                let op = $op::new(scope.ctx_mut(), x);
                scope.register_with_result(&op).into()
            })
        }
    };
}

builtin!(
    Exp2Op,
    fast_exp2,
    "frontier.exp2",
    "__builtin_amdgcn_exp2f",
    "ex2"
);
builtin!(
    Log2Op,
    fast_log2,
    "frontier.log2",
    "__builtin_amdgcn_logf",
    "lg2"
);
builtin!(
    ReciprocalOp,
    fast_reciprocal,
    "frontier.reciprocal",
    "__builtin_amdgcn_rcpf",
    "rcp"
);
builtin!(
    InverseSqrtOp,
    fast_inverse_sqrt,
    "frontier.inverse_sqrt",
    "__builtin_amdgcn_rsqf",
    "rsqrt"
);
builtin!(
    SqrtOp,
    fast_sqrt,
    "frontier.sqrt",
    "__builtin_amdgcn_sqrtf",
    "sqrt"
);

/// 2^x.
#[cube]
pub fn exp2(x: f32, #[comptime] target: Target) -> f32 {
    if comptime!(target.has_operations()) {
        fast_exp2(x)
    } else {
        (x * LN_2).exp()
    }
}

/// e^x.
#[cube]
pub fn exp(x: f32, #[comptime] target: Target) -> f32 {
    if comptime!(target.has_operations()) {
        fast_exp2(x * LOG2_E)
    } else {
        x.exp()
    }
}

/// The logarithm to base 2.
#[cube]
pub fn log2(x: f32, #[comptime] target: Target) -> f32 {
    if comptime!(target.has_operations()) {
        fast_log2(x)
    } else {
        x.ln() * LOG2_E
    }
}

/// The natural logarithm.
#[cube]
pub fn ln(x: f32, #[comptime] target: Target) -> f32 {
    if comptime!(target.has_operations()) {
        fast_log2(x) * LN_2
    } else {
        x.ln()
    }
}

/// 1 / x.
#[cube]
pub fn reciprocal(x: f32, #[comptime] target: Target) -> f32 {
    if comptime!(target.has_operations()) {
        fast_reciprocal(x)
    } else {
        1.0 / x
    }
}

/// 1 / sqrt(x).
#[cube]
pub fn inverse_sqrt(x: f32, #[comptime] target: Target) -> f32 {
    if comptime!(target.has_operations()) {
        fast_inverse_sqrt(x)
    } else {
        x.inverse_sqrt()
    }
}

/// The square root.
#[cube]
pub fn sqrt(x: f32, #[comptime] target: Target) -> f32 {
    if comptime!(target.has_operations()) {
        fast_sqrt(x)
    } else {
        x.sqrt()
    }
}

/// tanh(x).
#[cube]
pub fn tanh(x: f32, #[comptime] target: Target) -> f32 {
    if comptime!(target.has_operations()) {
        // 1 - 2 / (e^2x + 1): right at both ends, where e^2x is 0 or infinite.
        1.0 - 2.0 * fast_reciprocal(fast_exp2(x * comptime!(2.0 * LOG2_E)) + 1.0)
    } else {
        x.tanh()
    }
}
