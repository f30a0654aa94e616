//! Matrix instructions as data: `D = A B + C`, computed by the lanes of one wave.
//!
//! Listed are the dense single-block MFMA forms with the largest inner dimension for f16, bf16, f32, f64 and i8 of CDNA2 and
//! CDNA3, RDNA3's WMMA, NVIDIA's `mma.sync`, and plain multiply-add for a device that has no matrix unit.
//! Sources: AMD's CDNA2, CDNA3 and RDNA3 instruction set documents and matrix instruction calculator; NVIDIA's PTX ISA,
//! "Matrix fragments for mma.m16n8k16".

use super::map::{Axis, Map};

/// Clock cycles of a pass.
pub const CLOCKS_PER_PASS: usize = 4;

/// What a kernel is generated for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// CDNA2: MI210, MI250, MI250X.
    Gfx90a,
    /// CDNA3: MI300A, MI300X.
    Gfx942,
    /// RDNA3: RX 7900 and its kind.
    Gfx1100,
    /// NVIDIA, compute capability 8.0 or newer.
    Cuda,
    /// Anything else that CubeCL reaches: nothing is assumed, not even a plane size.
    Portable,
}

impl Target {
    /// Whether operations of this crate may stand in the kernel: it is rendered as HIP or as CUDA.
    pub const fn has_operations(self) -> bool {
        !matches!(self, Self::Portable)
    }

    /// Whether the kernel is rendered as HIP.
    pub const fn is_hip(self) -> bool {
        matches!(self, Self::Gfx90a | Self::Gfx942 | Self::Gfx1100)
    }

    /// Its name: for an AMD architecture, the compiler's.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gfx90a => "gfx90a",
            Self::Gfx942 => "gfx942",
            Self::Gfx1100 => "gfx1100",
            Self::Cuda => "cuda",
            Self::Portable => "portable",
        }
    }

    /// Lanes of a wave that exchange values; 1 where no plane operation is assumed.
    pub const fn lanes(self) -> usize {
        match self {
            Self::Gfx90a | Self::Gfx942 => 64,
            Self::Gfx1100 | Self::Cuda => 32,
            Self::Portable => 1,
        }
    }

    /// Shared memory that every device of the kind has a workgroup, bytes.
    pub const fn shared_memory(self) -> usize {
        match self {
            // On NVIDIA 48 KiB, and 99 KiB for a kernel that asks the driver for it, as CubeCL does.
            Self::Gfx90a | Self::Gfx942 | Self::Gfx1100 | Self::Cuda => 64 << 10,
            // WebGPU's guaranteed limit is 16 KiB.
            Self::Portable => 16 << 10,
        }
    }
}

/// The type of a matrix's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// Half precision. gfx90a flushes subnormal inputs and outputs of its matrix instructions; gfx942 does not.
    F16,
    /// Brain float. gfx90a flushes subnormal numbers as for [`Element::F16`].
    Bf16,
    /// Single precision.
    F32,
    /// Double precision.
    F64,
    /// 8-bit signed integer.
    I8,
    /// 32-bit signed integer.
    I32,
}

impl Element {
    /// Size in bits.
    pub const fn bits(self) -> usize {
        match self {
            Self::I8 => 8,
            Self::F16 | Self::Bf16 => 16,
            Self::F32 | Self::I32 => 32,
            Self::F64 => 64,
        }
    }

    /// Size in bytes.
    pub const fn bytes(self) -> usize {
        self.bits() / 8
    }
}

/// What executes the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unit {
    /// CDNA's matrix cores, by a compiler builtin.
    Mfma {
        /// The builtin.
        builtin: &'static str,
        /// Passes of [`CLOCKS_PER_PASS`] clocks on gfx90a, if it has the instruction.
        gfx90a: Option<usize>,
        /// Passes on gfx942, if it has the instruction.
        gfx942: Option<usize>,
    },
    /// RDNA3's matrix unit, by a compiler builtin.
    Wmma {
        /// The builtin.
        builtin: &'static str,
    },
    /// NVIDIA's `mma.sync`, by inline PTX, transposed: our A is its B, so that D feeds B as in MFMA.
    Mma,
    /// A loop of multiply-adds in each lane.
    Fma,
}

