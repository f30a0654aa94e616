//! Proof and timing of a schedule: its lists are executed with given costs, without a device.

use std::collections::{HashMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::execute::execute;
use super::schedule::{Instruction, Message, Schedule};
use crate::error::{Error, Result};

mod rules;

/// What instructions cost, in one unit of time of the caller's choice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Costs {
    /// Forward pass of one micro-batch, per model part.
    pub forward: Vec<f64>,
    /// Backward pass of one micro-batch, per model part.
    pub backward: Vec<f64>,
    /// Transit of one message. Stages go on meanwhile; a link carries one message per direction at a time.
    pub send: f64,
    /// Data-parallel reduction of a part's gradients, per model part. A stage does one at a time.
    pub reduce: Vec<f64>,
    /// Optimizer step, per stage.
    pub step: Vec<f64>,
    /// Whether reductions run beside passes; otherwise a stage waits for each.
    pub overlap_reduce: bool,
}

impl Costs {
    /// The same `forward` and `backward` for every part of `schedule`; all else is free.
    pub fn uniform(schedule: &Schedule, forward: f64, backward: f64) -> Self {
        let parts = schedule.parts();
        Self {
            forward: vec![forward; parts],
            backward: vec![backward; parts],
            send: 0.0,
            reduce: vec![0.0; parts],
            step: vec![0.0; schedule.stages],
            overlap_reduce: true,
        }
    }

    fn validate(&self, schedule: &Schedule) -> Result<()> {
        let (parts, stages) = (schedule.parts(), schedule.stages);
        for (name, costs, expected) in [
            ("forward", self.forward.as_slice(), parts),
            ("backward", &self.backward, parts),
            ("send", &[self.send], 1),
            ("reduce", &self.reduce, parts),
            ("step", &self.step, stages),
        ] {
            if costs.len() != expected || !costs.iter().all(|cost| cost.is_finite() && *cost >= 0.0)
            {
                return Err(Error::config(
                    format!(
                        "the {name} costs {costs:?} do not fit a schedule of {stages} stages and {parts} parts"
                    ),
                    format!("give {expected} finite numbers that are not negative"),
                ));
            }
        }
        Ok(())
    }
}

/// One instruction in time. Passes and steps occupy their stage; a receive lasts while its stage waits, a send while its
/// message travels, a reduction while it communicates.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The stage.
    pub stage: usize,
    /// What it does.
    pub instruction: Instruction,
    /// When it begins, in the unit of the costs.
    pub start: f64,
    /// When it is complete.
    pub end: f64,
}

/// What the execution of a schedule gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// From the first instruction to the end of the last, in the unit of the costs.
    pub makespan: f64,
    /// Time each stage spends in passes, its step, and reductions that it waits for.
    pub busy: Vec<f64>,
    /// Most activations that each stage keeps for backward passes at one time, in micro-batches x chunks.
    pub peak_activations: Vec<usize>,
    /// Every instruction, stage by stage in the order of its list.
    pub timeline: Vec<Event>,
}

impl Report {
    /// The share of all stages' time in which they have nothing to do.
    pub fn bubble_fraction(&self) -> f64 {
        let available = self.makespan * self.busy.len() as f64;
        if available == 0.0 {
            return 0.0;
        }
        1.0 - self.busy.iter().sum::<f64>() / available
    }
}

/// Proves that `schedule` runs to its end and times it.
///
/// Every stage starts its optimizer step when all stages have reduced their gradients, because the global gradient
/// norm needs all of them.
///
/// # Errors
/// A pass that is missing, repeated or before what it needs; a reduction before the chunk's last backward pass; a message
/// without sender or receiver, or received in another order than sent; a deadlock (naming what every stage waits for);
/// costs that do not fit the schedule.
pub fn check(schedule: &Schedule, costs: &Costs) -> Result<Report> {
    rules::shape(schedule)?;
    for stage in 0..schedule.stages {
        rules::order(schedule, stage)?;
    }
    rules::messages(schedule)?;
    costs.validate(schedule)?;
    let mut run = Run::new(schedule, costs);
    let list = |stage: usize, at: usize| schedule.orders[stage].get(at).copied();
    // How far a stage gets in one turn does not change any time.
    let places = execute(0..schedule.stages, list, |stage, instruction| {
        Ok(run.perform(stage, instruction))
    })?;
    let blocked = blocked(schedule, &places);
    if blocked.is_empty() {
        return Ok(run.step());
    }
    Err(Error::config(
        format!("the schedule deadlocks: {}", blocked.join("; ")),
        "put the sends that these stages wait for before the receives that block their senders",
    ))
}

