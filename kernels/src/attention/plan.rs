//! How a forward kernel is laid out for a target.

use super::bias::{Access, Rows};
use super::blocks::Blocks;
use super::problem::{BiasStrides, Problem, Variant};
use crate::error::{Error, Result};
use crate::hip::emit::Source;
use crate::matrix::instruction::{Element, INSTRUCTIONS, Instruction, SPREAD, Target, Unit};

/// Elements of a quad, the unit in which tiles lie in shared memory.
pub(crate) const QUAD: usize = 4;

/// A forward kernel: each wave has `instruction.n` queries, a workgroup walks over the keys `keys` at a time. A lane has one
/// query, or with [`Unit::Mma`] two.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Plan {
    /// What it is generated for.
    pub(crate) target: Target,
    /// The instruction of both products.
    pub(crate) instruction: Instruction,
    /// Type of Q, K, V, O and the biases.
    pub(crate) element: Element,
    /// What is computed.
    pub(crate) variant: Variant,
    /// Waves of a workgroup.
    pub(crate) waves: usize,
    /// Keys of a tile, a multiple of 16 and of `instruction.m`.
    pub(crate) keys: usize,
    /// Elements of an access to Q, K and O, in memory.
    pub(crate) width: usize,
    /// How the biases are read.
    pub(crate) bias: [Option<Access>; 2],
}

impl Plan {
    /// The plan for `problem` with tensors of `element` on `target`.
    ///
    /// # Errors
    /// Sizes or an element type that no kernel takes.
    pub fn choose(target: Target, element: Element, problem: &Problem) -> Result<Self> {
        let instruction = instruction(target, element, problem.head_dim as usize)?;
        Self::with(target, instruction, problem)
    }

    /// The plan of plain multiply-adds, which every target has, in blocks.
    ///
    /// # Errors
    /// As [`Plan::choose`].
    pub fn plain(target: Target, element: Element, problem: &Problem) -> Result<Self> {
        let head_dim = problem.head_dim as usize;
        let plan = Self::with(
            Target::Portable,
            instruction(Target::Portable, element, head_dim)?,
            problem,
        )?;
        Ok(Self { target, ..plan })
    }

    /// As this plan was chosen, for another problem.
    ///
    /// # Errors
    /// As [`Plan::choose`].
    pub(super) fn again(&self, problem: &Problem) -> Result<Self> {
        match self.in_blocks() {
            true => Self::plain(self.target, self.element, problem),
            false => Self::choose(self.target, self.element, problem),
        }
    }

    fn with(target: Target, instruction: Instruction, problem: &Problem) -> Result<Self> {
        problem.check()?;
        let (variant, element) = (problem.variant(), instruction.operand);
        let tensors = [problem.q, problem.k, problem.v, problem.o];
        // WGSL has vectors of at most four elements.
        let most = match target {
            Target::Portable => QUAD,
            _ => 16 / element.bytes(),
        };
        let width = problem.vector_width(most, &tensors);
        let (waves, keys) = if Blocks::take(&instruction) {
            let blocks = Blocks::new(target, instruction, width, variant.head_dim);
            (blocks.waves(), blocks.streamed())
        } else {
            shape(&instruction, &variant)
        };
        let most = instruction.run();
        let access = |bias| Access::of(bias, problem, element, Rows::Keys, most);
        Ok(Self {
            target,
            instruction,
            element,
            variant,
            waves,
            keys,
            width,
            bias: problem.bias.map(|bias| bias.map(access)),
        })
    }

    /// Type of Q, K, V, O and the biases.
    pub const fn element(&self) -> Element {
        self.element
    }

    /// The instruction of both products.
    pub const fn instruction(&self) -> Instruction {
        self.instruction
    }

    /// Elements of an access to Q, K and O, in memory.
    pub const fn width(&self) -> usize {
        self.width
    }

    /// How the biases are read.
    pub const fn bias(&self) -> [Option<Access>; 2] {
        self.bias
    }

    /// Units of a workgroup.
    pub fn units(&self) -> usize {
        self.waves * self.instruction.lanes
    }

    /// Queries of a workgroup.
    pub fn queries(&self) -> usize {
        match self.in_blocks() {
            true => self.blocks().owned(),
            false => self.waves * self.instruction.n,
        }
    }

    /// Whether queries and keys are taken in [`Blocks`].
    pub(crate) fn in_blocks(&self) -> bool {
        Blocks::take(&self.instruction)
    }

    /// The blocks, where queries and keys are taken in such.
    pub(crate) fn blocks(&self) -> Blocks {
        let head_dim = self.variant.head_dim;
        Blocks::new(self.target, self.instruction, self.width, head_dim)
    }

    /// The kernel's text.
    ///
    /// # Errors
    /// [`Target::Portable`].
    pub fn source(&self) -> Result<Source> {
        super::forward::source(self)
    }

