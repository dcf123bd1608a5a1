//! Log lines on standard error, with the ids of the span they belong to, and a level that can be changed while the
//! program runs.

use std::{fmt, io::IsTerminal as _};

use opentelemetry::{Context, trace::TraceContextExt};
use opentelemetry_sdk::trace::SdkTracer;
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt as _, filter_fn},
    fmt::{
        FmtContext,
        format::{FormatEvent, FormatFields, Writer},
    },
    layer::{self, SubscriberExt},
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt,
};

use super::{Error, OPERATIONS, export};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

/// What is logged, and may be changed. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct LogLevel {
    handle: reload::Handle<EnvFilter, Registry>,
    initial: String,
}

impl LogLevel {
    /// What is logged, as `EnvFilter` directives.
    pub(super) fn get(&self) -> String {
        self.handle.with_current(ToString::to_string).unwrap_or_default()
    }

    /// Logs what these directives say from now on; none mean what the program was started with.
    ///
    /// # Errors
    /// If they don't parse. Then nothing changes.
    pub(super) fn set(&self, directives: &str) -> Result<(), Error> {
        let directives = if directives.is_empty() { &self.initial } else { directives };
        // Fails only when the logger is gone, and so is the program.
        let _ = self.handle.reload(EnvFilter::try_new(directives)?);
        Ok(())
    }
}

/// Starts logging, and sending operations' spans to a tracer.
pub(super) fn init(
    directives: &str,
    format: LogFormat,
    tracer: Option<SdkTracer>,
) -> Result<LogLevel, Error> {
    let (filter, handle) = reload::Layer::new(EnvFilter::try_new(directives)?);
    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    // In a file, colours are noise.
    let logs = if std::io::stderr().is_terminal() { logs } else { logs.with_ansi(false) };
    let logs = match format {
        LogFormat::Pretty => logs.map_event_format(|inner| WithIds { inner, format }).boxed(),
        LogFormat::Json => {
            let logs = logs.json().flatten_event(true);
            logs.map_event_format(|inner| WithIds { inner, format }).boxed()
        }
    };
    // Below INFO the NATS client and the WebSocket library tell what passes through them, which is what users write.
    // Of OpenTelemetry's own lines, what we count ourselves is told often enough.
    let discreet = filter_fn(|meta| {
        let is_counted = meta.target().starts_with("opentelemetry") && !is_refusal(meta);
        meta.target().starts_with("herald") || (*meta.level() <= Level::INFO && !is_counted)
    });
    // What is logged as a warning within an operation is an event of its span.
    let operations = tracer.map(|tracer| {
        let kept = filter_fn(|meta| {
            let is_said = meta.target().starts_with("herald") && *meta.level() <= Level::WARN;
            if meta.is_span() { meta.target() == OPERATIONS } else { is_said }
        });
        let layer = tracing_opentelemetry::layer().with_tracer(tracer);
        layer.with_location(false).with_threads(false).with_filter(kept)
    });
    tracing_subscriber::registry()
        .with(logs.with_filter(filter.and(discreet)))
        .with(operations)
        .with(Refusals.with_filter(filter_fn(is_refusal)))
        .try_init()?;
    Ok(LogLevel { handle, initial: directives.to_owned() })
}

/// Whether a receiver says that it has taken only a part of what it was sent. The exporter does nothing but log it.
fn is_refusal(meta: &Metadata<'_>) -> bool {
    meta.target() == "opentelemetry-otlp" && meta.name().ends_with(".PartialSuccess")
}

/// Counts what receivers refuse.
struct Refusals;

impl<S: Subscriber> Layer<S> for Refusals {
    fn on_event(&self, event: &Event<'_>, _: layer::Context<'_, S>) {
        event.record(&mut Refused);
    }
}

struct Refused;

impl Visit for Refused {
    fn record_i64(&mut self, field: &Field, value: i64) {
        if field.name() == "rejected_spans" {
            export::refused(u64::try_from(value).unwrap_or(0));
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}

/// Adds the ids of the current span to a line, under the names that OpenTelemetry gives them outside OTLP.
struct WithIds<F> {
    inner: F,
    format: LogFormat,
}

impl<S, N, F> FormatEvent<S, N> for WithIds<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let current = Context::map_current(|current| {
            let span = current.span();
            let span = span.span_context();
            span.is_valid().then(|| (span.trace_id(), span.span_id()))
        });
        let Some((trace, span)) = current else {
            return self.inner.format_event(context, writer, event);
        };
        let mut line = String::new();
        self.inner.format_event(context, Writer::new(&mut line), event)?;
        let line = line.trim_end();
        match (self.format, line.strip_suffix('}')) {
            (LogFormat::Json, Some(object)) => {
                writeln!(writer, r#"{object},"trace_id":"{trace}","span_id":"{span}"}}"#)
            }
            _ => writeln!(writer, "{line} trace_id={trace} span_id={span}"),
        }
    }
}
