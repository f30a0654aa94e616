//! What precedes the loop over tiles of keys.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use super::biases::{Biases, Terms, fetch_terms, store_terms};
use super::copy::{fetch, locate};
use super::products::{read, settled};
use super::refill::{find, store_items};
use super::softmax::take;
use super::state::{Inputs, Next, Tiles, Wave, Work};
use super::steps::{multiply, next_terms, zeros};
use crate::attention::plan::Plan;
use crate::attention::problem::Geometry;

/// Reads the first tiles, and computes the first scores. Afterwards shared memory holds tiles 0 and 1 of K and tile 0 of V;
/// registers tile 2 of K and tile 1 of V.
#[cube]
pub(crate) fn begin<
    E: Numeric,
    NA: Size,
    NB: Size,
    ND: Size,
    WK: Size,
    WV: Size,
    SK: Size,
    SV: Size,
>(
    inputs: &Inputs<'_, E, WK, WV>,
    wave: &mut Wave<E, NB, ND>,
    work: &Work,
    geometry: &Geometry,
    #[comptime] plan: Plan,
) -> Tiles<E, SK, SV> {
    let (key_layout, value_layout) = comptime!((plan.key_layout(), plan.value_layout()));
    let mut tiles = Tiles::<E, SK, SV> {
        keys: Shared::new_aligned_slice(comptime!(2 * key_layout.len()), 16usize),
        values: Shared::new_aligned_slice(comptime!(2 * value_layout.len()), 16usize),
        next_keys: Array::new(comptime!(plan.key_copy().accesses())),
        next_values: Array::new(comptime!(plan.value_copy().accesses())),
        terms: Terms::new(comptime!(plan.clone())),
    };
    let size = comptime!(plan.keys as u32);
    let (keys, values) = comptime!((plan.key_copy(), plan.value_copy()));
    let (items, accesses) = comptime!((
        keys.turns() + values.turns(),
        keys.accesses() + values.accesses()
    ));
    let target = comptime!(plan.target);
    let mut of_k = Array::<u32>::new(comptime!(keys.accesses()));
    let mut of_v = Array::<u32>::new(comptime!(values.accesses()));
    find(
        &mut of_k,
        &mut of_v,
        work,
        0u32,
        0u32,
        comptime!((0, accesses)),
        comptime!(plan.clone()),
    );
    fetch(
        inputs.k,
        &work.keys,
        &of_k,
        &mut tiles.next_keys,
        keys,
        target,
    );
    fetch(
        inputs.v,
        &work.values,
        &of_v,
        &mut tiles.next_values,
        values,
        target,
    );
    store_items::<E, WK, WV, SK, SV>(
        &mut tiles,
        0u32,
        0u32,
        comptime!((0, items)),
        comptime!(plan.clone()),
    );
    find(
        &mut of_k,
        &mut of_v,
        work,
        size,
        size,
        comptime!((0, accesses)),
        comptime!(plan.clone()),
    );
    fetch(
        inputs.k,
        &work.keys,
        &of_k,
        &mut tiles.next_keys,
        keys,
        target,
    );
    fetch(
        inputs.v,
        &work.values,
        &of_v,
        &mut tiles.next_values,
        values,
        target,
    );
    let key_items = comptime!((0, keys.turns()));
    store_items::<E, WK, WV, SK, SV>(&mut tiles, 1u32, 1u32, key_items, comptime!(plan.clone()));
    locate(
        &work.keys,
        2 * size,
        &mut of_k,
        comptime!((0, keys.accesses())),
        keys,
    );
    fetch(
        inputs.k,
        &work.keys,
        &of_k,
        &mut tiles.next_keys,
        keys,
        target,
    );
    if comptime!(plan.stages_terms()) {
        #[unroll]
        for tile in 0..3u32 {
            let first = tile * size;
            fetch_terms(
                inputs,
                work,
                geometry,
                first,
                &mut tiles.terms,
                comptime!(plan.clone()),
            );
            if comptime!(tile < 2) {
                store_terms(&mut tiles.terms, tile.runtime(), comptime!(plan.clone()));
            }
        }
    }
    let mut biases = Biases::new(comptime!(plan.clone()));
    biases.fetch(
        inputs.bias1,
        inputs.bias2,
        work,
        geometry,
        0u32,
        true,
        comptime!(plan.clone()),
    );
    sync_cube();
    let order = comptime!(plan.key_order());
    let mut products = zeros::<ND>(comptime!(plan.sum_tiles()));
    let mut a = Array::<Vector<E, NA>>::new(comptime!(order.products()));
    #[unroll]
    for i in 0..comptime!(order.reads) {
        read(&tiles.keys, 0u32, &work.lane, &mut a, i, order, key_layout);
        #[unroll]
        for s in 0..comptime!(order.steps) {
            multiply(
                &a,
                &wave.queries,
                &mut products,
                i,
                s,
                order,
                comptime!(plan.clone()),
            );
        }
    }
    let products = settled(products, comptime!(plan.clone()));
    let pairs = comptime!((0, plan.pairs()));
    next_terms(
        &tiles,
        &mut biases,
        work,
        0u32,
        pairs,
        comptime!(plan.clone()),
    );
    take(
        inputs,
        wave,
        &products,
        &biases,
        work,
        geometry,
        0u32,
        pairs,
        Next::Masked,
        plan,
    );
    tiles
}
