//! Which kernels were launched, by the library's own events.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, OnceLock};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// What the process has done since it began to watch.
#[derive(Clone, Default)]
pub struct Kernels(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    /// Launches of an operation.
    taken: BTreeMap<String, usize>,
    /// Why an operation was left to Burn.
    refused: Vec<String>,
}

impl Kernels {
    /// Begins to watch, once a process.
    pub fn watch() -> Self {
        static WATCH: OnceLock<Kernels> = OnceLock::new();
        let begin = || {
            let kernels = Kernels::default();
            tracing::subscriber::set_global_default(kernels.clone()).unwrap();
            kernels
        };
        WATCH.get_or_init(begin).clone()
    }

    pub fn assert_taken(&self, operation: &str) {
        let taken = &self.0.lock().unwrap().taken;
        assert!(taken.contains_key(operation), "{operation}: {taken:?}");
    }

    pub fn assert_none_refused(&self) {
        let refused = &self.0.lock().unwrap().refused;
        assert!(refused.is_empty(), "{refused:?}");
    }
}

/// An event's fields by name.
#[derive(Default)]
struct Fields(BTreeMap<&'static str, String>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.into());
    }
}

impl Subscriber for Kernels {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata
            .target()
            .starts_with("burn_frontier::ops::backends")
    }

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut seen = self.0.lock().unwrap();
        match (fields.0.remove("operation"), *event.metadata().level()) {
            (Some(operation), Level::TRACE) => *seen.taken.entry(operation).or_default() += 1,
            _ => seen.refused.extend(fields.0.remove("message")),
        }
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}
