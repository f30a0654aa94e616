//! The one executor of stages' lists. What an instruction does is its caller's: a runner computes and communicates, the
//! checker and the planner keep time.

use std::ops::Range;

use crate::error::Result;

/// Does what the lists of `stages` say, each in its order, until all are at their ends or none can go on. Gives at which
/// place of its list each stage stands then.
///
/// `list` gives the instruction of a stage at a place of its list, none behind its end. `perform` does it and gives true, or
/// gives false if it must wait for what another stage has not done yet; it is asked again later.
///
/// # Errors
/// Those of `perform`.
pub fn execute<I>(
    stages: Range<usize>,
    list: impl Fn(usize, usize) -> Option<I>,
    mut perform: impl FnMut(usize, I) -> Result<bool>,
) -> Result<Vec<usize>> {
    let mut places = vec![0; stages.len()];
    let mut progress = true;
    while progress {
        progress = false;
        // Forwards the activations' way, then back the gradients' way.
        for stage in stages.clone().chain(stages.clone().rev()) {
            let place = &mut places[stage - stages.start];
            while let Some(instruction) = list(stage, *place) {
                if !perform(stage, instruction)? {
                    break;
                }
                *place += 1;
                progress = true;
            }
        }
    }
    Ok(places)
}
