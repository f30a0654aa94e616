//! Random operands, launches of the emitted text, and the comparison.

use frontier_kernels::gemm::reference::{activate, product};
use frontier_kernels::gemm::tile::Role;
use frontier_kernels::gemm::{Activation, Epilogue, Layout, Plan, Shape};
use frontier_kernels::hip::emit::Source;
use frontier_kernels::hip::run::{Launch, Sanitizer, Scalars, bytes, values};
use frontier_kernels::matrix::instruction::{Element, INSTRUCTIONS, Instruction, Target, Unit};
use half::{bf16, f16};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Numbers in the precision of a buffer, and its bytes.
#[derive(Clone)]
pub struct Tensor {
    pub numbers: Vec<f64>,
    pub bytes: Vec<u8>,
}

pub fn random(seed: u64, count: usize, element: Element) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let uniform: Vec<f32> = (0..count)
        .map(|_| rng.next_u32() as f32 / 2.0_f32.powi(31) - 1.0)
        .collect();
    let bytes = match element {
        Element::F16 => bytes(
            &uniform
                .iter()
                .map(|&x| f16::from_f32(x))
                .collect::<Vec<_>>(),
        ),
        Element::Bf16 => bytes(
            &uniform
                .iter()
                .map(|&x| bf16::from_f32(x))
                .collect::<Vec<_>>(),
        ),
        _ => bytes(&uniform),
    };
    Tensor {
        numbers: numbers(&bytes, element),
        bytes,
    }
}

/// A buffer of NaN.
pub fn unwritten(count: usize, element: Element) -> Vec<u8> {
    vec![0xff; count * element.bytes()]
}

pub fn numbers(buffer: &[u8], element: Element) -> Vec<f64> {
    match element {
        Element::F16 => values::<f16>(buffer)
            .unwrap()
            .iter()
            .map(|x| x.to_f64())
            .collect(),
        Element::Bf16 => values::<bf16>(buffer)
            .unwrap()
            .iter()
            .map(|x| x.to_f64())
            .collect(),
        _ => values::<f32>(buffer)
            .unwrap()
            .iter()
            .map(|&x| f64::from(x))
            .collect(),
    }
}

/// The relative l2 error stays within what the element type allows.
pub fn assert_close(what: &str, element: Element, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let square = |x: f64| x * x;
    let error: f64 = found.iter().zip(expected).map(|(f, e)| square(f - e)).sum();
    let norm: f64 = expected.iter().map(|&e| square(e)).sum();
    let relative = (error / norm.max(1e-30)).sqrt();
    let bound = match element {
        Element::F16 => 1e-3,
        Element::Bf16 => 8e-3,
        _ => 3e-6,
    };
    assert!(
        relative <= bound,
        "{what}: relative l2 error {relative:e}, allowed {bound:e}"
    );
}

pub fn instruction(target: Target, element: Element, fma: bool) -> Instruction {
    let fits = |i: &&Instruction| {
        i.operand == element
            && i.accumulator == Element::F32
            && i.exists_on(target)
            && (i.unit == Unit::Fma) == fma
    };
    *INSTRUCTIONS.iter().find(fits).unwrap()
}

/// A product with all that its plan asks for.
pub struct Case {
    pub plan: Plan,
    pub shape: Shape,
    pub seed: u64,
    pub scale: f32,
    pub sanitizer: Sanitizer,
}

/// What a case computes: C, the saved pre-activation, the sums over K.
pub struct Outcome {
    pub out: Vec<f64>,
    pub saved: Vec<f64>,
    pub sums: Vec<f64>,
}

impl Case {
    pub fn new(plan: Plan, shape: Shape, seed: u64) -> Self {
        Self {
            plan,
            shape,
            seed,
            scale: 0.75,
            sanitizer: Sanitizer::None,
        }
    }

    fn columns(&self) -> usize {
        self.plan.columns(self.shape.n)
    }

    /// Columns of C and of what lies beside it.
    fn widths(&self) -> (usize, usize) {
        let n = self.shape.n;
        let wide = self.plan.epilogue().activation == Activation::SwiGluBackward;
        (
            if wide { 2 * n } else { n },
            if wide || self.columns() > n { 2 * n } else { n },
        )
    }

