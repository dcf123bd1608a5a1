//! Sends spans by OTLP, in batches, from a thread of its own. Whoever makes a span never waits: what the receiver does
//! not take in time is dropped, counted, and told in one line now and then.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use opentelemetry::Context;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter as Export,
        SpanProcessor,
    },
};

use super::{Budget, Error, OtlpProtocol, TelemetryArgs};
use crate::clock::now_ms;

static DROPPED: AtomicU64 = AtomicU64::new(0);
/// In minutes.
static COMPLAINTS: Budget = Budget::new(1);

/// How many spans were dropped since the program began: the queue was full, or the receiver did not take them, or
/// only a part of them.
pub fn dropped_spans() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Counts spans that the receiver says it has not taken. The exporter itself has told it.
pub(super) fn refused(count: u64) {
    DROPPED.fetch_add(count, Ordering::Relaxed);
}

fn drop_spans(count: usize, why: &str) {
    let dropped = DROPPED.fetch_add(count as u64, Ordering::Relaxed) + count as u64;
    if COMPLAINTS.take(now_ms().cast_unsigned() / 60_000) {
        tracing::warn!(error = why, herald.spans.dropped = dropped, "spans can't be sent");
    }
}

/// What takes spans and sends them; `None` if there is nowhere to send them to.
pub(super) fn processor(args: &TelemetryArgs) -> Result<Option<Gate>, Error> {
    let Some(exporter) = exporter(args)? else { return Ok(None) };
    let queue = queue_size();
    let waiting = Arc::new(AtomicUsize::new(0));
    let exporter = Counted { inner: exporter, waiting: waiting.clone() };
    let config = BatchConfigBuilder::default().with_max_queue_size(queue).build();
    let inner = BatchSpanProcessor::new(exporter, config);
    Ok(Some(Gate { inner, waiting, queue }))
}

fn exporter(args: &TelemetryArgs) -> Result<Option<SpanExporter>, Error> {
    let own = std::env::var(opentelemetry_otlp::OTEL_EXPORTER_OTLP_TRACES_ENDPOINT);
    let own = own.ok().filter(|endpoint| !endpoint.is_empty());
    let shared = args.otlp_endpoint.as_ref().filter(|endpoint| !endpoint.is_empty());
    let Some(endpoint) = own.as_ref().or(shared) else { return Ok(None) };
    // For https; whoever was first, it is the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = SpanExporter::builder();
    let exporter = match args.otlp_protocol {
        OtlpProtocol::Grpc => {
            builder.with_tonic().with_endpoint(endpoint).with_protocol(Protocol::Grpc).build()?
        }
        OtlpProtocol::HttpProtobuf => {
            // The path belongs to an endpoint for traces alone, and is added to one for everything.
            let url = match own {
                Some(own) => own,
                None => format!("{}/v1/traces", endpoint.trim_end_matches('/')),
            };
            builder.with_http().with_endpoint(url).with_protocol(Protocol::HttpBinary).build()?
        }
    };
    Ok(Some(exporter))
}

/// As `OTEL_BSP_MAX_QUEUE_SIZE` says, 2048 by default.
fn queue_size() -> usize {
    let size = std::env::var("OTEL_BSP_MAX_QUEUE_SIZE").ok().and_then(|size| size.parse().ok());
    size.filter(|size| *size > 0).unwrap_or(2048)
}

/// Counts what waits in the SDK's queue, and turns away what does not fit: the SDK would drop it without telling.
#[derive(Debug)]
pub(super) struct Gate {
    inner: BatchSpanProcessor,
    waiting: Arc<AtomicUsize>,
    queue: usize,
}

impl SpanProcessor for Gate {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.inner.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.queue {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            drop_spans(1, "the queue is full");
        } else {
            self.inner.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// Tells the gate what was taken from the queue.
#[derive(Debug)]
struct Counted {
    inner: SpanExporter,
    waiting: Arc<AtomicUsize>,
}

impl Export for Counted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        self.waiting.fetch_sub(count, Ordering::Relaxed);
        let exported = self.inner.export(batch).await;
        if let Err(error) = &exported {
            drop_spans(count, &error.to_string());
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}
