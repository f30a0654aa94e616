//! The order of the main loop's body, as hints to the compiler: every access stands in the shadow of a product.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use super::plan::Plan;
use super::problem::Layout;
use super::tile::Role;
use crate::matrix::hint::{Group, schedule};

/// Products before a read's first access: they wait for what was read before, and would for the access too.
const LEAD: usize = 2;
/// Products that a read's accesses are spread over, and those to global memory over as many in two reads.
const SPREAD: usize = 2;
/// Vector instructions after a product; one of 16 passes hides 15.
const VECTOR: usize = 12;

/// The order: kinds of instructions and how many of them.
fn order(plan: &Plan) -> Vec<(Group, usize)> {
    let reads = plan.reads();
    let products = plan.tiling.tiles.0 * plan.tiling.tiles.1 * plan.steps();
    if products < 2 * (LEAD + SPREAD) {
        // Too few products to hide anything behind.
        return vec![];
    }
    let both = |count: &dyn Fn(Role) -> usize| count(Role::Rows) + count(Role::Columns);
    let held = both(&|role| plan.held(role));
    let brought = both(&|role| plan.operand(role).turns() * plan.operand(role).accesses());
    let put = both(&|role| plan.operand(role).turns() * plan.operand(role).block());
    let mut order = Vec::new();
    for read in 0..reads {
        // The last read's products wait for a barrier anyway.
        let lead = if read + 1 == reads { 0 } else { LEAD };
        order.push((Group::Matrix, lead));
        for product in lead..products {
            let spread = product < lead + SPREAD;
            if spread {
                order.push((Group::SharedRead, held / SPREAD));
            }
            if spread && read < 2 {
                order.push((Group::GlobalRead, brought / (2 * SPREAD)));
            }
            if !spread && read + 2 == reads {
                // The transposition: without a place here it would wait for the loads as soon as they are under way.
                let transposed = if plan.layout == Layout::Nt { 0 } else { VECTOR };
                order.push((Group::Valu, transposed));
                order.push((Group::SharedWrite, put.div_ceil(products - LEAD - SPREAD)));
            }
            if !spread && read + 1 == reads && plan.sums_of.is_some() {
                order.push((Group::Valu, VECTOR));
            }
            order.push((Group::Matrix, 1));
        }
    }
    order.retain(|&(_, count)| count > 0);
    order
}

/// Asks for the order.
#[cube]
pub fn interleave(#[comptime] plan: Plan) {
    let order = comptime!(order(&plan));
    #[unroll]
    for i in 0..comptime!(order.len()) {
        schedule(comptime!(order[i].0), comptime!(order[i].1), plan.target);
    }
}