/// A matrix instruction: A is `[m, k]`, B `[k, n]`, C and D `[m, n]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Instruction {
    /// What executes it.
    pub unit: Unit,
    /// Lanes that take part.
    pub lanes: usize,
    /// Rows of A and D.
    pub m: usize,
    /// Columns of B and D.
    pub n: usize,
    /// Columns of A, rows of B.
    pub k: usize,
    /// Element type of A and B.
    pub operand: Element,
    /// Element type of C and D.
    pub accumulator: Element,
    /// Where A's elements lie.
    pub a: Map,
    /// Where B's elements lie.
    pub b: Map,
    /// Where C's and D's elements lie.
    pub d: Map,
}

impl Instruction {
    /// Passes of [`CLOCKS_PER_PASS`] clocks that it occupies the matrix unit of a SIMD; `None` where it does not exist.
    pub const fn passes(&self, target: Target) -> Option<usize> {
        match (self.unit, target) {
            (Unit::Mfma { gfx90a, .. }, Target::Gfx90a) => gfx90a,
            (Unit::Mfma { gfx942, .. }, Target::Gfx942) => gfx942,
            _ => None,
        }
    }

    /// Whether `target` can execute it.
    pub const fn exists_on(&self, target: Target) -> bool {
        match self.unit {
            Unit::Mfma { .. } => self.passes(target).is_some(),
            Unit::Wmma { .. } => matches!(target, Target::Gfx1100),
            Unit::Mma => matches!(target, Target::Cuda),
            Unit::Fma => true,
        }
    }

    /// Floating-point (or integer) operations: a multiplication and an addition for each of `m * n * k`.
    pub const fn operations(&self) -> usize {
        2 * self.m * self.n * self.k
    }

    /// 32-bit registers a lane for A, and as many for B. Element `e` begins at bit `e * operand.bits()`.
    pub const fn operand_registers(&self) -> usize {
        self.a.elements * self.operand.bits() / 32
    }

    /// 32-bit registers a lane for D, and as many for C. Element `e` begins at bit `e * accumulator.bits()`.
    pub const fn accumulator_registers(&self) -> usize {
        self.d.elements * self.accumulator.bits() / 32
    }
}

/// A square MFMA form. Lanes run along the outer dimension first (rows of A, columns of B and D), then along the other one.
const fn mfma(
    builtin: &'static str,
    side: usize,
    k: usize,
    (operand, accumulator): (Element, Element),
    (gfx90a, gfx942): (Option<usize>, Option<usize>),
) -> Instruction {
    let lanes = 64;
    let groups = lanes / side;
    let fragment = k / groups;
    let outer = Axis::lanes(1, side, 1);
    let inner = Axis::lanes(side, groups, fragment).elements(fragment, fragment, 0);
    // Consecutive rows of D in one lane, before the next lane's rows follow.
    let run = match accumulator {
        Element::F64 => 1,
        _ => 4,
    };
    let rows = Axis::lanes(side, groups, run).elements(side * side / lanes, run, run * groups);
    Instruction {
        unit: Unit::Mfma {
            builtin,
            gfx90a,
            gfx942,
        },
        lanes,
        m: side,
        n: side,
        k,
        operand,
        accumulator,
        a: Map::new(fragment, outer, inner),
        b: Map::new(fragment, inner, outer),
        d: Map::new(side * side / lanes, rows, outer),
    }
}

/// RDNA3's WMMA: lanes 16 to 31 repeat the A and B of lanes 0 to 15; the rows of D alternate between the halves.
const fn wmma(builtin: &'static str, operand: Element) -> Instruction {
    let outer = Axis::lanes(1, 16, 1);
    let inner = Axis::lanes(1, 1, 0).elements(16, 16, 0);
    let rows = Axis::lanes(16, 2, 1).elements(8, 1, 2);
    Instruction {
        unit: Unit::Wmma { builtin },
        lanes: 32,
        m: 16,
        n: 16,
        k: 16,
        operand,
        accumulator: Element::F32,
        a: Map::new(16, outer, inner),
        b: Map::new(16, inner, outer),
        d: Map::new(8, rows, outer),
    }
}

