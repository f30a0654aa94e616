//! What is compiled into a kernel of the backward pass.

use super::super::bias::{Access, Form, Rows};
use super::super::blocks::Blocks;
use super::super::problem::{Problem, Variant};
use super::ends::GradientStrides;
use super::layout::lane_rows;
use crate::error::{Error, Result};
use crate::matrix::instruction::{Element, INSTRUCTIONS, Instruction, SPREAD, Target, Unit};
use crate::matrix::narrow::widening;

/// Elements of a row that one unit stages at a time, and rows if it turns them.
pub(super) const BLOCK: usize = 4;

/// What a workgroup owns, and so which sums it keeps in registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Keys: it passes over the queries, and sums dK and dV.
    KeyValue,
    /// Queries: it passes over the keys, and sums dQ.
    Query,
    /// Pairs of queries and keys: it passes over all that share a bias, and sums the gradient of the scores.
    Pair,
}

/// A kernel of the backward pass.
///
/// The scores are computed with the streamed rows as rows of D and the owned positions as its columns, so that what is left
/// in D is the second factor of the next product: P and dS of the owned columns, multiplied from the left by the streamed
/// rows turned on their side. Nothing passes between lanes. Where one D is half of such a factor (NVIDIA), a tile has two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Plan {
    /// What it is generated for.
    pub(crate) target: Target,
    /// Element type of Q, K, V, O and their gradients.
    pub(crate) element: Element,
    /// The matrix instruction.
    pub(crate) instruction: Instruction,
    /// What the attention computes.
    pub(crate) variant: Variant,
    /// How the biases are read.
    pub(crate) bias: [Option<Access>; 2],
    /// What a workgroup owns.
    pub(crate) role: Role,
    /// Waves of a workgroup; each owns `instruction.n` columns.
    pub(crate) waves: usize,
    /// Waves, 1 or 2, that own the same columns: each has its part of the head dimension.
    pub(crate) split: usize,
    /// Tiles that are staged at a time.
    pub(crate) row_tiles: usize,
    /// Elements of an access to global memory: 1, 2 or 4.
    pub(crate) width: usize,
    /// Whether dS is also summed over the queries, for the gradient of a bias that varies along keys.
    pub(crate) key_sums: bool,
}

impl Plan {
    /// The kernel of `role` for `problem`, whose tensors of elements lie at `strides`.
    ///
    /// # Errors
    /// A problem that no kernel takes, or an element type other than f16, bf16 and f32.
    pub fn choose(
        target: Target,
        element: Element,
        problem: &Problem,
        role: Role,
        width: usize,
    ) -> Result<Self> {
        check(problem)?;
        let head_dim = problem.head_dim as usize;
        let instruction = instruction(target, element, head_dim, role)?;
        let mut plan = Self {
            target,
            element,
            instruction,
            variant: problem.variant(),
            bias: accesses(problem, element, &instruction, role),
            role,
            // Of 512 units a compiler for CDNA expects two waves a SIMD, and multiplies from and to the 256 registers that are
            // left; with fewer units it copies between the two register files.
            waves: if head_dim <= most_of_two_waves(role, element) {
                8
            } else {
                4
            },
            split: split(target, head_dim, role),
            row_tiles: rows(&instruction, head_dim, role) / instruction.m.max(instruction.k),
            width,
            key_sums: false,
        };
        plan.key_sums = role == Role::KeyValue && plan.has_bias(Form::Keys);
        if plan.in_blocks() {
            (plan.waves, plan.row_tiles) = (plan.blocks().waves(), 1);
            return Ok(plan);
        }
        while plan.row_tiles > 1 && plan.shared_memory() > target.shared_memory() {
            plan.row_tiles /= 2;
        }
        Ok(plan)
    }

    /// Whether rows are owned and streamed in [`Blocks`].
    pub(super) const fn in_blocks(&self) -> bool {
        Blocks::take(&self.instruction)
    }

    /// The blocks, where rows are taken in such.
    pub(super) fn blocks(&self) -> Blocks {
        let head_dim = self.variant.head_dim;
        Blocks::new(self.target, self.instruction, self.width, head_dim)
    }

    /// Whether a bias of `form` is added.
    pub(super) fn has_bias(&self, form: Form) -> bool {
        self.bias.iter().flatten().any(|bias| bias.form == form)
    }

    /// What is added to the exponents of the probabilities, to base 2: it centres what narrowing them drops, and lifts f16,
    /// of which gfx90a's products lose what is below 2^-14.
    pub fn lift(&self) -> f32 {
        let widening = match self.narrows() {
            true => widening(self.element, self.target),
            false => 0.0,
        };
        widening + self.f16_lift()
    }