    pub fn a(&self) -> Tensor {
        random(
            self.seed,
            self.shape.batches.max(1)
                * self.extent(self.shape.a, self.shape.m, self.plan.layout() != Layout::Tn),
            self.plan.element(),
        )
    }

    pub fn b(&self) -> Tensor {
        random(
            self.seed + 1,
            self.shape.batches
                * self.extent(
                    self.shape.b,
                    self.columns(),
                    self.plan.layout() == Layout::Nt,
                ),
            self.plan.element(),
        )
    }

    fn extent(&self, (row, batch): (usize, usize), outer: usize, along_k: bool) -> usize {
        batch.max(row * if along_k { outer } else { self.shape.k })
    }

    pub fn bias(&self) -> Tensor {
        random(self.seed + 2, self.columns(), self.plan.element())
    }

    pub fn other(&self) -> Tensor {
        random(
            self.seed + 3,
            self.shape.batches * self.shape.m * self.widths().1,
            self.plan.element(),
        )
    }

    pub fn before(&self) -> Tensor {
        random(
            self.seed + 4,
            self.shape.batches * self.shape.m * self.widths().0,
            Element::F32,
        )
    }

    /// Executes the kernel, or with a split plan the kernel and the reduction.
    pub fn run(&self, source: &Source, reduction: Option<&Source>, parts: usize) -> Outcome {
        let Shape {
            batches, m, n, k, ..
        } = self.shape;
        let split = self.plan.is_split();
        let written = self.plan.tile_epilogue();
        let results = batches * m * self.widths().0;
        let out = match split {
            true => unwritten(parts * batches * m * self.columns(), Element::F32),
            false => self.out_before(results),
        };
        let (tile_rows, tile_columns) = self.plan.result_tile();
        let columns = if split { self.columns() } else { n };
        let tiles = m.div_ceil(tile_rows) * columns.div_ceil(tile_columns);
        let part = k.div_ceil(self.plan.tiling().depth).div_ceil(parts);
        let mut buffers = vec![self.a().bytes, self.b().bytes, out];
        self.extras(&written, &mut buffers);
        let sums_row = self.plan.tiling().depth / self.plan.chunk();
        let extent = self.plan.sums_extent(&self.shape);
        if self.plan.sums_of().is_some() {
            buffers.push(unwritten(parts * sums_row * extent, Element::F32));
        }
        let widths = self.plan.width();
        let u32: Vec<usize> = vec![
            m,
            columns,
            k,
            self.shape.a.0 / widths.0,
            self.shape.a.1 / widths.0,
            self.shape.b.0 / widths.1,
            self.shape.b.1 / widths.1,
            part,
            parts,
        ];
        let mut launch = Launch::new(source, [tiles as u32, 1, (batches * parts) as u32], buffers);
        launch.scalars = self.scalars(&u32);
        launch.sanitizer = self.sanitizer;
        let mut after = launch.run().unwrap();
        let sums = match self.plan.sums_of() {
            Some(_) => column_sums(&numbers(&after.pop().unwrap(), Element::F32), extent),
            None => vec![],
        };
        if let Some(reduction) = reduction {
            let mut buffers = vec![after.swap_remove(2), self.out_before(results)];
            self.extras(&self.plan.epilogue(), &mut buffers);
            let grid = [(m * n).div_ceil(256) as u32, 1, batches as u32];
            let mut launch = Launch::new(reduction, grid, buffers);
            launch.scalars = self.scalars(&[m, n, parts]);
            after = launch.run().unwrap();
            after.insert(0, vec![]);
        }
        let out = numbers(&after[2], self.plan.output());
        let saved = match self.plan.epilogue().save {
            true => numbers(after.last().unwrap(), self.plan.element()),
            false => vec![],
        };
        Outcome { out, saved, sums }
    }

    fn scalars(&self, u32: &[usize]) -> Scalars {
        Scalars {
            u32: u32.iter().map(|&x| x as u32).collect(),
            f32: vec![self.scale],
            ..Scalars::default()
        }
    }

