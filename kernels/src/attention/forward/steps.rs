//! A step of the loop over tiles of keys.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use super::biases::{Biases, fetch_terms, read_terms, store_terms};
use super::copy::fetch;
use super::products::{Order, in_b, read, settled};
use super::refill::{Copying, find, late, late_part, store_items};
use super::softmax::{exponentials, greatest, kept_of, pack, refer, scale, take};
use super::state::{Inputs, Next, Tiles, Wave, Work};
use crate::attention::plan::Plan;
use crate::attention::problem::Geometry;
use crate::matrix::hint::fence;
use crate::matrix::product::product;

/// Reads the terms of some pairs of scores, if there are any.
#[cube]
pub(super) fn next_terms<E: Numeric, SK: Size, SV: Size>(
    tiles: &Tiles<E, SK, SV>,
    biases: &mut Biases,
    work: &Work,
    half: u32,
    #[comptime] pairs: (usize, usize),
    #[comptime] plan: Plan,
) {
    if comptime!(plan.stages_terms()) {
        read_terms(&tiles.terms, biases, work, half, pairs, plan);
    }
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
pub(super) fn multiply<E: Numeric, NA: Size, NB: Size, ND: Size>(
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
    let mut biases = Biases::new(comptime!(plan.clone()));
    if comptime!(next != Next::None && plan.bias != [None; 2]) {
        let first = (tile + 1) * comptime!(plan.keys as u32);
        let checked = comptime!(next == Next::Masked);
        let plan = comptime!(plan.clone());
        let (bias1, bias2) = (inputs.bias1, inputs.bias2);
        biases.fetch(bias1, bias2, work, geometry, first, checked, plan);
    }
    sync_cube();
    if comptime!(plan.stages_terms() && next != Next::None) {
        store_terms(&mut tiles.terms, half, comptime!(plan.clone()));
        let first = (tile + 3) * comptime!(plan.keys as u32);
        fetch_terms(
            inputs,
            work,
            geometry,
            first,
            &mut tiles.terms,
            comptime!(plan.clone()),
        );
    }
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
    if comptime!(next != Next::None) {
        let pairs = comptime!(late_part(plan.pairs(), order.products(), 0));
        next_terms(
            &*tiles,
            &mut biases,
            work,
            1 - half,
            pairs,
            comptime!(plan.clone()),
        );
    }
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
                let pairs = comptime!(late_part(plan.pairs(), count, at + 1));
                next_terms(
                    &*tiles,
                    &mut biases,
                    work,
                    1 - half,
                    pairs,
                    comptime!(plan.clone()),
                );
                let pairs = comptime!(late_part(plan.pairs(), count, at));
                let first = (tile + 1) * size;
                take(
                    inputs,
                    wave,
                    &products,
                    &biases,
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