/// What each stage that waits for a message waits for, at its place in its list.
fn blocked(schedule: &Schedule, places: &[usize]) -> Vec<String> {
    let waiting = |(stage, &at): (usize, &usize)| {
        let instruction = schedule.orders[stage].get(at)?;
        let message = schedule.message(stage, instruction)?;
        Some(format!(
            "stage {stage} is blocked at instruction {at} ({instruction}), waiting for stage {} to send it",
            message.from
        ))
    };
    places.iter().enumerate().filter_map(waiting).collect()
}

/// One direction between two stages.
#[derive(Default)]
struct Link {
    /// When the last message has left the link.
    free: f64,
    /// Arrival times of the messages that were not received yet.
    arrivals: VecDeque<f64>,
}

/// A stage on its way through its list.
#[derive(Clone, Default)]
struct Stage {
    clock: f64,
    reduced: f64,
    busy: f64,
    alive: usize,
    peak: usize,
    events: Vec<Event>,
}

struct Run<'a> {
    schedule: &'a Schedule,
    costs: &'a Costs,
    stages: Vec<Stage>,
    links: HashMap<(usize, usize), Link>,
}

impl<'a> Run<'a> {
    fn new(schedule: &'a Schedule, costs: &'a Costs) -> Self {
        Self {
            schedule,
            costs,
            stages: vec![Stage::default(); schedule.stages],
            links: HashMap::new(),
        }
    }

    /// Does an instruction of `stage`; false if it must wait, for a message or, at its step, for the others.
    fn perform(&mut self, stage: usize, instruction: Instruction) -> bool {
        let now = self.stages[stage].clock;
        let (start, end) = match instruction {
            Instruction::Step => return false,
            Instruction::Receive { .. } => match self.receive(stage, &instruction) {
                Some(arrival) => (now, now.max(arrival)),
                None => return false,
            },
            Instruction::Send { .. } => self.send(stage, &instruction),
            Instruction::Forward { chunk, .. } => (
                now,
                now + self.costs.forward[self.schedule.part(stage, chunk)],
            ),
            Instruction::Backward { chunk, .. } => (
                now,
                now + self.costs.backward[self.schedule.part(stage, chunk)],
            ),
            Instruction::Reduce { chunk } => {
                let start = now.max(self.stages[stage].reduced);
                (
                    start,
                    start + self.costs.reduce[self.schedule.part(stage, chunk)],
                )
            }
        };
        self.stages[stage].done(
            Event {
                stage,
                instruction,
                start,
                end,
            },
            self.costs.overlap_reduce,
        );
        true
    }

    /// When the message arrives, if it was sent.
    fn receive(&mut self, stage: usize, instruction: &Instruction) -> Option<f64> {
        let Message { from, to, .. } = self.schedule.message(stage, instruction)?;
        self.links.get_mut(&(from, to))?.arrivals.pop_front()
    }

    /// When the message enters its link, and when it arrives.
    fn send(&mut self, stage: usize, instruction: &Instruction) -> (f64, f64) {
        let now = self.stages[stage].clock;
        let Some(Message { from, to, .. }) = self.schedule.message(stage, instruction) else {
            return (now, now);
        };
        let link = self.links.entry((from, to)).or_default();
        let start = now.max(link.free);
        link.free = start + self.costs.send;
        link.arrivals.push_back(link.free);
        (start, link.free)
    }

    /// The optimizer steps, and the result.
    fn step(self) -> Report {
        let ready = |stage: &Stage| stage.clock.max(stage.reduced);
        let start = self.stages.iter().map(ready).fold(0.0, f64::max);
        let mut report = Report {
            makespan: start,
            busy: Vec::new(),
            peak_activations: Vec::new(),
            timeline: Vec::new(),
        };
        for (stage, (state, cost)) in self.stages.into_iter().zip(&self.costs.step).enumerate() {
            report.makespan = report.makespan.max(start + cost);
            report.busy.push(state.busy + cost);
            report.peak_activations.push(state.peak);
            report.timeline.extend(state.events);
            report.timeline.push(Event {
                stage,
                instruction: Instruction::Step,
                start,
                end: start + cost,
            });
        }
        report
    }
}

impl Stage {
    /// Records an instruction: time, and activations alive.
    fn done(&mut self, event: Event, overlap_reduce: bool) {
        let Event {
            instruction,
            start,
            end,
            ..
        } = event;
        match instruction {
            Instruction::Receive { .. } => self.clock = end,
            Instruction::Forward { .. } => {
                self.occupy(start, end);
                self.alive += 1;
                self.peak = self.peak.max(self.alive);
            }
            Instruction::Backward { .. } => {
                self.occupy(start, end);
                self.alive -= 1;
            }
            Instruction::Reduce { .. } => {
                self.reduced = end;
                if !overlap_reduce {
                    self.occupy(start, end);
                }
            }
            Instruction::Send { .. } | Instruction::Step => {}
        }
        self.events.push(event);
    }

    fn occupy(&mut self, start: f64, end: f64) {
        self.clock = end;
        self.busy += end - start;
    }
}
