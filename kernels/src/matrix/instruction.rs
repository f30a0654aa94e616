//! The MFMA instructions of CDNA2 and CDNA3 as data: `D = A B + C`, computed by one wave of 64 lanes.
//!
//! Listed are the dense single-block forms with the largest inner dimension for f16, bf16, f32, f64 and i8.
//! Sources: AMD's CDNA2 and CDNA3 instruction set documents and matrix instruction calculator.

/// Lanes of a wave.
pub const WAVE: usize = 64;

/// Clock cycles of a pass.
pub const CLOCKS_PER_PASS: usize = 4;

/// A GPU architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// CDNA2: MI210, MI250, MI250X.
    Gfx90a,
    /// CDNA3: MI300A, MI300X.
    Gfx942,
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
}

/// A matrix instruction: A is `[m, k]`, B `[k, n]`, C and D `[m, n]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Instruction {
    /// Compiler builtin that emits it.
    pub builtin: &'static str,
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
    /// Passes on gfx90a, if it has the instruction.
    gfx90a: Option<usize>,
    /// Passes on gfx942, if it has the instruction.
    gfx942: Option<usize>,
}

impl Instruction {
    /// Passes of [`CLOCKS_PER_PASS`] clocks that it occupies the matrix unit of a SIMD; `None` where it does not exist.
    pub const fn passes(&self, target: Target) -> Option<usize> {
        match target {
            Target::Gfx90a => self.gfx90a,
            Target::Gfx942 => self.gfx942,
        }
    }

    /// Floating-point (or integer) operations: a multiplication and an addition for each of `m * n * k`.
    pub const fn operations(&self) -> usize {
        2 * self.m * self.n * self.k
    }

    /// Elements of A, and as many of B, that a lane holds.
    pub const fn operand_elements(&self) -> usize {
        self.m * self.k / WAVE
    }

    /// Elements of D, and as many of C, that a lane holds.
    pub const fn accumulator_elements(&self) -> usize {
        self.m * self.n / WAVE
    }

    /// 32-bit registers a lane for A, and as many for B. Element `e` begins at bit `e * operand.bits()`.
    pub const fn operand_registers(&self) -> usize {
        self.operand_elements() * self.operand.bits() / 32
    }

    /// 32-bit registers a lane for D, and as many for C. Element `e` begins at bit `e * accumulator.bits()`.
    pub const fn accumulator_registers(&self) -> usize {
        self.accumulator_elements() * self.accumulator.bits() / 32
    }
}

/// A square form, with its passes on gfx90a and gfx942.
const fn mfma(
    builtin: &'static str,
    side: usize,
    k: usize,
    (operand, accumulator): (Element, Element),
    (gfx90a, gfx942): (Option<usize>, Option<usize>),
) -> Instruction {
    Instruction {
        builtin,
        m: side,
        n: side,
        k,
        operand,
        accumulator,
        gfx90a,
        gfx942,
    }
}

const F16: (Element, Element) = (Element::F16, Element::F32);
const BF16: (Element, Element) = (Element::Bf16, Element::F32);
const F32: (Element, Element) = (Element::F32, Element::F32);
const F64: (Element, Element) = (Element::F64, Element::F64);
const I8: (Element, Element) = (Element::I8, Element::I32);

/// The instructions that kernels may use.
#[rustfmt::skip] // A table: one instruction a line.
pub const INSTRUCTIONS: [Instruction; 11] = [
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
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Operations a clock and compute unit (four SIMDs), as AMD publishes them.
    fn peak(target: Target, operand: Element) -> usize {
        match (target, operand) {
            (_, Element::F32 | Element::F64) => 256,
            (Target::Gfx90a, _) => 1024,
            (Target::Gfx942, Element::F16 | Element::Bf16) => 2048,
            (Target::Gfx942, _) => 4096,
        }
    }

    #[test]
    fn passes_give_the_published_rate_of_each_target() {
        for instruction in INSTRUCTIONS {
            for target in [Target::Gfx90a, Target::Gfx942] {
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
    fn every_type_has_both_tile_sizes_on_both_targets_but_f64_has_one() {
        for target in [Target::Gfx90a, Target::Gfx942] {
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
            let shape = format!("_{m}x{n}x{k}");
            assert!(instruction.builtin.contains(&shape), "{instruction:?}");
        }
    }

    #[test]
    fn registers_a_lane_are_those_of_the_isa() {
        let registers: Vec<_> = INSTRUCTIONS
            .iter()
            .map(|i| (i.operand_registers(), i.accumulator_registers()))
            .collect();
        let half = [(2, 16), (2, 4), (2, 16), (2, 4)];
        let full_and_double = [(1, 16), (1, 4), (2, 8)];
        let integer = [(1, 16), (1, 4), (2, 16), (2, 4)];
        assert_eq!(registers, [&half[..], &full_and_double, &integer].concat());
    }
}