    /// Whether what is known at compile time is added last to a place in shared memory: only then NVIDIA's compiler leaves it to the
    /// instruction that reads there, and has a register for few places instead of each.
    pub(super) fn known_last(&self) -> bool {
        self.target == Target::Cuda
    }

    /// Whether the tiles of a stage are passed over by a loop, not by a text each: plain multiply-adds are many.
    pub(super) fn loops(&self) -> bool {
        self.instruction.unit == Unit::Fma && self.role != Role::Pair
    }

    /// Whether lanes share a column without a matrix unit.
    pub(super) fn spreads(&self) -> bool {
        self.instruction == SPREAD
    }

    /// Whether P and dS are narrowed in pairs.
    pub(super) fn narrows(&self) -> bool {
        self.instruction.b.elements > 1
    }

    /// The factor that takes the lift back from a product with narrowed probabilities.
    pub fn lowering(&self) -> f32 {
        (-self.f16_lift()).exp2()
    }

    fn f16_lift(&self) -> f32 {
        if self.element == Element::F16 {
            6.0
        } else {
            0.0
        }
    }

    /// Lanes that share a query in the sum of dO O.
    pub fn statistics_lanes(&self) -> usize {
        self.target.lanes().min(16)
    }

    /// Rows that are staged at a time.
    pub fn rows(&self) -> usize {
        match self.in_blocks() {
            true => self.blocks().streamed(),
            false => self.row_tiles * self.tile_rows(),
        }
    }

    /// Columns of a workgroup.
    pub fn columns(&self) -> usize {
        match self.in_blocks() {
            true => self.blocks().owned(),
            false => self.waves / self.split * self.instruction.n,
        }
    }

    /// What it is generated for.
    pub const fn target(&self) -> Target {
        self.target
    }

    /// The matrix instruction.
    pub const fn instruction(&self) -> Instruction {
        self.instruction
    }

    /// Units of a workgroup.
    pub fn units(&self) -> usize {
        self.waves * self.instruction.lanes
    }

    /// Elements of a row, filled up so that it is whole in tiles and in fragments.
    pub fn padded(&self) -> usize {
        let part = self.tile_rows().max(self.groups() * BLOCK);
        self.variant.head_dim.next_multiple_of(part * self.split)
    }

    /// Elements of a row, filled up, of which a wave has fragments and sums.
    pub fn own_part(&self) -> usize {
        self.padded() / self.split
    }

    /// Lanes that share a row of A, each with its own part of the inner dimension.
    pub fn groups(&self) -> usize {
        self.instruction.a.column.modulo
    }

    /// Elements of the inner dimension that a lane holds of a fragment.
    pub fn depth(&self) -> usize {
        self.instruction.k / self.groups()
    }

    /// Neighbouring elements of a row that a lane takes, for one fragment or several.
    pub fn chunk(&self) -> usize {
        match self.element.bits() == 16 && self.own_part() % (2 * BLOCK * self.groups()) == 0 {
            true => 2 * BLOCK,
            false => BLOCK,
        }
    }

    /// Whether rows are staged a second time turned on their side: 16-bit fragments hold elements of several rows.
    pub fn turned(&self) -> bool {
        self.depth() > 1
    }

    /// Elements of an access to staged rows.
    pub fn staged_width(&self) -> usize {
        match self.turned() || self.spreads() {
            _ if self.in_blocks() => self.blocks().scores.chunk(),
            true => BLOCK,
            false => 1,
        }
    }

    /// Elements from one staged row to the next: whole ones, and some that spread the rows over the banks.
    pub fn row_pitch(&self) -> usize {
        self.padded()
            + match self.instruction.unit {
                // Eight lanes read 16 bytes each of two rows at a time, or sixteen 8 bytes each of four.
                Unit::Mma => {
                    let lanes = 4 * self.chunk();
                    (lanes + 64 - self.padded() % 64) % 64
                }
                _ => self.pad(self.chunk()),
            }
    }

    /// Elements from one turned row to the next.
    pub fn turned_pitch(&self) -> usize {
        self.rows()
            + match self.instruction.unit {
                // Sixteen lanes read 8 bytes each of four rows at a time.
                Unit::Mma if self.rows() % 32 == 16 => 0,
                Unit::Mma => 16,
                _ if self.rows() % 32 == 0 => self.pad(2 * BLOCK),
                _ => self.pad(BLOCK),
            }
    }

    fn pad(&self, turned: usize) -> usize {
        match self.instruction.unit {
            Unit::Fma => 0,
            _ if self.turned() => turned,
            _ => 1,
        }
    }