    fn out_before(&self, count: usize) -> Vec<u8> {
        match self.plan.epilogue().accumulate {
            true => self.before().bytes,
            false => unwritten(count, self.plan.output()),
        }
    }

    fn extras(&self, epilogue: &Epilogue, buffers: &mut Vec<Vec<u8>>) {
        if epilogue.bias {
            buffers.push(self.bias().bytes);
        }
        if epilogue.reads_other() {
            buffers.push(self.other().bytes);
        }
        if epilogue.save {
            let count = self.shape.batches * self.shape.m * self.columns();
            buffers.push(unwritten(count, self.plan.element()));
        }
    }

    /// The same in f64.
    pub fn expected(&self) -> Outcome {
        let Shape {
            batches, m, n, k, ..
        } = self.shape;
        let Epilogue { activation, .. } = self.plan.epilogue();
        let (a, b) = (self.a().numbers, self.b().numbers);
        let columns = self.columns();
        let mut sums = product(self.plan.layout(), &self.shape, columns, &a, &b);
        let (bias, other, before) = (
            self.bias().numbers,
            self.other().numbers,
            self.before().numbers,
        );
        for (at, sum) in sums.iter_mut().enumerate() {
            if self.plan.epilogue().scale {
                *sum *= f64::from(self.scale);
            }
            if self.plan.epilogue().bias {
                *sum += bias[at % columns];
            }
        }
        let (width, beside) = self.widths();
        let mut out = vec![0.0; batches * m * width];
        for at in 0..batches * m * n {
            let (row, column) = (at / n, at % n);
            let sum = |half: usize| sums[row * columns + (half * n + column) % columns];
            let saved = |half: usize| other[row * beside + (half * n + column) % beside];
            let (mut x, second) = activate(activation, sum(0), sum(1), (saved(0), saved(1)));
            if self.plan.epilogue().residual {
                x += other[at];
            }
            if self.plan.epilogue().accumulate {
                x += before[at];
            }
            out[row * width + column] = x;
            if width > n {
                out[row * width + n + column] = second;
            }
        }
        let saved = if self.plan.epilogue().save {
            sums
        } else {
            vec![]
        };
        let sums = match self.plan.sums_of() {
            Some(Role::Rows) => column_sums(&a[..k * m], m),
            Some(Role::Columns) => column_sums(&b[..k * n], n),
            None => vec![],
        };
        Outcome { out, saved, sums }
    }

    /// Executes it and compares.
    pub fn check(&self, source: &Source, reduction: Option<&Source>, parts: usize) {
        let what = format!("{} {:?} seed {}", source.name, self.shape, self.seed);
        let (found, expected) = (self.run(source, reduction, parts), self.expected());
        let element = match self.plan.element() {
            // Results in f32 are as exact as f32 is: the products of f16 and bf16 are exact in it.
            _ if self.plan.output() == Element::F32 => Element::F32,
            element => element,
        };
        assert_close(&what, element, &found.out, &expected.out);
        assert_close(
            &format!("{what}, saved"),
            self.plan.element(),
            &found.saved,
            &expected.saved,
        );
        assert_close(
            &format!("{what}, sums over K"),
            Element::F32,
            &found.sums,
            &expected.sums,
        );
    }
}

/// Sums over the rows of a matrix of `columns` columns.
fn column_sums(matrix: &[f64], columns: usize) -> Vec<f64> {
    (0..columns)
        .map(|j| matrix.iter().skip(j).step_by(columns).sum())
        .collect()
}

/// Plans, emits, executes and compares one product.
pub fn check(
    target: Target,
    instruction: Instruction,
    output: Element,
    layout: Layout,
    epilogue: Epilogue,
    shape: Shape,
) {
    let plan = Plan::with(target, instruction, output, layout, &shape, epilogue).unwrap();
    let name = format!(
        "gemm_{layout:?}_{:?}_{:?}",
        instruction.operand, epilogue.activation
    );
    let source = plan.source(name).unwrap();
    Case::new(plan, shape, 11).check(&source, None, 1);
}
