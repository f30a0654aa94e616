//! Vectors from their elements.

use cubecl_core as cubecl;
use cubecl_core::ir::dialect::vector::CompositeConstructOp;
use cubecl_core::prelude::*;

/// The vector of `elements`, one for each of its `N`.
///
/// In one construction: a chain of insertions makes clang try to evaluate every link through all that precede it, which takes
/// exponential time in the length (16 halves: never done).
#[cube]
pub fn from_elements<E: Numeric, N: Size>(elements: &Sequence<E>) -> Vector<E, N> {
    intrinsic!(|scope| {
        let mut values: Vec<_> = elements
            .iter_cloned()
            .map(|e| e.read_value(scope))
            .collect();
        if values.len() == 1 {
            // CubeCL's vector of one is the element itself.
            return values.remove(0).into();
        }
        let ty = Vector::<E, N>::__expand_as_type(scope);
        let op = CompositeConstructOp::new(scope.ctx_mut(), ty, values);
        scope.register_with_result(&op).into()
    })
}
