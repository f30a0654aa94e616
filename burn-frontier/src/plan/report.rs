//! Everything that the planner says of a job: a page to read, a page to look at, and the numbers.

use std::path::Path;

use serde::Serialize;

use super::advice::{self, Gain, ScalingPoint};
use super::job::Job;
use super::machine::Machine;
use super::memory::{self, StageMemory};
use super::model::Planned;
use super::outlook::{self, Outlook};
use super::search::{self, Candidate};
use super::time::{self, StagePasses, StepTime};
use crate::error::{Error, Result};

mod html;
mod page;
mod svg;
mod what_if;

/// Candidates that are listed.
const LISTED: usize = 5;
/// Most points of the scatter plot.
const SCATTERED: usize = 1500;

/// A layout of the search, as a point.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Point {
    /// Bytes of the stage that needs most.
    pub bytes: f64,
    /// Tokens per second of one rank.
    pub tokens_per_second_per_rank: f64,
    /// Tensor-parallel ranks.
    pub tp: usize,
    /// Whether no other layout beats it in both.
    pub pareto: bool,
}

/// A plan.
#[derive(Debug, Clone, Serialize)]
pub struct Report<M> {
    /// Name of the machine.
    pub machine: String,
    /// What it is.
    pub about: String,
    /// Relative error to expect of times.
    pub uncertainty: f64,
    /// The job.
    pub job: Job<M>,
    /// Parameters of the model.
    pub parameters: usize,
    /// Nodes.
    pub nodes: usize,
    /// Bytes that a rank's tensors may take.
    pub usable_bytes: f64,
    /// Whether every stage fits.
    pub fits: bool,
    /// Every stage's memory.
    pub stages: Vec<StageMemory>,
    /// The step, by term.
    pub time: StepTime,
    /// The step, in seconds.
    pub seconds: f64,
    /// Tokens per second of the whole job.
    pub tokens_per_second: f64,
    /// Tokens per second of one rank.
    pub tokens_per_second_per_rank: f64,
    /// Model FLOPs utilization.
    pub mfu: f64,
    /// Hardware FLOPs utilization.
    pub hfu: f64,
    /// FLOP/s of one rank by hardware utilization.
    pub hardware_flops: f64,
    /// Layouts that were looked at.
    pub tried: usize,
    /// How many of them fit.
    pub fitting: usize,
    /// The fastest of them.
    pub best: Vec<Candidate<M>>,
    /// All of them, or evenly chosen ones.
    pub points: Vec<Point>,
    /// The layout nearest to the job that fits, if the job does not.
    pub nearest: Option<Candidate<M>>,
    /// What one switch would bring.
    pub switches: Vec<Gain>,
    /// What a better machine would bring.
    pub better_machine: Vec<Gain>,
    /// More replicas, each with its batch.
    pub weak: Vec<ScalingPoint>,
    /// More replicas for the same batch.
    pub strong: Vec<ScalingPoint>,
    /// What the runtime lacks and would gain, if that was asked. Nothing in it can be run.
    #[serde(
        rename = "not_in_this_runtime_yet",
        skip_serializing_if = "Option::is_none"
    )]
    pub what_if: Option<Outlook<M>>,
    #[serde(skip)]
    passes: StagePasses,
    /// How the page says a job's layout and switches.
    #[serde(skip)]
    words: fn(&Job<M>) -> String,
}

impl<M: Planned> Report<M> {
    /// Plans `job` on `machine`, beside all layouts that as many ranks could have.
    ///
    /// # Errors
    /// A job that cannot run.
    pub fn new(job: &Job<M>, machine: &Machine) -> Result<Self> {
        Self::plan(job, machine, false)
    }

    /// The same, and beside it what the runtime lacks and would gain: see [`outlook`].
    ///
    /// # Errors
    /// A job that cannot run.
    pub fn with_what_if(job: &Job<M>, machine: &Machine) -> Result<Self> {
        Self::plan(job, machine, true)
    }

