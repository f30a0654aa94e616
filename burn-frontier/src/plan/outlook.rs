//! What this runtime lacks and would gain: the same search over layouts that it cannot run yet.

use serde::Serialize;

use super::job::Job;
use super::machine::Machine;
use super::memory;
use super::model::{Exchange, Planned};
use super::parameters;
use super::search::{CHUNKS, Candidate, Found, MICRO_BATCHES, layouts, most};
use super::time::{self, StepTime};
use super::what_if::{HIGHEST_ZERO, Lack, WhatIf};
use crate::error::Result;
use crate::mesh::Layout;
use crate::pipeline::schedule::Kind;
use crate::recompute::Recompute;
use crate::zero::reducer::MAX_ZERO_STAGE;

/// How everything here is marked.
pub const MARK: &str = "not in this runtime yet";

/// Fewest tokens of a sequence that a context-parallel rank is tried with: two blocks of a kernel's tile.
const FEWEST_TOKENS: usize = 256;

/// A layout that would fit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Possible<M> {
    /// The job, and what of it is not there.
    pub what_if: WhatIf<M>,
    /// Bytes of the stage that needs most.
    pub bytes: f64,
    /// The step.
    pub time: StepTime,
    /// Tokens per second of one rank.
    pub tokens_per_second_per_rank: f64,
}

impl<M: Planned> Possible<M> {
    fn new(what_if: WhatIf<M>, bytes: f64, time: StepTime) -> Self {
        let ranks = what_if.world() as f64;
        Self {
            tokens_per_second_per_rank: what_if.job.tokens() / time.seconds() / ranks,
            what_if,
            bytes,
            time,
        }
    }
}

/// What the planner says of one what-if, whether it would fit or not.
///
/// # Errors
/// As [`WhatIf::validate`].
pub fn judge<M: Planned>(what_if: &WhatIf<M>, machine: &Machine) -> Result<Possible<M>> {
    let bytes = most(&what_if.memory(machine)?);
    let time = what_if.step(machine)?;
    Ok(Possible::new(what_if.clone(), bytes, time))
}

/// What one lacking thing, or all of them, would bring.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prospect<M> {
    /// One thing that the layouts have, or all of which they have any.
    pub lacks: Vec<Lack>,
    /// Layouts that were looked at.
    pub tried: usize,
    /// How many of them would fit.
    pub fitting: usize,
    /// The fastest of those.
    pub fastest: Option<Possible<M>>,
    /// Its speed over that of the fastest layout that runs, less one; none if one of the two does not fit.
    pub gain: Option<f64>,
    /// Bytes of the fullest stage of the layout that needs least.
    pub least_bytes: f64,
}

impl<M> Prospect<M> {
    /// What it is about.
    pub fn name(&self) -> String {
        match self.lacks.as_slice() {
            [one] => one.to_string(),
            _ => "any of these".into(),
        }
    }
}

/// What the runtime lacks and would gain. Nothing in it can be run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outlook<M> {
    /// "not in this runtime yet".
    pub note: &'static str,
    /// Bytes of the fullest stage of the layout that needs least, of those that run and fit.
    pub runnable_least_bytes: Option<f64>,
    /// One for each lacking thing by itself, then one for all of them.
    pub prospects: Vec<Prospect<M>>,
}

/// Searches layouts of `like`'s model and global batch on `ranks` ranks that have what the runtime lacks, and compares them
/// with what was found of those that run.
///
/// # Errors
/// A schedule that cannot be executed, which is a fault of this library.
pub fn outlook<M: Planned>(
    like: &Job<M>,
    machine: &Machine,
    ranks: usize,
    runnable: &Found<M>,
) -> Result<Outlook<M>> {
    let mut prospects: Vec<Prospect<M>> = Vec::new();
    for lack in Lack::ALL {
        prospects.push(prospect(&[lack], like, machine, ranks, runnable, None)?);
    }
    // What one thing gives, all of them give.
    let least = fastest(&prospects);
    prospects.push(prospect(&Lack::ALL, like, machine, ranks, runnable, least)?);
    let bytes = runnable.ranked.iter().map(|candidate| candidate.bytes);
    Ok(Outlook {
        note: MARK,
        runnable_least_bytes: bytes.min_by(f64::total_cmp),
        prospects,
    })
}

/// The same for one lacking thing.
///
/// # Errors
/// As [`outlook`].
pub fn outlook_of<M: Planned>(
    lack: Lack,
    like: &Job<M>,
    machine: &Machine,
    ranks: usize,
    runnable: &Found<M>,
) -> Result<Prospect<M>> {
    prospect(&[lack], like, machine, ranks, runnable, None)
}

/// The fastest layout, `known` or faster.
fn prospect<M: Planned>(
    lacks: &[Lack],
    like: &Job<M>,
    machine: &Machine,
    ranks: usize,
    runnable: &Found<M>,
    known: Option<Possible<M>>,
) -> Result<Prospect<M>> {
    let mut search = Search {
        machine,
        space: Space::new(lacks, like, ranks),
        prospect: Prospect {
            lacks: lacks.to_vec(),
            tried: 0,
            fitting: 0,
            fastest: known,
            gain: None,
            least_bytes: f64::INFINITY,
        },
    };
    search.run(like, ranks)?;
    let mut prospect = search.prospect;
    prospect.gain = gain(runnable.ranked.first(), prospect.fastest.as_ref());
    Ok(prospect)
}

