//! A step of the loop over tiles of keys.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use super::copy::{fetch, locate};
use super::products::{Order, in_b, read, settled};
use super::refill::{Copying, find, late, late_part, store_items};
use super::softmax::{exponentials, greatest, kept_of, pack, refer, scale, take};
use super::state::{Inputs, Next, Tiles, Wave, Work};
use crate::attention::plan::Plan;
use crate::attention::problem::Geometry;
use crate::matrix::hint::fence;
use crate::matrix::product::product;

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
    take(
        inputs,
        wave,
        &products,
        work,
        geometry,
        0u32,
        pairs,
        Next::Masked,
        plan,
    );
    tiles
}

/// Tiles of D before any product.
#[cube]
pub(crate) fn zeros<ND: Size>(#[comptime] tiles: usize) -> Array<Vector<f32, ND>> {
    let mut zeros = Array::new(tiles);
    #[unroll]
    for t in 0..tiles {
        zeros[t] = Vector::<f32, ND>::zero();
    }
    zeros
}

/// Adds the product of fragment `step` of read `read` of A with its fragment of B.
#[cube]
fn multiply<E: Numeric, NA: Size, NB: Size, ND: Size>(
    a: &Array<Vector<E, NA>>,
    b: &Array<Vector<E, NB>>,
    d: &mut Array<Vector<f32, ND>>,
    #[comptime] read: usize,
    #[comptime] step: usize,
    #[comptime] order: Order,
    #[comptime] plan: Plan,
) {
    let (tile, first) = comptime!(order.of(read));
    let a = a[comptime!(read * order.steps + step)];
    let b = b[comptime!(first + step)];
    d[tile] = product::<E, f32, NA, NB, ND>(a, b, d[tile], comptime!(plan.instruction));
}

/// Turns the scores of `tile` into probabilities, and adds their values to the output; meanwhile computes the scores of
/// what is `next`, and passes on the tiles after that.
///
/// Each matrix instruction is followed by as much of the other work as it hides, and by a fence that keeps it so.
#[cube]
pub(crate) fn step<
    E: Numeric,
    NA: Size,
    NB: Size,
    ND: Size,
    NP: Size,
    WK: Size,
    WV: Size,
    SK: Size,
    SV: Size,
>(
    inputs: &Inputs<'_, E, WK, WV>,
    tiles: &mut Tiles<E, SK, SV>,
    wave: &mut Wave<E, NB, ND>,
    work: &Work,
    geometry: &Geometry,
    tile: u32,
    #[comptime] next: Next,
    #[comptime] plan: Plan,
) {
    let half = tile % 2;
    let mut products = zeros::<ND>(comptime!(plan.sum_tiles()));
    let mut values = Array::<Vector<E, NA>>::new(comptime!(plan.value_order().products()));
    let most = greatest(&wave.state, comptime!(plan.clone()));
    sync_cube();
    let probabilities = score::<E, NA, NB, ND, NP, SK, SV>(
        tiles,
        wave,
        &mut products,
        &mut values,
        &most,
        work,
        geometry,
        tile,
        next,
        comptime!(plan.clone()),
    );
    let products = settled(products, comptime!(plan.clone()));
    let (order, layout) = comptime!((plan.value_order(), plan.value_layout()));
    let copying = comptime!(Copying::of(&plan));
    let (keys, value_copy, target) = comptime!((plan.key_copy(), plan.value_copy(), plan.target));
    let mut of_k = Array::<u32>::new(comptime!(keys.accesses()));
    let mut of_v = Array::<u32>::new(comptime!(value_copy.accesses()));
    let base = half * comptime!(layout.len() as u32);
    let size = comptime!(plan.keys as u32);
    #[unroll]
    for i in 0..comptime!(order.reads) {
        let ahead = comptime!(i + plan.ahead());
        read(
            &tiles.values,
            base,
            &work.lane,
            &mut values,
            ahead,
            order,
            layout,
        );
        #[unroll]
        for s in 0..comptime!(order.steps) {
            multiply(
                &values,
                &probabilities,
                &mut wave.output,
                i,
                s,
                order,
                comptime!(plan.clone()),
            );
            if comptime!(next != Next::None) {
                let (at, count) = comptime!((i * order.steps + s, order.products()));
                let (items, accesses) = comptime!(copying.after(at));
                store_items::<E, WK, WV, SK, SV>(
                    tiles,
                    half,
                    1 - half,
                    items,
                    comptime!(plan.clone()),
                );
                let (key, value) = ((tile + 3) * size, (tile + 2) * size);
                find(
                    &mut of_k,
                    &mut of_v,
                    work,
                    key,
                    value,
                    accesses,
                    comptime!(plan.clone()),
                );
                if comptime!(copying.reads_after(at)) {
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
                        value_copy,
                        target,
                    );
                }
                let pairs = comptime!(late_part(plan.pairs(), count, at));
                let first = (tile + 1) * size;
                take(
                    inputs,
                    wave,
                    &products,
                    work,
                    geometry,
                    first,
                    pairs,
                    next,
                    comptime!(plan.clone()),
                );
            }
            fence(comptime!(plan.target));
        }
    }
}