/// NVIDIA's `mma.sync.m16n8k16`, transposed: `[8, 16] [16, 16]`.
const fn mma(operand: Element) -> Instruction {
    let outer = Axis::lanes(4, 8, 1);
    let inner = Axis::lanes(1, 4, 2);
    Instruction {
        unit: Unit::Mma,
        lanes: 32,
        m: 8,
        n: 16,
        k: 16,
        operand,
        accumulator: Element::F32,
        a: Map::new(4, outer, inner.table(4, [0, 1, 8, 9, 0, 0, 0, 0])),
        b: Map::new(
            8,
            inner.table(8, [0, 1, 0, 1, 8, 9, 8, 9]),
            outer.table(8, [0, 0, 8, 8, 0, 0, 8, 8]),
        ),
        d: Map::new(
            4,
            inner.table(4, [0, 1, 0, 1, 0, 0, 0, 0]),
            outer.table(4, [0, 0, 8, 8, 0, 0, 0, 0]),
        ),
    }
}

/// Plain multiply-adds: a lane has a column of B and D, and four rows of A that it shares with its group, of `groups`. With one
/// group, D feeds B as in MFMA; with four, the lanes of a wave share A and B about equally, and read the least of both.
const fn fma(operand: Element, groups: usize) -> Instruction {
    let side = 32 / groups;
    let rows = match groups {
        1 => Axis::lanes(1, 1, 0),
        _ => Axis::lanes(side, groups, 4),
    };
    let rows = rows.elements(4, 4, 0);
    let none = Axis::lanes(1, 1, 0);
    let columns = Axis::lanes(1, side, 1);
    Instruction {
        unit: Unit::Fma,
        lanes: 32,
        m: 4 * groups,
        n: side,
        k: 1,
        operand,
        accumulator: Element::F32,
        a: Map::new(4, rows, none),
        b: Map::new(1, none, columns),
        d: Map::new(4, rows, columns),
    }
}

/// Multiply-adds of f32 by lanes that share a column of B and D, four a column ([`spread`](super::spread)); NVIDIA has no matrix
/// instruction of that precision. B is laid out so that each of the four has its part of the contraction, D so that each has
/// four rows. A fragment of A is four of its rows at a time, at the lane's place in the contraction.
///
/// Not in [`INSTRUCTIONS`]: four of them and an exchange are one product.
pub const SPREAD: Instruction = {
    let groups = Axis::lanes(8, 4, 1);
    let columns = Axis::lanes(1, 8, 1);
    Instruction {
        unit: Unit::Fma,
        lanes: 32,
        m: 16,
        n: 8,
        k: 4,
        operand: Element::F32,
        accumulator: Element::F32,
        a: Map::new(4, Axis::lanes(1, 1, 0).elements(4, 4, 0), groups),
        b: Map::new(1, groups, columns),
        d: Map::new(4, Axis::lanes(8, 4, 4).elements(4, 4, 0), columns),
    }
};

const F16: (Element, Element) = (Element::F16, Element::F32);
const BF16: (Element, Element) = (Element::Bf16, Element::F32);
const F32: (Element, Element) = (Element::F32, Element::F32);
const F64: (Element, Element) = (Element::F64, Element::F64);
const I8: (Element, Element) = (Element::I8, Element::I32);