    /// Its name in the catalog.
    pub fn name(&self) -> String {
        let Variant {
            head_dim,
            causal,
            bias,
            packed,
            dropout,
        } = self.variant;
        let mut name = format!("attention_d{head_dim}");
        let switches = [
            (causal, "causal"),
            (bias[0], "bias1"),
            (bias[1], "bias2"),
            (packed, "packed"),
            (dropout, "dropout"),
        ];
        for (_, switch) in switches.into_iter().filter(|(on, _)| *on) {
            name.push('_');
            name.push_str(switch);
        }
        if self.width * self.element.bytes() < 16 {
            name.push_str(&format!("_width{}", self.width));
        }
        if self.instruction.unit == Unit::Fma {
            name.push_str("_fma");
        }
        format!("{name}_{:?}_{:?}", self.element, self.target).to_lowercase()
    }

    /// Units that stand for one value of a lane's contraction axis: 1 if each lane has all of it.
    pub(crate) fn groups(&self) -> usize {
        self.instruction.a.column.modulo
    }

    /// Whether an operand's elements run along its rows, not along the contraction: V, and K unless lanes share its columns.
    pub(crate) fn along_rows(&self) -> bool {
        self.instruction.unit == Unit::Fma
    }

    /// Whether those of K do.
    pub(crate) fn keys_along_rows(&self) -> bool {
        self.along_rows() && !self.spreads()
    }

    /// Whether lanes share a column without a matrix unit.
    pub(crate) fn spreads(&self) -> bool {
        self.instruction == SPREAD
    }

    /// The target whose way of narrowing is taken: two at a time, if a fragment has two.
    pub(crate) fn narrowing(&self) -> Target {
        match self.instruction.unit {
            Unit::Fma => Target::Portable,
            _ => self.target,
        }
    }

    /// Whether lanes exchange what D holds before it is B: on RDNA3, and where a column is spread over lanes.
    pub(crate) fn exchanges(&self) -> bool {
        matches!(self.instruction.unit, Unit::Wmma { .. }) || self.spreads()
    }

    /// Reads of shared memory that are under way before their fragments are multiplied.
    pub(crate) fn ahead(&self) -> usize {
        match self.instruction.operand_registers() {
            // NVIDIA's compiler finds places for them itself, and registers are scarce.
            _ if self.in_pairs() => 1,
            0..=2 => 2,
            _ => 1,
        }
    }

    /// Quads that are read from shared memory at once, 16 bytes.
    pub(crate) fn unit(&self) -> usize {
        (16 / (QUAD * self.element.bytes())).max(1)
    }

    /// The head dimension as the first product contracts it: whole reads of every group of lanes.
    pub(crate) fn depth(&self) -> usize {
        let read = self.groups() * self.unit() * QUAD;
        let step = match self.keys_along_rows() {
            true => QUAD,
            false => read.max(self.instruction.k),
        };
        self.variant.head_dim.next_multiple_of(step)
    }

    /// Elements of an access to O: rows of D that follow each other in a lane.
    pub(crate) fn output_width(&self) -> usize {
        match self.instruction.d.row.offset(1) {
            1 => self
                .width
                .min(QUAD)
                .min(self.instruction.elements_of(0).len()),
            _ => 1,
        }
    }

    /// Columns of queries that a lane has.
    pub(crate) fn columns(&self) -> usize {
        self.instruction.columns().len()
    }

    /// Whether a lane group's rows of D lie in pairs, 8 apart (NVIDIA), not in runs of four.
    pub(crate) fn in_pairs(&self) -> bool {
        self.instruction.unit == Unit::Mma
    }

    /// The kernel's vector sizes: fragments of A, B and D, half of B's; accesses to Q, K, V and O; words of those to K and V.
    pub(crate) fn sizes(&self) -> [usize; 10] {
        let Instruction { a, b, d, .. } = self.instruction;
        let pairs = (b.elements / 2).max(1);
        if self.in_blocks() {
            let (width, staged) = (self.width, self.blocks().scores.chunk());
            return [
                a.elements, b.elements, d.elements, pairs, width, width, width, width, staged,
                staged,
            ];
        }
        let (key, value) = (self.key_copy(), self.value_copy());
        [
            a.elements,
            b.elements,
            d.elements,
            pairs,
            self.width,
            key.width,
            value.width,
            self.output_width(),
            key.words(),
            value.words(),
        ]
    }

    /// Tiles of S^T that a wave has of a tile of keys.
    pub(crate) fn score_tiles(&self) -> usize {
        self.keys / self.instruction.m
    }

    /// Tiles that the first product sums into: of S^T or, where a column is spread over lanes, of four keys for all of them.
    pub(crate) fn sum_tiles(&self) -> usize {
        match self.spreads() {
            true => self.keys / QUAD,
            false => self.score_tiles(),
        }
    }

