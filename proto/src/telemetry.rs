//! Logs and trace contexts, set up alike in both programs.

use std::collections::HashMap;

use async_nats::HeaderMap;
use opentelemetry::{
    propagation::TextMapPropagator,
    trace::{TraceContextExt, TracerProvider},
};
use opentelemetry_sdk::{propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

use crate::header::{self, HeaderExtractor};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

/// Keeps telemetry running; dropping it ends the trace provider.
pub struct Telemetry {
    provider: SdkTracerProvider,
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        // Nothing is exported yet, so there is nothing to lose: a failed shutdown needs no line.
        let _ = self.provider.shutdown();
    }
}

/// Starts logging to standard error and gives spans W3C trace contexts. Spans named by this service are recorded
/// whatever `filter` (an `EnvFilter` directive list) says about log lines.
///
/// # Errors
/// If `filter` does not parse, or a subscriber is already set.
pub fn init(
    service: &'static str,
    filter: &str,
    format: LogFormat,
) -> Result<Telemetry, Box<dyn std::error::Error + Send + Sync>> {
    let provider = SdkTracerProvider::builder().build();
    let spans = tracing_opentelemetry::layer().with_tracer(provider.tracer(service)).with_filter(
        tracing_subscriber::filter::filter_fn(|meta| {
            meta.is_span() && meta.target().starts_with("herald")
        }),
    );
    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let logs = match format {
        LogFormat::Pretty => logs.boxed(),
        LogFormat::Json => logs.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry()
        .with(spans)
        .with(logs.with_filter(EnvFilter::try_new(filter)?))
        .try_init()?;
    Ok(Telemetry { provider })
}

/// The span's trace context as the W3C header `traceparent`; `None` if nothing records it.
pub fn traceparent(span: &Span) -> Option<String> {
    let context = span.context();
    let span = context.span();
    let context = span.span_context();
    context.is_valid().then(|| {
        let (trace, span) = (context.trace_id(), context.span_id());
        format!("00-{trace}-{span}-{:02x}", context.trace_flags().to_u8())
    })
}

/// Makes what a `traceparent` says the span's parent.
pub fn continue_trace(span: &Span, traceparent: &str) {
    let carrier = HashMap::from([(header::TRACEPARENT.to_owned(), traceparent.to_owned())]);
    // Fails only for a span that no layer records: then there is no trace to continue.
    let _ = span.set_parent(TraceContextPropagator::new().extract(&carrier));
}

/// Makes the context in the headers, if there is one, the span's parent.
pub fn set_parent(span: &Span, headers: Option<&HeaderMap>) {
    if let Some(headers) = headers {
        let parent = TraceContextPropagator::new().extract(&HeaderExtractor(headers));
        // Fails only for a span that no layer records: then there is no trace to continue.
        let _ = span.set_parent(parent);
    }
}
