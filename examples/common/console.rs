//! What a program says: lines on standard output, warnings on standard error. A reader that leaves (`| head`) ends nothing.
#![allow(dead_code)] // Every program uses its own part of this file.

use std::fmt::{self, Display};
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use burn_frontier::observe::progress::Screen;
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::{Identity, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt as lines};

/// Prints a line on standard output, as `println!` does, but where it cannot be written the program goes on: `end` says so.
macro_rules! say {
    ($($text:tt)*) => { $crate::console::line(format_args!($($text)*)) };
}

/// What `say!` does.
pub fn line(text: fmt::Arguments<'_>) {
    let _ = writeln!(io::stdout(), "{text}"); // What is not written stays in the buffer.
}

/// The program's end: says if something that was printed could not be written. A reader that left did so on purpose.
pub fn end(code: ExitCode) -> ExitCode {
    match io::stdout().flush() {
        Err(reason) if reason.kind() != ErrorKind::BrokenPipe => {
            tracing::warn!("standard output is not complete: {reason}");
        }
        _ => {}
    }
    code
}

/// Shows the events of the library, and the program's own, on standard error: warnings and errors, or what the
/// environment's RUST_LOG asks for (`debug`, `off`, `burn_frontier=trace`, …).
pub fn listen(screen: &Screen) {
    listen_with(screen, Identity::new());
}

/// As [`listen`], with a layer of the program's own beside.
pub fn listen_with(screen: &Screen, own: impl Layer<Registry> + Send + Sync) {
    let (filter, refused) = match std::env::var("RUST_LOG").map(|wanted| wanted.parse::<Targets>())
    {
        Ok(Ok(filter)) => (filter, None),
        Ok(Err(reason)) => (Targets::new(), Some(reason)),
        Err(_) => (Targets::new(), None),
    };
    let others = filter.default_level().unwrap_or(LevelFilter::WARN);
    let layer = lines::layer()
        .with_ansi(false)
        .log_internal_errors(false)
        .event_format(Plain)
        .with_writer(Errors(screen.clone()))
        .with_filter(filter.with_default(others));
    tracing_subscriber::registry().with(own).with(layer).init();
    if let Some(reason) = refused {
        tracing::warn!("RUST_LOG is not understood ({reason}); use for instance RUST_LOG=debug");
    }
}

/// Prints a line on standard error, whatever RUST_LOG says.
pub fn note(text: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{text}"); // Nobody is left to be told.
}

/// Says why the program ends, and that it has failed.
pub fn failed(error: impl Display) -> ExitCode {
    let _ = writeln!(io::stderr(), "error: {error:#}"); // Nobody is left to be told.
    ExitCode::FAILURE
}

/// An event as one line: `warning: …`.
struct Plain;

impl<S, N> FormatEvent<S, N> for Plain
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "note",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        write!(writer, "{level}: ")?;
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// Standard error, above the bars of a screen.
struct Errors(Screen);

impl Write for &Errors {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.above(|| {
            let _ = io::stderr().write_all(text); // Nobody is left to be told.
        });
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Errors {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}
