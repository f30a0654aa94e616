//! Which plan suits a shape, and which plans there are.

use super::plan::Plan;
use super::problem::{Activation, Epilogue, Layout, Shape};
use super::tile::{BLOCK, Role, Tiling};
use crate::error::{Error, Result};
use crate::matrix::instruction::{Element, INSTRUCTIONS, Instruction, Target, Unit};

impl Plan {
    /// The plan for a shape: `element` operands, `output` results.
    ///
    /// # Errors
    /// Element types without a kernel.
    pub fn choose(
        target: Target,
        (element, output): (Element, Element),
        layout: Layout,
        shape: &Shape,
        epilogue: Epilogue,
    ) -> Result<Self> {
        let instruction = choose_instruction(target, element)?;
        Self::with(target, instruction, output, layout, shape, epilogue)
    }

    /// The plan for a shape on a given instruction.
    ///
    /// # Errors
    /// Element types and epilogues without a kernel.
    pub fn with(
        target: Target,
        instruction: Instruction,
        output: Element,
        layout: Layout,
        shape: &Shape,
        epilogue: Epilogue,
    ) -> Result<Self> {
        if !INSTRUCTIONS.contains(&instruction) {
            return Err(Error::argument(
                "gemm",
                "an instruction that no kernel was made for",
                "take one from INSTRUCTIONS",
            ));
        }
        let mut tiling = choose_tiling(target, &instruction, shape);
        if epilogue.activation.paired() {
            tiling.tiles.1 = tiling.tiles.1.max(2);
        }
        let plan = Self {
            target,
            instruction,
            element: instruction.operand,
            output,
            layout,
            tiling,
            width: (1, 1),
            epilogue,
            sums_of: None,
            split: false,
        };
        let plan = Self {
            width: (
                plan.widest(Role::Rows, shape),
                plan.widest(Role::Columns, shape),
            ),
            ..plan
        };
        plan.check()?;
        Ok(plan)
    }

    /// This plan with K split: the product leaves sums, [`Plan::output`] and the epilogue are the reduction's.
    pub const fn split(self) -> Self {
        Self {
            split: true,
            ..self
        }
    }

    /// This plan with the sums of an operand's elements over K.
    ///
    /// # Errors
    /// A layout in which the operands run along K.
    pub fn with_sums_of(self, role: Role) -> Result<Self> {
        let plan = Self {
            sums_of: Some(role),
            ..self
        };
        plan.check()?;
        Ok(plan)
    }

    /// The widest access that a shape allows.
    fn widest(&self, role: Role, shape: &Shape) -> usize {
        let along_k = self.layout.along_k(role);
        let most = if along_k { self.chunk() } else { BLOCK };
        let ((row, batch), outer) = match role {
            Role::Rows => (shape.a, shape.m),
            Role::Columns => (shape.b, shape.n),
        };
        let extent = if along_k { shape.k } else { outer };
        let all = row | batch | extent | most;
        1 << all.trailing_zeros()
    }

    /// Into how many parts K is best split: as many as let the workgroups fill a GPU twice (110 compute units a GCD of
    /// MI250X), but not so many that a part has few tiles of K. 1: not at all.
    pub fn parts(&self, shape: &Shape) -> usize {
        const WORKGROUPS: usize = 2 * 110;
        const TILES: usize = 8;
        let (rows, columns) = self.workgroup_tile();
        let tiles =
            shape.batches * shape.m.div_ceil(rows) * self.columns(shape.n).div_ceil(columns);
        let depth = shape.k.div_ceil(self.tiling.depth);
        (WORKGROUPS / tiles.max(1)).min(depth / TILES).max(1)
    }

    /// Whether a kernel exists for the plan.
    pub(super) fn check(&self) -> Result<()> {
        let Epilogue {
            activation,
            save,
            residual,
            accumulate,
            ..
        } = self.epilogue;
        let wrong = |problem: String, remedy: &str| Err(Error::argument("gemm", problem, remedy));
        if self.output != self.element && self.output != Element::F32 {
            return wrong(
                format!("C of {:?} from operands of {:?}", self.output, self.element),
                "let C have the operands' type or f32",
            );
        }
        if !self.instruction.exists_on(self.target) {
            return wrong(
                format!("{:?} lacks the instruction", self.target),
                "take one of its own from INSTRUCTIONS",
            );
        }
        if accumulate && (self.output != Element::F32 || activation != Activation::None) {
            return wrong(
                "accumulation into C that is not a plain f32 product".into(),
                "accumulate in f32, without activation",
            );
        }
        if residual && activation.is_backward() {
            return wrong(
                "a residual and a saved pre-activation at once".into(),
                "add the residual elsewhere",
            );
        }
        if save && !matches!(activation, Activation::Gelu | Activation::SwiGlu) {
            return wrong(
                format!("{activation:?} has no pre-activation to save"),
                "save with Gelu or SwiGlu",
            );
        }
        if self.sums_of.is_some() && self.layout != Layout::Tn {
            return wrong(
                format!("sums over K with layout {:?}", self.layout),
                "use layout Tn",
            );
        }
        self.check_tiling()
    }