    fn plan(job: &Job<M>, machine: &Machine, what_if: bool) -> Result<Self> {
        let judged = search::judge(job, machine)?;
        let stages = memory::stages(job, machine)?;
        let seconds = judged.time.seconds();
        let speed = time::throughput(job, machine, seconds)?;
        let found = search::search(job, machine, job.layout.world())?;
        let fits = judged.bytes <= machine.usable_bytes();
        let nearest = match fits {
            true => None,
            false => search::nearest(job, machine)?,
        };
        let nodes = job.layout.world().div_ceil(machine.links.ranks_per_node);
        let (weak, strong) = (
            nodes_around(job, machine, true),
            nodes_around(job, machine, false),
        );
        let hfu = speed.hfu.unwrap_or_default();
        Ok(Self {
            machine: machine.name.clone(),
            about: machine.about.clone(),
            uncertainty: machine.uncertainty,
            parameters: job.model.parameters(),
            nodes,
            usable_bytes: machine.usable_bytes(),
            fits,
            stages,
            time: judged.time,
            seconds,
            tokens_per_second: speed.tokens_per_second,
            tokens_per_second_per_rank: speed.tokens_per_second_per_rank,
            mfu: speed.mfu.unwrap_or_default(),
            hfu,
            hardware_flops: hfu * machine.peak(job.precision),
            tried: found.tried,
            fitting: found.ranked.len(),
            best: found.ranked.iter().take(LISTED).cloned().collect(),
            points: points(&found),
            nearest,
            switches: advice::other_switches(job, machine)?,
            better_machine: advice::better_machine(job, machine)?,
            weak: advice::scaling(job, machine, &weak, true)?,
            strong: advice::scaling(job, machine, &strong, false)?,
            what_if: what_if
                .then(|| outlook::outlook(job, machine, job.layout.world(), &found))
                .transpose()?,
            passes: time::passes(job, machine)?,
            words: Job::to_string,
            job: job.clone(),
        })
    }

    /// The same report, whose pages say a job's layout and switches in other words: a program's flags, for one.
    #[must_use]
    pub fn with_words(self, words: fn(&Job<M>) -> String) -> Self {
        Self { words, ..self }
    }

    /// A page that a person reads in a minute.
    pub fn page(&self) -> String {
        let what_if = self.what_if.as_ref().map(what_if::page);
        page::page(self) + &what_if.unwrap_or_default()
    }

    /// One self-contained HTML file.
    ///
    /// # Errors
    /// A schedule that cannot be drawn.
    pub fn html(&self) -> Result<String> {
        html::html(self)
    }

    /// Writes `plan.html` and `plan.json` into `folder`.
    ///
    /// # Errors
    /// A folder that cannot be written to.
    pub fn write(&self, folder: &Path) -> Result<()>
    where
        M: Serialize,
    {
        std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        let json =
            serde_json::to_string_pretty(self).map_err(|e| Error::Internal(e.to_string()))?;
        for (name, text) in [("plan.html", self.html()?), ("plan.json", json)] {
            let path = folder.join(name);
            std::fs::write(&path, text).map_err(|e| Error::io("write", &path, e))?;
        }
        Ok(())
    }
}

/// Numbers of nodes for a scaling curve through the job's: whole replicas, doubled and halved.
fn nodes_around<M: Planned>(job: &Job<M>, machine: &Machine, weak: bool) -> Vec<usize> {
    let replica = (job.layout.tp * job.layout.pp) as f64 / machine.links.ranks_per_node as f64;
    let mut replicas: Vec<usize> = (0..10)
        .map(|doubling| 1 << doubling)
        .chain([job.layout.dp])
        .filter(|&dp| weak || dp as u64 <= job.global_batch)
        .filter(|&dp| dp <= 4 * job.layout.dp)
        .collect();
    replicas.sort_unstable();
    replicas.dedup();
    let nodes = replicas.into_iter().map(|dp| dp as f64 * replica);
    nodes
        .filter(|nodes| nodes.fract() == 0.0)
        .map(|nodes| nodes as usize)
        .collect()
}

fn points<M>(found: &search::Found<M>) -> Vec<Point> {
    let pareto = found.pareto();
    let every = found.ranked.len().div_ceil(SCATTERED).max(1);
    let kept = found
        .ranked
        .iter()
        .enumerate()
        .filter_map(|(i, candidate)| {
            let best = pareto.iter().any(|other| std::ptr::eq(*other, candidate));
            (best || i.is_multiple_of(every)).then_some((candidate, best))
        });
    kept.map(|(candidate, pareto)| Point {
        bytes: candidate.bytes,
        tokens_per_second_per_rank: candidate.tokens_per_second_per_rank,
        tp: candidate.job.layout.tp,
        pareto,
    })
    .collect()
}