/// The instructions that kernels may use; of those that a target has, the larger tile stands first.
#[rustfmt::skip] // A table: one instruction a line.
pub const INSTRUCTIONS: [Instruction; 21] = [
    mfma("__builtin_amdgcn_mfma_f32_32x32x8f16", 32, 8, F16, (Some(16), Some(8))),
    mfma("__builtin_amdgcn_mfma_f32_16x16x16f16", 16, 16, F16, (Some(8), Some(4))),
    mfma("__builtin_amdgcn_mfma_f32_32x32x8bf16_1k", 32, 8, BF16, (Some(16), Some(8))),
    mfma("__builtin_amdgcn_mfma_f32_16x16x16bf16_1k", 16, 16, BF16, (Some(8), Some(4))),
    mfma("__builtin_amdgcn_mfma_f32_32x32x2f32", 32, 2, F32, (Some(16), Some(16))),
    mfma("__builtin_amdgcn_mfma_f32_16x16x4f32", 16, 4, F32, (Some(8), Some(8))),
    mfma("__builtin_amdgcn_mfma_f64_16x16x4f64", 16, 4, F64, (Some(8), Some(8))),
    mfma("__builtin_amdgcn_mfma_i32_32x32x8i8", 32, 8, I8, (Some(16), None)),
    mfma("__builtin_amdgcn_mfma_i32_16x16x16i8", 16, 16, I8, (Some(8), None)),
    mfma("__builtin_amdgcn_mfma_i32_32x32x16_i8", 32, 16, I8, (None, Some(8))),
    mfma("__builtin_amdgcn_mfma_i32_16x16x32_i8", 16, 32, I8, (None, Some(4))),
    wmma("__builtin_amdgcn_wmma_f32_16x16x16_f16_w32", Element::F16),
    wmma("__builtin_amdgcn_wmma_f32_16x16x16_bf16_w32", Element::Bf16),
    mma(Element::F16),
    mma(Element::Bf16),
    fma(Element::F16, 1),
    fma(Element::Bf16, 1),
    fma(Element::F32, 1),
    fma(Element::F16, 4),
    fma(Element::Bf16, 4),
    fma(Element::F32, 4),
];

#[cfg(test)]
mod tests {
    use super::*;

    const CDNA: [Target; 2] = [Target::Gfx90a, Target::Gfx942];

    /// Operations a clock and compute unit (four SIMDs), as AMD publishes them.
    fn peak(target: Target, operand: Element) -> usize {
        match (target, operand) {
            (_, Element::F32 | Element::F64) => 256,
            (Target::Gfx90a, _) => 1024,
            (_, Element::F16 | Element::Bf16) => 2048,
            _ => 4096,
        }
    }

    #[test]
    fn passes_give_the_published_rate_of_each_target() {
        for instruction in INSTRUCTIONS {
            for target in CDNA {
                let Some(passes) = instruction.passes(target) else {
                    continue;
                };
                let rate = 4 * instruction.operations() / (passes * CLOCKS_PER_PASS);
                assert_eq!(
                    rate,
                    peak(target, instruction.operand),
                    "{instruction:?} {target:?}"
                );
            }
        }
    }

    #[test]
    fn every_type_has_both_tile_sizes_on_cdna_but_f64_has_one() {
        for target in CDNA {
            for (operand, sides) in [
                (Element::F16, vec![32, 16]),
                (Element::Bf16, vec![32, 16]),
                (Element::F32, vec![32, 16]),
                (Element::F64, vec![16]),
                (Element::I8, vec![32, 16]),
            ] {
                let forms = INSTRUCTIONS.iter().filter(|i| i.operand == operand);
                let here = forms.filter(|i| i.passes(target).is_some());
                assert_eq!(
                    here.map(|i| i.m).collect::<Vec<_>>(),
                    sides,
                    "{operand:?} {target:?}"
                );
            }
        }
    }

    #[test]
    fn builtins_are_named_after_their_shape() {
        for instruction in INSTRUCTIONS {
            let Instruction { m, n, k, .. } = instruction;
            if let Unit::Mfma { builtin, .. } = instruction.unit {
                assert!(
                    builtin.contains(&format!("_{m}x{n}x{k}")),
                    "{instruction:?}"
                );
            }
        }
    }

    #[test]
    fn registers_a_lane_are_those_of_the_isa() {
        let registers: Vec<_> = INSTRUCTIONS
            .iter()
            .filter(|i| i.unit != Unit::Fma)
            .map(|i| (i.operand_registers(), i.accumulator_registers()))
            .collect();
        let half = [(2, 16), (2, 4), (2, 16), (2, 4)];
        let full_and_double = [(1, 16), (1, 4), (2, 8)];
        let integer = [(1, 16), (1, 4), (2, 16), (2, 4)];
        let others = [(8, 8), (8, 8), (2, 4), (2, 4)];
        assert_eq!(
            registers,
            [&half[..], &full_and_double, &integer, &others].concat()
        );
    }
}
