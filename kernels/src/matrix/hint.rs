//! What a kernel tells the compiler's scheduler and the hardware's; nothing on targets other than HIP.

use cubecl_core as cubecl;
use cubecl_core::ir::attributes::IndexAttr;
use cubecl_core::ir::prelude::*;
use cubecl_core::prelude::*;
use cubecl_cpp::shared::operation::OpToCPP;
use cubecl_cpp::target::Hip;

use super::instruction::Target;

/// `s_setprio`: the wave's priority, 0 to 3.
#[cube_op(name = "frontier.priority")]
#[result_ty(none)]
pub struct PriorityOp {
    /// The priority.
    pub level: IndexAttr,
}

#[op_interface_impl]
impl OpToCPP<Hip> for PriorityOp {
    fn to_cpp(&self, ctx: &Context) -> String {
        format!("__builtin_amdgcn_s_setprio({});\n", self.level(ctx).0)
    }
}

/// `sched_group_barrier`: the next `count` instructions of `group` stand here.
#[cube_op(name = "frontier.schedule")]
#[result_ty(none)]
pub struct ScheduleOp {
    /// Which instructions, as the builtin's mask.
    pub group: IndexAttr,
    /// How many.
    pub count: IndexAttr,
}

#[op_interface_impl]
impl OpToCPP<Hip> for ScheduleOp {
    fn to_cpp(&self, ctx: &Context) -> String {
        let (group, count) = (self.group(ctx).0, self.count(ctx).0);
        format!("__builtin_amdgcn_sched_group_barrier({group}, {count}, 0);\n")
    }
}

/// `sched_barrier`: no instruction is scheduled across, but those of the mask.
#[cube_op(name = "frontier.fence")]
#[result_ty(none)]
pub struct FenceOp {
    /// Which instructions may cross, as the builtin's mask.
    pub mask: IndexAttr,
}

#[op_interface_impl]
impl OpToCPP<Hip> for FenceOp {
    fn to_cpp(&self, ctx: &Context) -> String {
        format!("__builtin_amdgcn_sched_barrier({});\n", self.mask(ctx).0)
    }
}

/// Kinds of instructions that a schedule counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Group {
    /// Vector arithmetic.
    Valu = 0x2,
    /// Matrix instructions.
    Matrix = 0x8,
    /// Reads of global memory.
    GlobalRead = 0x20,
    /// Writes of global memory.
    GlobalWrite = 0x40,
    /// Reads of shared memory.
    SharedRead = 0x100,
    /// Writes of shared memory.
    SharedWrite = 0x200,
    /// Transcendental functions.
    Transcendental = 0x400,
}

#[cube]
#[allow(unused_variables)]
fn hip_priority(#[comptime] level: usize) {
    intrinsic!(|scope| {
        let op = PriorityOp::new(scope.ctx_mut(), IndexAttr(level));
        scope.register(&op);
    })
}

#[cube]
#[allow(unused_variables)]
fn hip_schedule(#[comptime] group: Group, #[comptime] count: usize) {
    intrinsic!(|scope| {
        let op = ScheduleOp::new(scope.ctx_mut(), IndexAttr(group as usize), IndexAttr(count));
        scope.register(&op);
    })
}

#[cube]
#[allow(unused_variables)]
fn hip_fence(#[comptime] mask: usize) {
    intrinsic!(|scope| {
        let op = FenceOp::new(scope.ctx_mut(), IndexAttr(mask));
        scope.register(&op);
    })
}

/// Keeps the compiler's scheduler from moving instructions across: the order of the program is the schedule.
#[cube]
pub fn fence(#[comptime] target: Target) {
    if comptime!(target.is_hip()) {
        hip_fence(0usize);
    }
}

/// Keeps the compiler's scheduler from moving accesses to global memory across, and nothing else.
#[cube]
pub fn hold_loads(#[comptime] target: Target) {
    // Vector and scalar arithmetic, matrix instructions, shared memory, transcendental functions.
    const OTHERS: usize = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400;
    if comptime!(target.is_hip()) {
        hip_fence(OTHERS);
    }
}

/// Sets the wave's priority (0 to 3): higher while it feeds the matrix unit.
#[cube]
pub fn priority(#[comptime] level: usize, #[comptime] target: Target) {
    if comptime!(target.is_hip()) {
        hip_priority(level);
    }
}

/// Asks that the next `count` instructions of `group` be scheduled here, in the order of these requests.
#[cube]
pub fn schedule(#[comptime] group: Group, #[comptime] count: usize, #[comptime] target: Target) {
    if comptime!(target.is_hip()) {
        hip_schedule(group, count);
    }
}
