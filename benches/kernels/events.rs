//! Whose kernels ran, by the library's own events.

use std::collections::BTreeSet;
use std::fmt::{self, Debug};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn_frontier::observe::progress::Screen;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::{Context, Layer};

use crate::console;

/// Whose code computed an operation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct By {
    /// Whether kernels of frontier-kernels were launched.
    ours: bool,
    /// Why an operation, or a part of it, was left to Burn.
    pub refusals: BTreeSet<String>,
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match (self.ours, self.refusals.is_empty()) {
            (true, true) => "frontier",
            (true, false) => "both",
            (false, _) => "burn",
        })
    }
}

/// What the library has said since [`Self::forget`].
#[derive(Clone, Default)]
pub struct Events(Arc<Mutex<By>>);

impl Events {
    /// Begins to listen, once a process; warnings go to standard error too.
    pub fn watch() -> Self {
        let events = Self::default();
        let backends =
            filter_fn(|about| about.target().starts_with("burn_frontier::ops::backends"));
        console::listen_with(&Screen::default(), events.clone().with_filter(backends));
        events
    }

    pub fn forget(&self) {
        *self.lock() = By::default();
    }

    pub fn seen(&self) -> By {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, By> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The fields of an event that say something.
#[derive(Default)]
struct Fields {
    operation: bool,
    message: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match field.name() {
            "operation" => self.operation = true,
            "message" => self.message = format!("{value:?}"),
            _ => {}
        }
    }
}

impl<S: Subscriber> Layer<S> for Events {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut seen = self.lock();
        if fields.operation && *event.metadata().level() == Level::TRACE {
            seen.ours = true;
        } else {
            seen.refusals.insert(fields.message);
        }
    }
}
