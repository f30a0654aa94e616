//! Problems of attention's gradients, executed on the CPU.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex};

use frontier_kernels::attention::backward::reference::{Gradients, backward};
use frontier_kernels::attention::backward::{Form, GradientStrides, Plan, Plans, Shared};
use frontier_kernels::attention::reference::{Inputs, forward};
use frontier_kernels::attention::{Problem, Strides};
use frontier_kernels::hip::emit::Source;
use frontier_kernels::hip::run::{Launch, Sanitizer, bytes, values};
use frontier_kernels::matrix::instruction::{Element, Target};
use half::{bf16, f16};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

pub const SEED: u64 = 7;

pub struct Case {
    pub target: Target,
    pub element: Element,
    pub problem: Problem,
    pub gradient: GradientStrides,
    pub inputs: Inputs,
    pub o_gradient: Vec<f64>,
    /// Plain multiply-adds instead of the target's matrix instructions.
    pub fma: bool,
    /// By the portable plans, which take rows in blocks.
    pub portable: bool,
    pub lane_order: u64,
    pub sanitizer: Sanitizer,
    /// The results have elements that belong to no row.
    pub gaps: bool,
}

/// What the results hold before: no gradient has it.
const UNWRITTEN: f64 = 1024.0;

pub fn rounded(x: f64, element: Element) -> f64 {
    match element {
        Element::F16 => f16::from_f64(x).to_f64(),
        Element::Bf16 => bf16::from_f64(x).to_f64(),
        _ => f64::from(x as f32),
    }
}

fn encoded(x: &[f64], element: Element) -> Vec<u8> {
    match element {
        Element::F16 => bytes(&x.iter().map(|&x| f16::from_f64(x)).collect::<Vec<_>>()),
        Element::Bf16 => bytes(&x.iter().map(|&x| bf16::from_f64(x)).collect::<Vec<_>>()),
        _ => bytes(&x.iter().map(|&x| x as f32).collect::<Vec<_>>()),
    }
}

fn decoded(x: &[u8], element: Element) -> Vec<f64> {
    match element {
        Element::F16 => values::<f16>(x)
            .unwrap()
            .iter()
            .map(|x| x.to_f64())
            .collect(),
        Element::Bf16 => values::<bf16>(x)
            .unwrap()
            .iter()
            .map(|x| x.to_f64())
            .collect(),
        _ => values::<f32>(x)
            .unwrap()
            .iter()
            .map(|&x| f64::from(x))
            .collect(),
    }
}

/// Numbers in [-1, 1).
pub fn random(rng: &mut ChaCha8Rng, count: usize) -> Vec<f64> {
    let number = |_| f64::from(rng.next_u32()) / 2f64.powi(31) - 1.0;
    (0..count).map(number).collect()
}

fn span(s: Strides, [batch, heads, rows, width]: [u32; 4]) -> usize {
    ((batch - 1) * s.batch + (heads - 1) * s.head + (rows - 1) * s.row + width) as usize
}

/// A kernel's text. It is generated once for all cases that share it: that takes longer than a small launch.
fn source(plan: &Plan, kernel: &'static str) -> Source {
    static SOURCES: LazyLock<Mutex<HashMap<(Plan, &str), Source>>> = LazyLock::new(Mutex::default);
    if let Some(source) = SOURCES.lock().unwrap().get(&(*plan, kernel)) {
        return source.clone();
    }
    let source = match kernel {
        "statistics" => plan.statistics_source(),
        "mask" => plan.mask_source(),
        _ => plan.source(),
    };
    let source = source.unwrap();
    SOURCES
        .lock()
        .unwrap()
        .insert((*plan, kernel), source.clone());
    source
}

impl Case {
    /// Random inputs for `problem`; a bias is drawn with it.
    pub fn new(target: Target, element: Element, problem: Problem) -> Self {
        Self::packed(target, element, problem, &[])
    }