    /// Tensors that are staged turned: none for a sum of dS, X for dQ, and Y too for dK and dV.
    pub fn turned_tensors(&self) -> usize {
        match self.role {
            _ if !self.turned() => 0,
            Role::KeyValue => 2,
            Role::Query => 1,
            Role::Pair => 0,
        }
    }

    /// Sums in f32 that waves which share columns tell one another: S and dP of a tile.
    pub(super) fn told(&self) -> usize {
        match self.split {
            1 => 0,
            _ => 2 * self.tile_elements() * self.units(),
        }
    }

    /// Shared memory of a workgroup, bytes.
    pub fn shared_memory(&self) -> usize {
        if self.in_blocks() {
            return self.blocks().shared_memory();
        }
        let natural = 2 * self.rows() * self.row_pitch();
        let turned = self.turned_tensors() * self.padded() * self.turned_pitch();
        (natural + turned) * self.element.bytes()
            + (2 * self.rows() + self.told()) * size_of::<f32>()
    }
}

/// Whether there are kernels for `problem`.
pub(super) fn check(problem: &Problem) -> Result<()> {
    problem.check()?;
    if problem.bias.iter().flatten().any(|bias| bias.key == 0) {
        return Err(Error::argument(
            "attention backward",
            "a bias does not vary along keys",
            "leave it out: the softmax does not depend on it",
        ));
    }
    Ok(())
}

/// The widest access that Q, K, V, O and their gradients allow.
pub(super) fn width(problem: &Problem, gradient: &GradientStrides) -> usize {
    let of = [problem.q, problem.k, problem.v, problem.o];
    let with = [gradient.q, gradient.k, gradient.v, gradient.o];
    problem.vector_width(BLOCK, &[of, with].concat())
}

/// How the kernel of `role` reads the biases of `problem`.
pub(super) fn accesses(
    problem: &Problem,
    element: Element,
    instruction: &Instruction,
    role: Role,
) -> [Option<Access>; 2] {
    let rows = match role {
        Role::Query => Rows::Keys,
        _ => Rows::Queries,
    };
    let most = lane_rows(*instruction);
    let access = |bias| Access::of(bias, problem, element, rows, most);
    problem.bias.map(|bias| bias.map(access))
}

/// The larger tile, unless the head dimension would have to be filled up for it, or the sums and fragments of its columns
/// would not fit in 256 registers.
fn instruction(
    target: Target,
    element: Element,
    head_dim: usize,
    role: Role,
) -> Result<Instruction> {
    if target == Target::Cuda && element == Element::F32 {
        return Ok(SPREAD);
    }
    let most = match (role, element) {
        (Role::KeyValue, _) | (_, Element::F32) => 64,
        _ => 128,
    };
    // Without matrix instructions rows are taken in blocks.
    let blocks = target == Target::Portable;
    let usable = INSTRUCTIONS
        .iter()
        .filter(|i| (i.operand, i.accumulator) == (element, Element::F32) && i.exists_on(target))
        .filter(|i| Blocks::take(i) == blocks);
    let fits = |i: &Instruction| i.m <= 16 || head_dim % i.m == 0 && head_dim <= most;
    usable.copied().find(fits).ok_or_else(|| {
        Error::argument(
            "attention backward",
            format!("elements are {element:?}"),
            "use f16, bf16 or f32",
        )
    })
}

/// Rows that are staged at a time. RDNA3's fragments take twice the registers of others, and leave fewer for staging.
fn rows(instruction: &Instruction, head_dim: usize, role: Role) -> usize {
    match (instruction.unit, head_dim) {
        // Pairs are summed in registers, by a text for each.
        (Unit::Fma, _) if role == Role::Pair => 8.max(instruction.m),
        (Unit::Wmma { .. }, _) => 16,
        // NVIDIA's compiler spills with others, be it to make room for a second workgroup.
        (Unit::Mma, 0..=32) if role != Role::KeyValue => 32,
        (Unit::Mma, 65..) => 16,
        (Unit::Fma, _) if *instruction == SPREAD => match (role, head_dim) {
            (Role::KeyValue, 33..=64) => 64,
            _ => 16,
        },
        (_, 0..=64) => 64,
        _ => 32,
    }
}

/// Waves that share columns: longer rows of the owned columns and of their sums would not fit in NVIDIA's 255 registers a lane.
fn split(target: Target, head_dim: usize, role: Role) -> usize {
    match (target, head_dim) {
        (Target::Cuda, 129..) if role != Role::Pair => 2,
        _ => 1,
    }
}

/// Largest head dimension for which two waves a SIMD find room for their sums and fragments.
fn most_of_two_waves(role: Role, element: Element) -> usize {
    match (role, element) {
        (Role::KeyValue, _) => 128,
        (_, Element::F32) => 200,
        _ => 256,
    }
}
