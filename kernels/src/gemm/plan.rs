//! What a GEMM kernel is generated from, and what follows from that.

use super::problem::{Epilogue, Layout, Shape};
use super::tile::{BLOCK, Fragment, Operand, Role, Tiling};
use crate::matrix::instruction::{Element, Instruction, Target, Unit};

/// What a GEMM kernel is generated from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Plan {
    /// The GPU.
    pub(crate) target: Target,
    /// What multiplies.
    pub(crate) instruction: Instruction,
    /// Type of A, B, bias, residual and pre-activation: f16, bf16 or f32.
    pub(crate) element: Element,
    /// Type of C: `element` or f32.
    pub(crate) output: Element,
    /// How A and B lie.
    pub(crate) layout: Layout,
    /// How the work is divided.
    pub(crate) tiling: Tiling,
    /// Elements that an access of A and B in global memory takes: powers of two that divide the distance of neighbouring rows
    /// and of batches, and the extent along a row.
    pub(crate) width: (usize, usize),
    /// What follows the product.
    pub(crate) epilogue: Epilogue,
    /// The sums over K of A's or B's elements (the gradient of a bias, where that is the gradient of a linear layer's output) are
    /// left in a workspace. Layout [`Layout::Tn`] only.
    pub(crate) sums_of: Option<Role>,
    /// K is split: f32 sums of each part are left in a workspace, and the epilogue is the reduction's.
    pub(crate) split: bool,
}

impl Plan {
    /// Type of A, B, bias, residual and pre-activation.
    pub const fn element(&self) -> Element {
        self.element
    }

    /// Type of C.
    pub const fn output(&self) -> Element {
        self.output
    }

    /// How A and B lie.
    pub const fn layout(&self) -> Layout {
        self.layout
    }

    /// How the work is divided.
    pub const fn tiling(&self) -> Tiling {
        self.tiling
    }

    /// Elements that an access of A and B in global memory takes.
    pub const fn width(&self) -> (usize, usize) {
        self.width
    }

    /// What follows the product.
    pub const fn epilogue(&self) -> Epilogue {
        self.epilogue
    }

    /// The operand whose sums over K are left beside the product.
    pub const fn sums_of(&self) -> Option<Role> {
        self.sums_of
    }

    /// Whether K is split.
    pub const fn is_split(&self) -> bool {
        self.split
    }

    /// Elements of a chunk: 16 bytes, but not more than the four of WebGPU's vectors where nothing is known.
    pub const fn chunk(&self) -> usize {
        match self.target {
            Target::Portable => 4,
            _ => 16 / self.element.bytes(),
        }
    }

    /// What the product's kernel does: with a split plan the rest is the reduction's.
    pub fn tile_epilogue(&self) -> Epilogue {
        if self.split {
            Epilogue::default()
        } else {
            self.epilogue
        }
    }

    /// Type of what the product's kernel writes.
    pub const fn tile_output(&self) -> Element {
        if self.split {
            Element::F32
        } else {
            self.output
        }
    }

    /// Whether a workgroup computes two sums for each element that it writes.
    pub const fn paired(&self) -> bool {
        self.epilogue.activation.paired() && !self.split
    }

    /// Columns of the matrix of sums, for `n` columns of C.
    pub const fn columns(&self, n: usize) -> usize {
        if self.epilogue.activation.paired() {
            2 * n
        } else {
            n
        }
    }

    /// Whether the products of a tile of K are a loop at run time, so that the text is short: CubeCL's passes take a time that is
    /// quadratic in its length, and plain multiply-adds are many.
    pub const fn loops(&self) -> bool {
        matches!(self.instruction.unit, Unit::Fma) && self.instruction.m > 4
    }

    /// Rows and columns of sums that a wave has.
    pub const fn wave_tile(&self) -> (usize, usize) {
        (
            self.tiling.tiles.0 * self.instruction.m,
            self.tiling.tiles.1 * self.instruction.n,
        )
    }

    /// Rows and columns of sums that a workgroup has.
    pub const fn workgroup_tile(&self) -> (usize, usize) {
        let (rows, columns) = self.wave_tile();
        (self.tiling.waves.0 * rows, self.tiling.waves.1 * columns)
    }

    /// Rows and columns of C that a workgroup has.
    pub const fn result_tile(&self) -> (usize, usize) {
        let (rows, columns) = self.workgroup_tile();
        (rows, if self.paired() { columns / 2 } else { columns })
    }

    /// Units of a workgroup.
    pub const fn units(&self) -> usize {
        self.tiling.waves.0 * self.tiling.waves.1 * self.instruction.lanes
    }

    /// An operand's tile.
    pub const fn operand(&self, role: Role) -> Operand {
        let (rows, columns) = self.workgroup_tile();
        let (outer, width) = match role {
            Role::Rows => (rows, self.width.0),
            Role::Columns => (columns, self.width.1),
        };
        let paired = matches!(role, Role::Columns) && self.paired();
        Operand {
            outer,
            depth: self.tiling.depth,
            chunk: self.chunk(),
            width,
            along_k: self.layout.along_k(role),
            units: self.units(),
            pair: if paired {
                Some(self.wave_tile().1)
            } else {
                None
            },
        }
    }

    /// An operand's fragment.
    pub fn fragment(&self, role: Role) -> Fragment {
        Fragment::of(&self.instruction, role, self.chunk())
    }

    /// A wave's tiles along an operand's dimension of C, and the extent of one.
    pub const fn tiles(&self, role: Role) -> (usize, usize) {
        match role {
            Role::Rows => (self.tiling.tiles.0, self.instruction.m),
            Role::Columns => (self.tiling.tiles.1, self.instruction.n),
        }
    }

    /// How often a lane reads of a tile in shared memory.
    pub fn reads(&self) -> usize {
        self.tiling.depth / self.fragment(Role::Rows).depth
    }

    /// Instructions along K that a read serves.
    pub fn steps(&self) -> usize {
        self.fragment(Role::Rows).steps
    }

    /// Chunks that a lane holds of an operand.
    pub fn held(&self, role: Role) -> usize {
        let fragment = self.fragment(role);
        self.tiles(role).0 * fragment.outers.len() * fragment.chunks
    }

    /// Tiles of K; one of zeros if there is nothing to sum.
    pub const fn depth_tiles(&self, k: usize) -> usize {
        let tiles = k.div_ceil(self.tiling.depth);
        if tiles == 0 { 1 } else { tiles }
    }

    /// Sums over K of an operand's elements that a unit holds.
    pub const fn sums_held(&self) -> usize {
        match self.sums_of {
            Some(role) => self.operand(role).turns() * BLOCK,
            None => 1,
        }
    }

    /// Elements of the result of [`Plan::sums_of`].
    pub const fn sums_extent(&self, shape: &Shape) -> usize {
        match self.sums_of {
            Some(Role::Rows) => shape.m,
            Some(Role::Columns) => shape.n,
            None => 0,
        }
    }

    /// Bytes of shared memory.
    pub const fn shared_memory(&self) -> usize {
        let (rows, columns) = self.workgroup_tile();
        (rows + columns) * self.tiling.depth * self.element.bytes()
    }
}