    /// Sequences of so many queries and keys, one after the other. The problem's sizes and strides are set to theirs.
    pub fn packed(
        target: Target,
        element: Element,
        mut problem: Problem,
        lengths: &[[u32; 2]],
    ) -> Self {
        let mut cumulative = [vec![], vec![]];
        let (mut entries, mut rows) = (problem.batch, [problem.queries, problem.keys]);
        if !lengths.is_empty() {
            cumulative = [0, 1].map(|i| {
                let ends = lengths.iter().scan(0, |end, length| {
                    *end += length[i];
                    Some(*end)
                });
                std::iter::once(0).chain(ends).collect()
            });
            rows = [0, 1].map(|i: usize| cumulative[i][lengths.len()]);
            entries = 1;
            let (heads, kv_heads, d) = (problem.heads, problem.kv_heads, problem.head_dim);
            problem.packed = true;
            problem.batch = lengths.len() as u32;
            [problem.queries, problem.keys] =
                [0, 1].map(|i| lengths.iter().map(|l| l[i]).max().unwrap());
            (problem.q, problem.k) = (
                Strides::rows_first(rows[0], heads, d),
                Strides::rows_first(rows[1], kv_heads, d),
            );
            (problem.v, problem.o) = (problem.k, problem.q);
            problem.lse = Strides::heads_first(rows[0], heads, 1);
        }
        let p = &problem;
        let queries = |s| span(s, [entries, p.heads, rows[0], p.head_dim]);
        let keys = |s| span(s, [entries, p.kv_heads, rows[1], p.head_dim]);
        let bias = |i: usize| {
            problem.bias[i].map_or(0, |s| {
                let last = (p.batch - 1) / s.divisor * s.batch + (p.heads - 1) * s.head;
                (last + (p.queries - 1) * s.query + (p.keys - 1) * s.key + 1) as usize
            })
        };
        let mut rng = ChaCha8Rng::seed_from_u64(SEED);
        let mut draw = |count| {
            let x = random(&mut rng, count);
            x.iter().map(|&x| rounded(x, element)).collect::<Vec<_>>()
        };
        let inputs = Inputs {
            q: draw(queries(p.q)),
            k: draw(keys(p.k)),
            v: draw(keys(p.v)),
            bias: [draw(bias(0)), draw(bias(1))],
            samples: (0..p.batch).map(|b| 3 * b + 1).collect(),
            cumulative_queries: cumulative[0].clone(),
            cumulative_keys: cumulative[1].clone(),
        };
        Self {
            target,
            element,
            problem,
            gradient: GradientStrides::like(p),
            o_gradient: draw(queries(p.o)),
            inputs,
            fma: false,
            portable: false,
            lane_order: 0,
            sanitizer: Sanitizer::None,
            gaps: false,
        }
    }

    /// The plans of the table.
    pub fn plans(&self) -> Plans {
        let choose = match self.portable {
            true => Plans::plain,
            false => Plans::choose,
        };
        let plans = choose(
            self.target,
            self.element,
            &self.problem,
            &self.gradient,
            [true; 2],
        )
        .unwrap();
        if self.fma {
            return plans.by_multiply_adds().unwrap();
        }
        plans
    }

    fn launch(
        &self,
        source: &Source,
        grid: [u32; 3],
        buffers: Vec<Vec<u8>>,
        shared: &[u32],
    ) -> Vec<Vec<u8>> {
        let mut launch = Launch::new(source, grid, buffers);
        launch.scalars = self.gradient.scalars(&self.problem.geometry());
        launch.scalars.u32.extend(shared);
        (launch.lane_order, launch.sanitizer) = (self.lane_order, self.sanitizer);
        launch.run().unwrap()
    }