    /// Fragments of P^T along the keys.
    pub(crate) fn value_steps(&self) -> usize {
        match self.spreads() {
            true => self.keys,
            false => self.keys / self.instruction.k,
        }
    }

    /// Tiles of O^T.
    pub(crate) fn output_tiles(&self) -> usize {
        self.variant.head_dim.div_ceil(self.instruction.m)
    }
}

/// Waves of a workgroup and keys of a tile.
///
/// With eight waves of 64, the compiler has to leave registers for two waves a SIMD, and needs no accumulation registers; where
/// 256 registers are too few, four.
fn shape(instruction: &Instruction, variant: &Variant) -> (usize, usize) {
    let bytes = instruction.operand.bytes();
    match (instruction.unit, bytes, variant.head_dim) {
        // Two tiles of K and V within 16 KiB, and a text of moderate length, since each lane's products are unrolled.
        (Unit::Fma, ..) if *instruction == SPREAD => (8, 16),
        (Unit::Fma, _, 0..=32) => (4, 16),
        (Unit::Fma, _, 33..=64) => (4, 8),
        (Unit::Fma, ..) => (4, 4),
        (Unit::Mfma { .. }, 2, 0..=32) if variant.bias == [false; 2] => (4, 64),
        (Unit::Mfma { .. }, 2, 0..=32) => (8, 64),
        (Unit::Mfma { .. }, 2, 33..=64) if variant.bias == [false; 2] => (8, 64),
        (Unit::Mfma { .. }, 2, 33..=64) => (8, 32),
        (Unit::Mfma { .. }, 2, 65..=80) if instruction.m == 16 => (8, 64),
        (Unit::Mfma { .. }, 2, 65..=224) => (8, 32),
        (Unit::Mfma { .. }, 2, _) => (4, 32),
        (Unit::Mfma { .. }, _, 0..=64) => (8, 32),
        (Unit::Mfma { .. }, _, 65..=128) => (4, 32),
        (Unit::Mfma { .. }, ..) => (4, 16),
        // With more keys than 16, NVIDIA's compiler spills.
        (Unit::Mma, _, 65..) => (8, 16),
        (_, _, 0..=64) => (8, 32),
        _ => (8, 16),
    }
}

/// The instruction with the least padding of `head_dim`, the larger one of two.
fn instruction(target: Target, element: Element, head_dim: usize) -> Result<Instruction> {
    if target == Target::Cuda && element == Element::F32 {
        return Ok(SPREAD);
    }
    // Without matrix instructions, in blocks.
    let blocks = target == Target::Portable;
    let usable =
        |i: &&Instruction| i.operand == element && i.exists_on(target) && Blocks::take(i) == blocks;
    // With 32 queries a wave, long rows would not fit in registers.
    let fits = |i: &&Instruction| head_dim <= 128 || i.n <= 16 || i.unit == Unit::Fma;
    let padded = |i: &&Instruction| match i.unit {
        Unit::Fma => usize::MAX,
        _ => head_dim.next_multiple_of(i.m),
    };
    let found = INSTRUCTIONS.iter().filter(usable).filter(fits);
    found.min_by_key(padded).copied().ok_or_else(|| {
        Error::argument(
            "attention",
            format!("tensors of {element:?}"),
            "pass f32, f16 or bf16",
        )
    })
}

/// Head dimensions in the catalog, and whether with a causal mask.
pub(crate) const SIZES: [(u32, bool); 5] = [
    (64, false),
    (64, true),
    (128, false),
    (128, true),
    (200, true),
];

/// What of this family stands in the catalog.
///
/// # Errors
/// A kernel that CubeCL cannot render.
pub fn sources(targets: &[Target]) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for &target in targets {
        let wmma = target == Target::Gfx1100;
        let elements = [Element::Bf16, Element::F16, Element::F32];
        // RDNA3 multiplies no f32, and spills registers at a head dimension of 200.
        for element in elements.into_iter().take(if wmma { 2 } else { 3 }) {
            for (head_dim, causal) in SIZES.into_iter().take(if wmma { 4 } else { 5 }) {
                let problem = Problem::new(1, 1, 1024, 1024, head_dim).causal(causal);
                sources.push(Plan::choose(target, element, &problem)?.source()?);
            }
        }
    }
    // The Evoformer's attention: a mask and pair biases.
    for &target in targets.iter().filter(|t| **t != Target::Gfx1100) {
        let mut evoformer = Problem::new(1, 4, 256, 256, 32);
        evoformer.bias = [0, 256].map(|query| {
            let key = 1;
            Some(BiasStrides {
                query,
                key,
                ..BiasStrides::default()
            })
        });
        sources.push(Plan::choose(target, Element::Bf16, &evoformer)?.source()?);
    }
    Ok(sources)
}
