//! Signals: an end that saves first, and a look at what the ranks do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, Result};
use burn_frontier::comm::local::FlightRecorder;

/// What signals have asked for.
#[derive(Clone, Default)]
pub struct Signals {
    /// The signal that asked the run to end; 0: none has.
    stop: Arc<AtomicUsize>,
    /// Whether nothing is lost by an end at once.
    saved: Arc<AtomicBool>,
}

impl Signals {
    /// The signal that asked the run to save a checkpoint and end.
    pub fn stop(&self) -> Option<i32> {
        match self.stop.load(Ordering::SeqCst) {
            0 => None,
            signal => i32::try_from(signal).ok(),
        }
    }

    /// From now on a signal ends the program at once.
    pub fn all_is_saved(&self) {
        self.saved.store(true, Ordering::SeqCst);
    }
}

/// A signal's exit code, as shells count them.
pub fn exit_code(signal: i32) -> i32 {
    128 + signal
}

/// Begins to listen: Ctrl-C, and what batch systems send before they kill (SIGTERM, SIGHUP), ask for the end; SIGUSR1
/// writes what the flight recorder holds to standard error and to `flight-recorder.txt` in the folder.
#[cfg(unix)]
pub fn listen(recorder: FlightRecorder, folder: &std::path::Path) -> Result<Signals> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};

    let ends = [SIGINT, SIGTERM, SIGHUP];
    // What was ignored when the program started stays so: nohup ignores SIGHUP.
    let heard = ends.into_iter().filter(|&signal| !ignored(signal));
    let mut incoming = signal_hook::iterator::Signals::new(heard.chain([SIGUSR1]))
        .context("cannot listen for signals")?;
    let signals = Signals::default();
    let (asked, path) = (signals.clone(), folder.join("flight-recorder.txt"));
    let attend = move || {
        let mut first = None;
        for signal in incoming.forever() {
            match signal {
                SIGUSR1 => dump(&recorder, &path),
                _ => end(signal, &asked, &mut first),
            }
        }
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(attend)
        .context("cannot start the thread that listens for signals")?;
    Ok(signals)
}

/// Begins to listen for Ctrl-C; the second one ends the program at once.
#[cfg(not(unix))]
pub fn listen(_: FlightRecorder, _: &std::path::Path) -> Result<Signals> {
    use signal_hook::consts::SIGINT;
    use signal_hook::flag;

    let signals = Signals::default();
    let (stop, saved) = (signals.stop.clone(), signals.saved.clone());
    // In this order: the first one finds the flag down and raises it.
    flag::register_conditional_shutdown(SIGINT, exit_code(SIGINT), saved.clone())
        .and_then(|_| flag::register(SIGINT, saved))
        .and_then(|_| flag::register_usize(SIGINT, stop, SIGINT as usize))
        .context("cannot listen for Ctrl-C")?;
    Ok(signals)
}

/// Takes note of a signal that asks for the end.
#[cfg(unix)]
fn end(signal: i32, asked: &Signals, first: &mut Option<std::time::Instant>) {
    // Some senders (`timeout`, batch systems) reach a program twice with one request.
    const ONE_REQUEST: std::time::Duration = std::time::Duration::from_millis(500);

    let again = first.is_some_and(|at| at.elapsed() > ONE_REQUEST);
    if again || asked.saved.load(Ordering::SeqCst) {
        std::process::exit(exit_code(signal));
    }
    if first.is_none() {
        *first = Some(std::time::Instant::now());
        asked.stop.store(signal as usize, Ordering::SeqCst);
        tracing::warn!(
            "{}: the run saves a checkpoint after this step and ends; another one ends it at once",
            name(signal)
        );
    }
}

/// A signal's name.
pub fn name(signal: i32) -> &'static str {
    #[cfg(unix)]
    let name = signal_hook::low_level::signal_name(signal);
    #[cfg(not(unix))]
    let name = (signal == signal_hook::consts::SIGINT).then_some("Ctrl-C");
    name.unwrap_or("a signal")
}

#[cfg(unix)]
fn dump(recorder: &FlightRecorder, path: &std::path::Path) {
    let text = match recorder.dump() {
        Some(text) if text.is_empty() => "no operation between ranks so far".into(),
        Some(text) => text,
        None => "no ranks run".into(),
    };
    match std::fs::write(path, &text) {
        Ok(()) => tracing::warn!("flight recorder, also in {}:\n{text}", path.display()),
        Err(reason) => tracing::warn!(
            "flight recorder (it cannot be written to {}: {reason}):\n{text}",
            path.display()
        ),
    }
}

/// Whether the process was started with a signal ignored, where the system tells.
#[cfg(unix)]
fn ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}
