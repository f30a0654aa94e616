//! What a schedule must satisfy before it is executed.

use std::collections::{BTreeMap, HashSet};

use crate::error::{Error, Result};
use crate::pipeline::schedule::{Instruction, Message, Schedule};

const REMEDY: &str = "correct the list, or make the schedule with `Schedule::new`";

/// The lists have the schedule's size, and every index in them exists.
pub(super) fn shape(schedule: &Schedule) -> Result<()> {
    let (stages, chunks) = (schedule.stages, schedule.kind.chunks());
    let micro_batches = schedule.micro_batches;
    if schedule.orders.len() != stages || [stages, chunks, micro_batches].contains(&0) {
        return Err(Error::config(
            format!(
                "a schedule of {stages} stages, {chunks} chunks and {micro_batches} micro-batches has {} lists",
                schedule.orders.len()
            ),
            "give one list a stage, and at least one stage, chunk and micro-batch",
        ));
    }
    if stages.checked_mul(chunks).is_none() {
        return Err(Error::config(
            format!("{stages} stages of {chunks} chunks are more parts than can be counted"),
            "use smaller numbers",
        ));
    }
    for (stage, order) in schedule.orders.iter().enumerate() {
        for (at, instruction) in order.iter().enumerate() {
            let (micro_batch, chunk) = indices(instruction);
            if micro_batch >= micro_batches || chunk >= chunks {
                return Err(Error::config(
                    format!(
                        "stage {stage}, instruction {at}: `{instruction}`, \
                         but there are {micro_batches} micro-batches and {chunks} chunks"
                    ),
                    REMEDY,
                ));
            }
        }
    }
    Ok(())
}

fn indices(instruction: &Instruction) -> (usize, usize) {
    match *instruction {
        Instruction::Forward { micro_batch, chunk }
        | Instruction::Backward { micro_batch, chunk }
        | Instruction::Receive {
            micro_batch, chunk, ..
        }
        | Instruction::Send {
            micro_batch, chunk, ..
        } => (micro_batch, chunk),
        Instruction::Reduce { chunk } => (0, chunk),
        Instruction::Step => (0, 0),
    }
}

/// The stage does nothing twice, nothing before what it needs, and steps last. The step needs every reduction, a
/// reduction the chunk's backward passes, a backward pass its forward pass: so each happens exactly once.
pub(super) fn order(schedule: &Schedule, stage: usize) -> Result<()> {
    let order = &schedule.orders[stage];
    let mut done = HashSet::new();
    for (at, instruction) in order.iter().enumerate() {
        let refuse = |why: String| {
            Err(Error::config(
                format!("stage {stage}, instruction {at}: `{instruction}` {why}"),
                REMEDY,
            ))
        };
        if done.contains(&Instruction::Step) {
            return refuse("comes after the step".into());
        }
        if is_communication(instruction) && schedule.message(stage, instruction).is_none() {
            return refuse("has no other stage to communicate with".into());
        }
        if let Some(missing) = missing(schedule, stage, instruction, &done) {
            let where_it_is = match order.contains(&missing) {
                true => "which comes later",
                false => "which the list lacks",
            };
            return refuse(format!("needs `{missing}` first, {where_it_is}"));
        }
        if !done.insert(*instruction) {
            return refuse("is done a second time".into());
        }
    }
    if !done.contains(&Instruction::Step) {
        return Err(Error::config(
            format!("stage {stage} has no step at its end"),
            REMEDY,
        ));
    }
    Ok(())
}

fn is_communication(instruction: &Instruction) -> bool {
    matches!(
        instruction,
        Instruction::Send { .. } | Instruction::Receive { .. }
    )
}

/// The first instruction that must precede `instruction` and is not done.
fn missing(
    schedule: &Schedule,
    stage: usize,
    instruction: &Instruction,
    done: &HashSet<Instruction>,
) -> Option<Instruction> {
    let undone = |needed: Instruction| (!done.contains(&needed)).then_some(needed);
    let input = || schedule.input(stage, instruction).and_then(undone);
    match *instruction {
        Instruction::Receive { .. } => None,
        Instruction::Forward { .. } => input(),
        Instruction::Backward { micro_batch, chunk } => {
            undone(Instruction::Forward { micro_batch, chunk }).or_else(input)
        }
        Instruction::Send {
            what,
            micro_batch,
            chunk,
        } => undone(what.made_by(micro_batch, chunk)),
        Instruction::Reduce { chunk } => (0..schedule.micro_batches)
            .find_map(|micro_batch| undone(Instruction::Backward { micro_batch, chunk })),
        Instruction::Step => {
            (0..schedule.kind.chunks()).find_map(|chunk| undone(Instruction::Reduce { chunk }))
        }
    }
}

/// What a stage sends to another and what that one receives from it, each in order.
#[derive(Default)]
struct Traffic {
    sent: Vec<Message>,
    received: Vec<Message>,
}

/// Every stage receives what another sends to it, in the order of the sends.
pub(super) fn messages(schedule: &Schedule) -> Result<()> {
    let mut pairs: BTreeMap<(usize, usize), Traffic> = BTreeMap::new();
    for (stage, order) in schedule.orders.iter().enumerate() {
        for message in order.iter().filter_map(|at| schedule.message(stage, at)) {
            let traffic = pairs.entry((message.from, message.to)).or_default();
            match message.from == stage {
                true => traffic.sent.push(message),
                false => traffic.received.push(message),
            }
        }
    }
    for ((from, to), Traffic { sent, received }) in pairs {
        let parted = (0..sent.len().max(received.len())).find(|&i| sent.get(i) != received.get(i));
        let Some(at) = parted else {
            continue;
        };
        let what = match (sent.get(at), received.get(at)) {
            (_, Some(message)) if !sent.contains(message) => {
                format!("stage {to} receives the {message} from stage {from}, which never sends it")
            }
            (Some(message), _) if !received.contains(message) => {
                format!("stage {from} sends the {message} to stage {to}, which never receives it")
            }
            (Some(sent), Some(received)) => format!(
                "message {at} from stage {from} to stage {to} is the {sent}, but is received as the {received}"
            ),
            (sent, received) => {
                return Err(Error::Internal(format!(
                    "{sent:?} and {received:?} part at {at}"
                )));
            }
        };
        return Err(Error::config(
            what,
            "receive every message once, in the order in which it is sent",
        ));
    }
    Ok(())
}
