//! Where biases may lie.

use frontier_kernels::attention::{BiasStrides, Problem};

/// Pairs of biases of `problem`: broadcast along each of their dimensions, shared by batch entries, turned on their side, with
/// gaps, and beginning anywhere.
pub fn layouts(problem: &Problem) -> Vec<[BiasStrides; 2]> {
    let Problem {
        heads,
        queries,
        keys,
        ..
    } = *problem;
    let strides = |divisor, [batch, head, query, key]: [u32; 4]| BiasStrides {
        divisor,
        batch,
        head,
        query,
        key,
    };
    let plane = queries * keys;
    let mask = strides(1, [keys, 0, 0, 1]);
    vec![
        [mask, strides(2, [heads * plane, plane, keys, 1])],
        [
            strides(1, [0, 0, keys, 1]),
            strides(1, [heads * plane, plane, 1, queries]),
        ],
        [
            strides(1, [0, keys, 0, 1]),
            strides(1, [0, queries * (keys + 3), keys + 3, 1]),
        ],
        [
            strides(1, [3 * plane, 0, 3 * keys, 3]),
            strides(1, [2 * keys, 0, 0, 2]),
        ],
        [
            mask,
            strides(1, [heads * (plane + 1) + 2, plane + 1, keys, 1]),
        ],
        [mask, strides(2, [heads * keys, keys, 0, 1])],
    ]
}
