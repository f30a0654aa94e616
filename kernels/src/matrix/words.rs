//! Neighbouring elements of memory, held as 32-bit words until they are computed with: a compiler keeps halves that it has
//! loaded apart from each other, in a register each, and waits for them where they are taken apart.

use cubecl_core as cubecl;
use cubecl_core::ir::attributes::IndexAttr;
use cubecl_core::ir::{CanMaterialize, NoMemoryEffect, NoSideEffects, pliron, prelude::*};
use cubecl_core::prelude::*;
use cubecl_cpp::shared::{CppValue, operation::OpToCPP, ty::TypeExtCPP};
use cubecl_cpp::target::{Cuda, Hip};

/// Words that stand some elements behind `near`.
#[cube_op(name = "frontier.words")]
#[result_ty(argument)]
#[op_traits(CanMaterialize, NoMemoryEffect, NoSideEffects)]
pub struct WordsOp {
    /// The element that the address is counted from.
    pub near: Value,
    /// How many bytes behind it.
    pub distance: Value,
    /// How many bytes more.
    pub offset: IndexAttr,
    /// Bytes that are read: 2, for one half, or those of the result.
    pub bytes: IndexAttr,
}

impl WordsOp {
    fn text(&self, ctx: &Context) -> String {
        let result = self.get_result(ctx);
        let ty = match self.bytes(ctx).0 {
            2 => "uint16_t".into(),
            _ => result.get_type(ctx).to_cpp(ctx),
        };
        let (near, distance) = (self.near(ctx).name(ctx), self.distance(ctx).name(ctx));
        format!(
            "{} = *reinterpret_cast<{ty} const*>(reinterpret_cast<char const*>({near}) + {distance} + {});\n",
            result.fmt_left(ctx),
            self.offset(ctx).0
        )
    }
}

#[op_interface_impl]
impl OpToCPP<Hip> for WordsOp {
    fn to_cpp(&self, ctx: &Context) -> String {
        self.text(ctx)
    }
}

#[op_interface_impl]
impl OpToCPP<Cuda> for WordsOp {
    fn to_cpp(&self, ctx: &Context) -> String {
        self.text(ctx)
    }
}

#[cube]
#[allow(unused_variables)]
fn read<E: Numeric, W: Size>(
    near: &E,
    distance: u32,
    #[comptime] offset: usize,
    #[comptime] bytes: usize,
) -> Vector<u32, W> {
    intrinsic!(|scope| {
        let (near, distance) = (near.value(scope), distance.read_value(scope));
        let ty = Vector::<u32, W>::__expand_as_type(scope);
        let (offset, bytes) = (IndexAttr(offset), IndexAttr(bytes));
        let op = WordsOp::new(scope.ctx_mut(), ty, near, distance, offset, bytes);
        scope.register_with_result(&op).into()
    })
}

/// 32-bit words that `elements` of `bits` bits occupy.
pub const fn words_of(elements: usize, bits: usize) -> usize {
    (elements * bits).div_ceil(32)
}

/// Reads `elements` of `bits` bits (1, or a power of two that is a whole number of words, to which the place is aligned), of
/// which the first stands `own` bytes and `offset` elements behind `memory[shared]`, to `words` from number `to` on. `shared`
/// is the same for all lanes. The kernel must not write `memory`, and its target have operations.
#[cube]
pub fn load_words<E: Numeric>(
    memory: &[E],
    shared: u32,
    own: u32,
    words: &mut Array<u32>,
    #[comptime] offset: usize,
    #[comptime] elements: usize,
    #[comptime] bits: usize,
    #[comptime] to: usize,
) {
    let count = comptime!(words_of(elements, bits));
    let size!(W) = count;
    let vector = read::<E, W>(
        &memory[shared as usize],
        own,
        comptime!(offset * bits / 8),
        comptime!(elements * bits / 8),
    );
    #[unroll]
    for w in 0..count {
        words[comptime!(to + w)] = vector.extract(w);
    }
}

/// Element `element`, of `bits` bits, of those that were read to `words` from number `from` on, as f32.
#[cube]
pub fn element_of<E: Numeric>(
    words: &Array<u32>,
    #[comptime] from: usize,
    #[comptime] element: usize,
    #[comptime] bits: usize,
) -> f32 {
    if comptime!(bits == 32) {
        f32::cast_from(E::reinterpret(words[comptime!(from + element)]))
    } else {
        let word = words[comptime!(from + element / 2)];
        let half = if comptime!(element % 2 == 1) {
            word >> 16
        } else {
            word
        };
        f32::cast_from(E::reinterpret(u16::cast_from(half)))
    }
}