    /// Whether a kernel for many products at once exists for the plan.
    pub(super) fn check_grouped(&self) -> Result<()> {
        if self.split || self.sums_of.is_some() {
            return Err(Error::argument(
                "grouped gemm",
                "split K or sums over K",
                "launch a product of its own for each group",
            ));
        }
        self.check()
    }

    fn check_tiling(&self) -> Result<()> {
        let Tiling {
            waves,
            tiles,
            depth,
        } = self.tiling;
        let powers = [
            waves.0,
            waves.1,
            tiles.0,
            tiles.1,
            depth,
            self.width.0,
            self.width.1,
        ];
        let fragment = self.fragment(Role::Rows);
        let shared = self.shared_memory();
        let problem = if !powers.iter().all(|x| x.is_power_of_two()) {
            "numbers that are no powers of two".into()
        } else if depth < 2 * fragment.depth {
            format!("depth {depth}, of which a read takes {}", fragment.depth)
        } else if self.paired() && tiles.1 < 2 {
            "one tile of columns a wave for two sums".into()
        } else if shared > self.target.shared_memory() {
            format!(
                "{shared} bytes of shared memory, of {}",
                self.target.shared_memory()
            )
        } else {
            return Ok(());
        };
        Err(Error::argument(
            "gemm",
            format!("{:?}: {problem}", self.tiling),
            "choose another tiling",
        ))
    }
}

/// The matrix instruction of a target for an element type; multiply-adds where it has none.
fn choose_instruction(target: Target, element: Element) -> Result<Instruction> {
    let fits = |i: &&Instruction| {
        i.operand == element && i.accumulator == Element::F32 && i.exists_on(target)
    };
    let mut usable = INSTRUCTIONS.iter().filter(fits);
    let found = match target {
        // The last is the one whose lanes share A and B about equally.
        Target::Portable => usable.next_back(),
        _ => usable.next(),
    };
    found.copied().ok_or_else(|| {
        Error::argument(
            "gemm",
            format!("no kernel for {element:?}"),
            "use f16, bf16 or f32",
        )
    })
}

/// The tiling for a shape: as much of C a workgroup as still fills the GPU.
fn choose_tiling(target: Target, instruction: &Instruction, shape: &Shape) -> Tiling {
    let half = instruction.operand != Element::F32;
    let small = shape.batches * shape.m.div_ceil(128) * shape.n.div_ceil(128) < 64;
    match (instruction.unit, target) {
        (Unit::Mfma { .. }, _) => Tiling {
            waves: (2, 2),
            tiles: if small {
                (32 / instruction.m, 32 / instruction.m)
            } else {
                (64 / instruction.m, 64 / instruction.m)
            },
            depth: if half { 64 } else { 32 },
        },
        // 256 registers a lane, and twice as many of them for a fragment as on CDNA.
        (Unit::Wmma { .. }, _) => Tiling {
            waves: if small { (2, 2) } else { (4, 2) },
            tiles: (2, 2),
            depth: 32,
        },
        // 255 registers a lane, so that eight waves share what four do on CDNA.
        (Unit::Mma, _) => Tiling {
            waves: if small { (2, 2) } else { (2, 4) },
            tiles: if small { (4, 2) } else { (8, 2) },
            depth: 64,
        },
        // A lane has 8 x 8 elements of C, of which it reads 16 vectors for 256 multiply-adds. 64 x 64 elements a workgroup, or
        // 128 x 128 from 16 KiB of shared memory.
        (Unit::Fma, _) if instruction.m > 4 => Tiling {
            waves: if small { (2, 1) } else { (4, 2) },
            tiles: (2, 8),
            depth: if half { 32 } else { 16 },
        },
        // With four waves, NVIDIA's compiler spills to make room for more workgroups.
        (Unit::Fma, Target::Cuda) if small => Tiling {
            waves: (8, 1),
            tiles: (2, 2),
            depth: if half { 32 } else { 16 },
        },
        // 4 x 32 elements an instruction, 16 KiB of shared memory.
        (Unit::Fma, _) => Tiling {
            waves: (4, 1),
            tiles: if small { (2, 2) } else { (4, 4) },
            depth: if half { 32 } else { 16 },
        },
    }
}