/// The first half of a step: probabilities of `tile` as fragments of P^T; `products`, S^T of the next tile; the first of the
/// fragments of `values`.
#[cube]
fn score<E: Numeric, NA: Size, NB: Size, ND: Size, NP: Size, SK: Size, SV: Size>(
    tiles: &mut Tiles<E, SK, SV>,
    wave: &mut Wave<E, NB, ND>,
    products: &mut Array<Vector<f32, ND>>,
    values: &mut Array<Vector<E, NA>>,
    most: &Array<f32>,
    work: &Work,
    geometry: &Geometry,
    tile: u32,
    #[comptime] next: Next,
    #[comptime] plan: Plan,
) -> Array<Vector<E, NB>> {
    let (order, layout) = comptime!((plan.key_order(), plan.key_layout()));
    let (value_order, value_layout) = comptime!((plan.value_order(), plan.value_layout()));
    let base = (1 - tile % 2) * comptime!(layout.len() as u32);
    let value_base = tile % 2 * comptime!(value_layout.len() as u32);
    let keep = kept_of(
        work,
        geometry,
        tile * comptime!(plan.keys as u32),
        comptime!(plan.clone()),
    );
    let mut probabilities = Array::<f32>::new(comptime!(2 * plan.pairs()));
    let mut fragments = Array::<Vector<E, NB>>::new(comptime!(plan.value_steps()));
    let mut factors = Array::<f32>::new(comptime!(plan.columns()));
    // Without a next tile, only the reads of V that the second half counts on.
    let reads = comptime!(if next == Next::None { 0 } else { order.reads });
    let mut keys = Array::<Vector<E, NA>>::new(comptime!(order.products()));
    #[unroll]
    for i in 0..comptime!(reads + plan.ahead()) {
        if comptime!(i < reads) {
            read(&tiles.keys, base, &work.lane, &mut keys, i, order, layout);
        } else {
            let i = comptime!(i - reads);
            read(
                &tiles.values,
                value_base,
                &work.lane,
                values,
                i,
                value_order,
                value_layout,
            );
        }
        if comptime!(i >= plan.ahead()) {
            let i = comptime!(i - plan.ahead());
            #[unroll]
            for s in 0..comptime!(order.steps) {
                let (at, count) = comptime!((i * order.steps + s, order.products()));
                multiply(
                    &keys,
                    &wave.queries,
                    products,
                    i,
                    s,
                    order,
                    comptime!(plan.clone()),
                );
                if comptime!(at == late(count)) {
                    refer(wave, most, &mut factors, comptime!(plan.clone()));
                }
                scale(
                    wave,
                    &factors,
                    comptime!(late_part(plan.output_tiles(), count, at)),
                    comptime!(plan.clone()),
                );
                let pairs = comptime!(late_part(plan.pairs(), count, at));
                exponentials(
                    wave,
                    &mut probabilities,
                    &keep,
                    pairs,
                    comptime!(plan.clone()),
                );
                if comptime!(!plan.exchanges()) {
                    pack::<E, NB, NP>(
                        &probabilities,
                        &mut fragments,
                        pairs,
                        comptime!(plan.clone()),
                    );
                }
                fence(comptime!(plan.target));
            }
        }
    }
    if comptime!(next == Next::None) {
        refer(wave, most, &mut factors, comptime!(plan.clone()));
        let tiles = comptime!((0, plan.output_tiles()));
        scale(wave, &factors, tiles, comptime!(plan.clone()));
        let pairs = comptime!((0, plan.pairs()));
        exponentials(
            wave,
            &mut probabilities,
            &keep,
            pairs,
            comptime!(plan.clone()),
        );
        if comptime!(!plan.exchanges()) {
            pack::<E, NB, NP>(
                &probabilities,
                &mut fragments,
                pairs,
                comptime!(plan.clone()),
            );
        }
    }
    if comptime!(plan.exchanges()) {
        let columns = in_b(&probabilities, work.lane.lane, comptime!(plan.clone()));
        let all = comptime!((0, plan.keys / 2));
        pack::<E, NB, NP>(&columns, &mut fragments, all, plan);
    }
    fragments
}