fn fastest<M: Planned>(prospects: &[Prospect<M>]) -> Option<Possible<M>> {
    let all = prospects.iter().filter_map(|p| p.fastest.as_ref());
    all.min_by(|a, b| a.time.seconds().total_cmp(&b.time.seconds()))
        .cloned()
}

fn gain<M>(before: Option<&Candidate<M>>, after: Option<&Possible<M>>) -> Option<f64> {
    let (before, after) = (before?, after?);
    Some(after.tokens_per_second_per_rank / before.tokens_per_second_per_rank - 1.0)
}

/// What is tried besides what runs.
struct Space {
    contexts: Vec<(usize, Exchange)>,
    zero: std::ops::RangeInclusive<u8>,
    zero_bubble: &'static [bool],
}

impl Space {
    fn new<M: Planned>(lacks: &[Lack], like: &Job<M>, ranks: usize) -> Self {
        let none = (1, Exchange::Ring);
        let mut space = Self {
            contexts: vec![none],
            zero: 0..=MAX_ZERO_STAGE,
            zero_bubble: &[false],
        };
        match lacks {
            [Lack::ContextParallel] => space.contexts = contexts(like, ranks),
            [Lack::Zero2] => space.zero = 2..=2,
            [Lack::Zero3] => space.zero = 3..=3,
            [Lack::ZeroBubble] => space.zero_bubble = &[true],
            _ => {
                space.contexts.extend(contexts(like, ranks));
                space.zero = 0..=HIGHEST_ZERO;
                space.zero_bubble = &[false, true];
            }
        }
        space
    }
}

/// Context-parallel groups that could work, of two ranks and more.
fn contexts<M: Planned>(like: &Job<M>, ranks: usize) -> Vec<(usize, Exchange)> {
    let most = like.model.tokens() / FEWEST_TOKENS;
    (2..=most.min(ranks))
        .filter(|context| ranks.is_multiple_of(*context))
        .flat_map(|context| [(context, Exchange::Ring), (context, Exchange::Ulysses)])
        .collect()
}

struct Search<'a, M> {
    machine: &'a Machine,
    space: Space,
    prospect: Prospect<M>,
}

impl<M: Planned> Search<'_, M> {
    fn run(&mut self, like: &Job<M>, ranks: usize) -> Result<()> {
        for (context, exchange) in self.space.contexts.clone() {
            for layout in layouts(like, self.machine, ranks / context) {
                for (schedule, zero_bubble) in self.schedules(layout) {
                    for sequence_parallel in [false, true] {
                        let job = Job {
                            layout,
                            schedule,
                            sequence_parallel,
                            ..like.clone()
                        };
                        let what_if = WhatIf {
                            job,
                            context,
                            exchange,
                            zero_bubble,
                        };
                        if layout.tp > 1 || !sequence_parallel {
                            self.sizes(&what_if)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Schedules of a layout, each with whether it is ZB-H1 instead.
    fn schedules(&self, layout: Layout) -> Vec<(Kind, bool)> {
        let one = Kind::OneForwardOneBackward;
        let split = self.space.zero_bubble.iter();
        let split = split.filter(|&&split| layout.pp > 1 || !split);
        let mut all: Vec<_> = split.map(|&split| (one, split)).collect();
        if layout.pp > 1 && self.space.zero_bubble.contains(&false) {
            all.push((Kind::GPipe, false));
            all.extend(CHUNKS.map(|chunks| (Kind::Interleaved { chunks }, false)));
        }
        all
    }

    /// All micro-batches, ways to recompute and ZeRO stages.
    fn sizes(&mut self, like: &WhatIf<M>) -> Result<()> {
        let mut stages = None;
        let replicas = like.replicas();
        let share = like.job.global_batch.div_ceil(like.job.layout.dp as u64);
        for micro_batch in MICRO_BATCHES.into_iter().take_while(|&size| size <= share) {
            let mut sized = like.clone();
            (sized.job.micro_batch, sized.job.zero) = (micro_batch, 0);
            if sized.validate().is_err() {
                continue;
            }
            let stages: &Vec<_> = match &stages {
                Some(stages) => stages,
                None => stages.insert(parameters::stages(&sized)?),
            };
            for recompute in Recompute::ALL {
                for zero in self.space.zero.clone() {
                    let splits = replicas > 1 || zero == 0;
                    if splits && (zero < 3 || like.job.layout.pp == 1) {
                        let mut what_if = sized.clone();
                        (what_if.job.recompute, what_if.job.zero) = (recompute, zero);
                        self.one(what_if, stages)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn one(&mut self, what_if: WhatIf<M>, stages: &[parameters::StageParameters]) -> Result<()> {
        let (machine, prospect) = (self.machine, &mut self.prospect);
        if what_if.lacks().next().is_none() {
            return Ok(());
        }
        let bytes = most(&memory::stages_of(&what_if, machine, stages));
        prospect.tried += 1;
        prospect.least_bytes = prospect.least_bytes.min(bytes);
        if bytes > machine.usable_bytes() {
            return Ok(());
        }
        prospect.fitting += 1;
        let best = prospect.fastest.as_ref();
        let best = best.map_or(f64::INFINITY, |best| best.time.seconds());
        // Most cannot be the fastest, whatever the order of their passes.
        if time::at_least(&what_if, machine, stages) < best {
            let time = time::step_of(&what_if, machine, stages)?;
            if time.seconds() < best {
                prospect.fastest = Some(Possible::new(what_if, bytes, time));
            }
        }
        Ok(())
    }
}
