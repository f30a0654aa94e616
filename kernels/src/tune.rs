//! Which of several plans is the fastest on a device: timed once by CubeCL's autotune, and kept in a folder.
//!
//! Only plans that give the same bits are timed against each other (`Plan::candidates` of a family), so a choice decides how
//! long a kernel takes and never what it computes: ranks and runs may choose differently. CubeCL's own file of choices is a
//! database that brings two hundred crates with it; a file a choice needs none, and many processes may share the folder.
//!
//! How often a plan is timed, and how finely shapes are told apart, is CubeCL's to say: `[autotune]` in `cubecl.toml`.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cubecl_core::client::Client;
use cubecl_runtime::tune::{
    CloneInputGenerator, Tunable, TunableSet, TuneCacheResult, Tuner as Timing, anchor,
};

use crate::error::Result;
use crate::hip::tools::{Scratch, cannot, fingerprint, write};

/// Chooses plans by timing them, and remembers what it chose.
pub struct Tuner {
    folder: PathBuf,
    timing: Timing<String>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    chosen: HashMap<String, usize>,
    counts: Counts,
}

/// Where the choices of a process came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Plans were timed.
    pub timed: usize,
    /// The folder had the answer.
    pub found: usize,
    /// Timed, but the answer could not be written to the folder: the next process times again.
    pub lost: usize,
}

/// What is asked once on a device: which of some plans is the fastest for a class of shapes.
pub(crate) struct Question {
    /// What is computed, without sizes.
    pub what: String,
    /// The sizes that timing depends on.
    pub sizes: Vec<usize>,
    /// What the candidates differ by, in words; what is taken without tuning stands first.
    pub candidates: Vec<String>,
}

impl Question {
    /// The question's text: all that the answer depends on.
    fn text(&self, client: &Client) -> String {
        let device = &client.properties().identity;
        // An empty extent is a class of its own.
        let class = |&size: &usize| match size {
            0 => 0,
            _ => anchor(size, None, None, None),
        };
        let sizes: Vec<_> = self.sizes.iter().map(class).collect();
        format!(
            "{} {}\n{} on {}, {}\nsizes up to {sizes:?}\namong {}",
            env!("CARGO_PKG_NAME"),
            env!("CARGO_PKG_VERSION"),
            self.what,
            device.name,
            device.fingerprint,
            self.candidates.join("; "),
        )
    }
}

impl Tuner {
    /// A tuner that keeps its choices in `folder`, which is made if it does not exist.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn new(folder: impl Into<PathBuf>) -> Result<Self> {
        let folder = folder.into();
        fs::create_dir_all(&folder).map_err(|error| cannot("create", &folder, &error))?;
        Ok(Self {
            timing: Timing::new(env!("CARGO_PKG_NAME"), &fingerprint(&folder)),
            folder,
            state: Mutex::default(),
        })
    }

    /// Where the choices lie.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the choices came from so far.
    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    /// The number of the fastest candidate; 0 while another thread times them.
    ///
    /// `prepare` is called if they have to be timed, and gives what launches one of them, on memory that nobody else needs.
    pub(crate) fn fastest<F>(
        &self,
        client: &Client,
        question: &Question,
        prepare: impl FnOnce() -> F,
    ) -> usize
    where
        F: Fn(usize) -> Result<()> + Send + Sync + 'static,
    {
        if question.candidates.len() < 2 {
            return 0;
        }
        let text = question.text(client);
        if let Some(&chosen) = self.state().chosen.get(&text) {
            return chosen;
        }
        if let Some(found) = self.read(&text, &question.candidates) {
            let mut state = self.state();
            // Ranks that are threads may have read the file at the same time.
            let new = state.chosen.insert(text, found).is_none();
            state.counts.found += usize::from(new);
            return found;
        }
        let Some(chosen) = self.time(client, &text, question, prepare()) else {
            return 0;
        };
        let written = self.write(&text, &question.candidates[chosen]);
        let mut state = self.state();
        if state.chosen.insert(text, chosen).is_none() {
            state.counts.timed += 1;
            state.counts.lost += usize::from(written.is_err());
        }
        chosen
    }

    /// Has CubeCL time the candidates; `None` while another thread's answer is awaited.
    fn time<F>(&self, client: &Client, text: &str, question: &Question, run: F) -> Option<usize>
    where
        F: Fn(usize) -> Result<()> + Send + Sync + 'static,
    {
        let (key, run) = (text.to_owned(), Arc::new(run));
        let mut set =
            TunableSet::<String, (), ()>::new(move |_: &()| key.clone(), CloneInputGenerator);
        for (number, name) in question.candidates.iter().enumerate() {
            let run = run.clone();
            let launch = move |()| run(number).map_err(|error| error.to_string());
            set = set.with(Tunable::new(name, launch));
        }
        let checksum = || set.compute_checksum();
        let timed = self
            .timing
            .check_tune(&text.to_owned(), &(), &set, checksum, client, None);
        match timed {
            TuneCacheResult::Hit { fastest_index } => Some(fastest_index),
            TuneCacheResult::Unchecked | TuneCacheResult::Pending | TuneCacheResult::Miss => None,
        }
    }

    fn file(&self, text: &str) -> PathBuf {
        self.folder.join(format!("{}.txt", fingerprint(text)))
    }

    /// The choice that the folder has for a question; a file that answers another one, or by no candidate, is none.
    fn read(&self, text: &str, candidates: &[String]) -> Option<usize> {
        let file = fs::read_to_string(self.file(text)).ok()?;
        let choice = file.strip_prefix(text)?.strip_prefix(CHOICE)?;
        candidates.iter().position(|name| name == choice.trim_end())
    }

    /// Replaces the question's file, all at once.
    fn write(&self, text: &str, choice: &str) -> Result<()> {
        let (file, made) = (self.file(text), Scratch::new(&self.folder));
        write(made.path(), format!("{text}{CHOICE}{choice}\n").as_bytes())?;
        fs::rename(made.path(), &file).map_err(|error| cannot("create", &file, &error))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What stands between a question and its answer in a file.
const CHOICE: &str = "\nfastest: ";
