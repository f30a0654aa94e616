//! A tile of a tensor, found in the table.

use cubecl_core as cubecl;
use cubecl_core::prelude::*;

use super::table::{TILE, WORDS};

/// Elements `first..end` of the flat buffers, all of one tensor.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Tile {
    pub first: u32,
    pub end: u32,
    pub flags: u32,
}

/// Tile number `tile`: of the last tensor that begins at it or before.
#[cube]
pub(super) fn find(table: &[u32], tensors: u32, tile: u32) -> Tile {
    let mut low = 0u32;
    let mut high = tensors;
    while high - low > 1 {
        let middle = (low + high) / 2;
        if table[(middle * WORDS) as usize] <= tile {
            low = middle;
        } else {
            high = middle;
        }
    }
    let at = low * WORDS;
    let within = (tile - table[at as usize]) * TILE;
    let offset = table[(at + 1) as usize];
    let length = table[(at + 2) as usize];
    Tile {
        first: offset + within,
        end: offset + min(length, within + TILE),
        flags: table[(at + 3) as usize],
    }
}
