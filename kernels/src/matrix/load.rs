//! Loads whose address is what all lanes share plus what tells a lane apart: on AMD's GPUs the first stays in scalar registers
//! and the second is a 32-bit offset, so that a loop that advances the first spends no vector arithmetic on addresses.

use cubecl_core as cubecl;
use cubecl_core::ir::dialect::base::ptr_value_ty;
use cubecl_core::ir::{CanMaterialize, NoMemoryEffect, NoSideEffects, pliron, prelude::*};
use cubecl_core::prelude::*;
use cubecl_cpp::shared::{CppValue, operation::OpToCPP, ty::TypeExtCPP};
use cubecl_cpp::target::Hip;

use super::instruction::Target;

/// The vector that stands `distance` vectors behind the one at `near`, at most 4 GiB away.
#[cube_op(name = "frontier.load")]
#[result_ty(from_inputs = |ctx, near, _| ptr_value_ty(ctx, near))]
#[op_traits(CanMaterialize, NoMemoryEffect, NoSideEffects)]
pub struct LoadOp {
    /// What the address is counted from.
    pub near: Value,
    /// How many vectors behind it.
    pub distance: Value,
}

#[op_interface_impl]
impl OpToCPP<Hip> for LoadOp {
    fn to_cpp(&self, ctx: &Context) -> String {
        let result = self.get_result(ctx);
        let ty = result.get_type(ctx).to_cpp(ctx);
        let (near, distance) = (self.near(ctx).name(ctx), self.distance(ctx).name(ctx));
        // The mask tells the compiler that the offset in bytes has 32 bits.
        format!(
            "{} = {near}[{distance} & (0xffffffffu / sizeof({ty}))];\n",
            result.fmt_left(ctx)
        )
    }
}

#[cube]
#[allow(unused_variables)]
fn hip_load<E: Numeric, N: Size>(near: &Vector<E, N>, distance: u32) -> Vector<E, N> {
    intrinsic!(|scope| {
        let (near, distance) = (near.value(scope), distance.read_value(scope));
        let op = LoadOp::new(scope.ctx_mut(), near, distance);
        scope.register_with_result(&op).into()
    })
}

/// `memory[shared + own]`, where `shared` is the same for all lanes and `own` spans at most 4 GiB. The kernel must not write
/// `memory`: the compiler may load once for many.
#[cube]
pub fn load<E: Numeric, N: Size>(
    memory: &[Vector<E, N>],
    shared: u32,
    own: u32,
    #[comptime] target: Target,
) -> Vector<E, N> {
    if comptime!(target.is_hip()) {
        hip_load::<E, N>(&memory[shared as usize], own)
    } else {
        memory[(shared + own) as usize]
    }
}