    /// The inputs of the statistics and those of the other kernels, whose fifth is the statistics.
    fn buffers(&self) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let (i, element) = (&self.inputs, self.element);
        let unused = |x: Vec<u8>| if x.is_empty() { vec![0; 16] } else { x };
        let (o, lse) = forward(&self.problem, i);
        let lse: Vec<f32> = lse.iter().map(|&x| x as f32).collect();
        let [q, k, v, o, g] = [&i.q, &i.k, &i.v, &o, &self.o_gradient].map(|x| encoded(x, element));
        let bias = i.bias.each_ref().map(|x| unused(encoded(x, element)));
        let [cq, ck, samples] =
            [&i.cumulative_queries, &i.cumulative_keys, &i.samples].map(|x| unused(bytes(x)));
        let statistics = bytes(&vec![f32::NAN; 2 * lse.len()]);
        let [b0, b1] = bias;
        (
            vec![
                o,
                g.clone(),
                bytes(&lse),
                cq.clone(),
                ck.clone(),
                statistics,
            ],
            vec![q, k, v, g, vec![], b0, b1, cq, ck, samples],
        )
    }

    /// Executes the kernels.
    pub fn run(&self) -> Gradients {
        self.run_by(&self.plans())
    }

    /// Executes the kernels of some plans.
    pub fn run_by(&self, plans: &Plans) -> Gradients {
        let (p, i, element) = (&self.problem, &self.inputs, self.element);
        let tiles = |n: u32, tile: usize| n.div_ceil(tile as u32);
        let unwritten = |like: &Vec<f64>| encoded(&vec![UNWRITTEN; like.len()], element);
        let (first, mut common) = self.buffers();
        let rows = plans.query().units() / plans.query().statistics_lanes();
        let grid = [tiles(p.queries, rows), p.heads, p.batch];
        common[4] = self.launch(&source(plans.query(), "statistics"), grid, first, &[])[5].clone();

        let grid = [tiles(p.queries, plans.query().columns()), p.heads, p.batch];
        let buffers = [common.clone(), vec![unwritten(&i.q)]].concat();
        let q = self.launch(&source(plans.query(), "query"), grid, buffers, &[])[10].clone();

        let grid = [
            tiles(p.keys, plans.key_value().columns()),
            p.kv_heads,
            p.batch,
        ];
        let sums = bytes(&vec![f32::NAN; (p.batch * p.heads * p.keys) as usize]);
        let buffers = [common.clone(), vec![unwritten(&i.k), unwritten(&i.v), sums]].concat();
        let kv = self.launch(&source(plans.key_value(), "key_value"), grid, buffers, &[]);

        let bias = [0, 1].map(|b| {
            let Some(strides) = p.bias[b] else {
                return vec![];
            };
            let shared = Shared::new(strides, p.batch, p.heads);
            let result = bytes(&vec![UNWRITTEN as f32; i.bias[b].len()]);
            let after = match Form::of(strides) {
                Form::Keys => {
                    let source = source(plans.key_value(), "mask");
                    let grid = [tiles(p.keys, plans.key_value().units()), shared.count(), 1];
                    let mut launch = Launch::new(
                        &source,
                        grid,
                        vec![kv[12].clone(), common[8].clone(), result],
                    );
                    launch.scalars.u32 = [vec![p.keys], shared.scalars().to_vec()].concat();
                    launch.run().unwrap()[2].clone()
                }
                Form::Pairs => {
                    let (x, y) = (
                        tiles(p.keys, plans.pair().columns()),
                        tiles(p.queries, plans.pair().rows()),
                    );
                    let buffers = [common.clone(), vec![result]].concat();
                    let source = source(plans.pair(), "pair");
                    self.launch(&source, [x, y, shared.count()], buffers, &shared.scalars())[10]
                        .clone()
                }
            };
            decoded(&after, Element::F32)
        });
        Gradients {
            q: decoded(&q, element),
            k: decoded(&kv[10], element),
            v: decoded(&kv[11], element),
            bias,
        }
    }

    /// Executes the kernels and compares with the reference.
    pub fn check(&self) {
        let found = self.run();
        let expected = backward(&self.problem, &self.inputs, &self.o_gradient);
        self.assert_close(&found, &expected);
    }

    pub fn assert_close(&self, found: &Gradients, expected: &Gradients) {
        let Problem {
            queries,
            keys,
            head_dim,
            ..
        } = self.problem;
        let what = format!(
            "{:?} {:?} d {head_dim}, {queries} x {keys}, seed {SEED}",
            self.target, self.element
        );
        let tolerance = match self.element {
            Element::F16 => 1e-3,
            Element::Bf16 => 8e-3,
            _ => 3e-6,
        };
        let of = |g: &Gradients| {
            let Gradients {
                q,
                k,
                v,
                bias: [b1, b2],
            } = g.clone();
            [
                ("dQ", q),
                ("dK", k),
                ("dV", v),
                ("dbias1", b1),
                ("dbias2", b2),
            ]
        };
        for ((name, found), (_, expected)) in of(found).into_iter().zip(of(expected)) {
            let error = relative_error(&found, &expected, self.gaps);
            println!("{what}: {name} {error:.1e}");
            assert!(error <= tolerance, "{what}: {name} is off by {error:e}");
        }
    }
}

/// In l2; what is between the rows is not to be written.
fn relative_error(found: &[f64], expected: &[f64], gaps: bool) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |x: f64| x * x;
    let difference = |(f, e): (&f64, &f64)| match gaps && *f == UNWRITTEN && *e == 0.0 {
        true => 0.0,
        false => square(f - e),
    };
    let norm: f64 = expected.iter().map(|&x| square(x)).sum();
    let error: f64 = found.iter().zip(expected).map(difference).sum();
    (error / norm.max(1e-30)).sqrt()
}
