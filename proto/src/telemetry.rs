//! Logs and traces, set up alike in both programs.
//!
//! Nothing is traced unless an OTLP endpoint is set. Which requests are is decided once, where they come in
//! ([`Sampler`]): one that is not traced never has a [`Span`], and carries nothing.

use std::{net::SocketAddr, sync::OnceLock, time::Duration};

use opentelemetry::{InstrumentationScope, KeyValue, trace::TracerProvider as _};
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler as SdkSampler, SdkTracer, SdkTracerProvider},
};

mod budget;
mod control;
mod export;
mod logs;
mod sampler;
mod span;
mod traceparent;

pub use budget::Budget;
pub use export::dropped_spans;
pub use logs::LogFormat;
pub use sampler::{Sampler, keeps_error};
pub(crate) use span::broker_is_at;
pub use span::{Beginning, Ended, Span};
pub use traceparent::{Traceparent, lenient};

/// Logs and traces.
#[derive(Debug, Clone, clap::Args)]
pub struct TelemetryArgs {
    /// What to log, as tracing `EnvFilter` directives. --log-listen lets it be changed at run time.
    #[arg(long, env = "HERALD_LOG", default_value = "info", global = true)]
    pub log: String,
    /// How log lines look.
    #[arg(long, env = "HERALD_LOG_FORMAT", value_enum, default_value_t = LogFormat::Pretty, global = true)]
    pub log_format: LogFormat,
    /// Where traces are sent: an OTLP receiver such as the OpenTelemetry Collector. Without it nothing is traced. The
    /// other standard variables (`OTEL_EXPORTER_OTLP_*`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_BSP_*`) hold too.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", global = true)]
    pub otlp_endpoint: Option<String>,
    /// How they are sent.
    #[arg(
        long,
        env = "OTEL_EXPORTER_OTLP_PROTOCOL",
        value_enum,
        default_value = "http/protobuf",
        global = true
    )]
    pub otlp_protocol: OtlpProtocol,
    /// What this service is called in traces. [default: the program's name]
    #[arg(long, env = "OTEL_SERVICE_NAME", global = true)]
    pub service_name: Option<String>,
    /// Where to serve `/log`, on this machine only: `GET` says what is logged, `PUT` with `EnvFilter` directives changes
    /// it, and with an empty body takes it back to --log. [default: nowhere]
    #[arg(long, env = "HERALD_LOG_LISTEN", global = true)]
    pub log_listen: Option<SocketAddr>,
}

/// How traces are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OtlpProtocol {
    /// gRPC, by custom on port 4317.
    Grpc,
    /// Protobuf over HTTP, by custom on port 4318.
    #[value(name = "http/protobuf")]
    HttpProtobuf,
}

/// Why telemetry can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directives don't parse.
    #[error("--log: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// Logs are set up already.
    #[error(transparent)]
    Twice(#[from] tracing_subscriber::util::TryInitError),
    /// The log level can't be served.
    #[error(transparent)]
    Control(#[from] control::Error),
    /// The exporter can't be made.
    #[error("--otlp-endpoint: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// Logs and traces under way.
#[derive(Debug)]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

/// How long the last spans may take to be sent.
const GOODBYE: Duration = Duration::from_secs(3);

/// The target of `tracing` spans that are sent as traces of their own: what the service does for itself, such as taking
/// a partition over. What it does for a message are [`Span`]s, which begin, end and are linked where `tracing`'s can't.
pub const OPERATIONS: &str = "herald::operations";

/// Makes spans, if traces are sent anywhere. There is one for the process, as there is one logger.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// Starts logging to standard error, and sending traces if an endpoint is set. `instance` tells the process from its
/// peers.
///
/// # Errors
/// [`Error`], which names the flag.
pub async fn init(
    service: &'static str,
    instance: &str,
    args: &TelemetryArgs,
) -> Result<Telemetry, Error> {
    let provider = export::processor(args)?.map(|processor| {
        SdkTracerProvider::builder()
            .with_resource(resource(service, instance, args.service_name.as_deref()))
            // Only what is to be kept ever becomes a span.
            .with_sampler(SdkSampler::AlwaysOn)
            .with_span_processor(processor)
            .build()
    });
    let scope = InstrumentationScope::builder("herald").with_version(env!("CARGO_PKG_VERSION"));
    let scope = scope.build();
    let tracer = provider.as_ref().map(|provider| provider.tracer_with_scope(scope));
    let level = logs::init(&args.log, args.log_format, tracer.clone())?;
    if let Some(address) = args.log_listen {
        control::serve(address, level).await?;
    }
    if let Some(tracer) = tracer {
        // Whoever set it first, logs would not have been set up twice.
        let _ = TRACER.set(tracer);
    }
    Ok(Telemetry { provider })
}

/// Starts logging alone.
///
/// # Errors
/// [`Error`]
pub fn log(directives: &str, format: LogFormat) -> Result<Telemetry, Error> {
    logs::init(directives, format, None)?;
    Ok(Telemetry { provider: None })
}

/// Who sends traces and metrics. What `OTEL_RESOURCE_ATTRIBUTES` says goes first, except for what has a flag.
pub(crate) fn resource(service: &str, instance: &str, named_by_flag: Option<&str>) -> Resource {
    let named = Resource::builder().build();
    let is_named = |key: &'static str| named.get(&key.into()).is_some();
    let is_service_named = std::env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|attributes| {
        attributes.split(',').any(|one| one.trim().starts_with("service.name="))
    });
    let mut attributes = Vec::new();
    match named_by_flag {
        Some(name) => attributes.push(KeyValue::new("service.name", name.to_owned())),
        None if !is_service_named => {
            attributes.push(KeyValue::new("service.name", service.to_owned()));
        }
        None => {}
    }
    if !is_named("service.version") {
        attributes.push(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    }
    if !is_named("service.instance.id") {
        attributes.push(KeyValue::new("service.instance.id", instance.to_owned()));
    }
    Resource::builder().with_attributes(attributes).build()
}

/// Whether traces are sent anywhere.
pub fn is_on() -> bool {
    TRACER.get().is_some()
}

impl Telemetry {
    /// Sends what is left, as far as that is possible within a few seconds.
    pub async fn shutdown(self) {
        let Some(provider) = self.provider else { return };
        let sent = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(GOODBYE));
        match sent.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last spans may be lost"),
            Err(error) => tracing::error!(%error, "the last spans are lost"),
        }
        if dropped_spans() > 0 {
            tracing::warn!(herald.spans.dropped = dropped_spans(), "not all spans were sent");
        }
    }
}
