//! Sends a program's metrics to an OpenTelemetry collector, by OTLP over gRPC or HTTP: the same numbers that a scrape
//! shows, cumulative, with exemplars.

use std::{sync::Arc, time::Duration};

use opentelemetry_proto::tonic::{
    collector::metrics::v1::{
        ExportMetricsServiceRequest, metrics_service_client::MetricsServiceClient,
    },
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    metrics::v1::{
        AggregationTemporality, Exemplar, Gauge, Histogram, HistogramDataPoint, Metric,
        NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, exemplar, metric, number_data_point,
    },
    resource::v1::Resource,
};
use prost::Message as _;
use tokio::time::{MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{
    metadata::{Ascii, MetadataKey},
    transport::{Channel, ClientTlsConfig, Endpoint},
};

use super::{Family, Kind, Point, Reading, Registry, Sample};
use crate::clock::now_ms;

mod args;

pub use args::OtlpArgs;

/// Where metrics go, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The collector: for gRPC its address, for HTTP the whole URL.
    pub endpoint: String,
    /// How it is spoken to.
    pub protocol: Protocol,
    /// How often.
    pub every: Duration,
    /// What is sent along: names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// What the metrics are about, besides the program's own attributes: `service.name` and the like.
    pub attributes: Vec<(String, String)>,
}

/// How a collector is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// OTLP over gRPC, by custom on port 4317.
    Grpc,
    /// OTLP over HTTP, protobuf, by custom on port 4318.
    Http,
}

/// How long a collector may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The scope of everything that Herald measures.
const SCOPE: &str = "herald";
const NANOS_IN_MS: u64 = 1_000_000;

/// Why metrics can't be sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The endpoint is no URL.
    #[error("the endpoint {0} is no http:// or https:// URL")]
    Endpoint(String),
    /// The collector can't be reached, or refuses.
    #[error("the collector does not take them: {0}")]
    Grpc(#[from] tonic::Status),
    /// The same over HTTP.
    #[error("the collector does not take them: {0}")]
    Http(#[from] reqwest::Error),
    /// It takes too long.
    #[error("the collector has not answered within {PATIENCE:?}")]
    Silent,
}

/// Sends what a registry holds.
pub struct Exporter {
    registry: Arc<Registry>,
    settings: Settings,
    client: Client,
    started_at: u64,
}

enum Client {
    Grpc(MetricsServiceClient<Channel>),
    Http(reqwest::Client),
}

impl Exporter {
    /// An exporter of what is counted from now on. It does not connect before there is something to send.
    ///
    /// # Errors
    /// If the endpoint is no URL.
    pub fn new(registry: Arc<Registry>, settings: Settings) -> Result<Self, Error> {
        let no_url = || Error::Endpoint(settings.endpoint.clone());
        if !["http://", "https://"].iter().any(|scheme| settings.endpoint.starts_with(scheme)) {
            return Err(no_url());
        }
        // For https. Fails if another part of the process has chosen a provider already, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = match settings.protocol {
            Protocol::Grpc => {
                let endpoint = Endpoint::from_shared(settings.endpoint.clone());
                let mut endpoint = endpoint.map_err(|_| no_url())?.connect_timeout(PATIENCE);
                if settings.endpoint.starts_with("https://") {
                    let tls = ClientTlsConfig::new().with_native_roots();
                    endpoint = endpoint.tls_config(tls).map_err(|_| no_url())?;
                }
                Client::Grpc(MetricsServiceClient::new(endpoint.connect_lazy()))
            }
            Protocol::Http => Client::Http(reqwest::Client::builder().build()?),
        };
        Ok(Self { registry, settings, client, started_at: now_nanos() })
    }

    /// Sends now and then until told to stop, and then once more. A failure is logged when it begins and when it ends.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(self.settings.every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut has_failed = false;
        loop {
            let is_last = tokio::select! {
                _ = tick.tick() => false,
                () = stop.cancelled() => true,
            };
            match self.export().await {
                Ok(()) if has_failed => {
                    tracing::info!("metrics are sent again");
                    has_failed = false;
                }
                Err(error) if !has_failed => {
                    tracing::warn!(%error, server.address = self.settings.endpoint, "metrics can't be sent, trying again");
                    has_failed = true;
                }
                _ => {}
            }
            if is_last {
                return;
            }
        }
    }

    async fn export(&mut self) -> Result<(), Error> {
        let request = request(&self.registry, &self.settings.attributes, self.started_at);
        timeout(PATIENCE, self.send(request)).await.map_err(|_| Error::Silent)?
    }

    async fn send(&mut self, request: ExportMetricsServiceRequest) -> Result<(), Error> {
        let headers = &self.settings.headers;
        match &mut self.client {
            Client::Grpc(client) => {
                let mut request = tonic::Request::new(request);
                for (name, value) in headers {
                    let name = MetadataKey::<Ascii>::from_bytes(name.as_bytes());
                    let value = value.parse();
                    if let (Ok(name), Ok(value)) = (name, value) {
                        request.metadata_mut().insert(name, value);
                    }
                }
                client.export(request).await?;
            }
            Client::Http(client) => {
                let post = client.post(&self.settings.endpoint);
                let post = post.header("content-type", "application/x-protobuf");
                let post =
                    headers.iter().fold(post, |post, (name, value)| post.header(name, value));
                post.body(request.encode_to_vec()).send().await?.error_for_status()?;
            }
        }
        Ok(())
    }
}

fn now_nanos() -> u64 {
    u64::try_from(now_ms()).unwrap_or(0).saturating_mul(NANOS_IN_MS)
}

/// All metrics as they are now.
pub(super) fn request(
    registry: &Registry,
    attributes: &[(String, String)],
    started_at: u64,
) -> ExportMetricsServiceRequest {
    let now = now_nanos();
    let metrics = registry.families().iter().map(|family| metric(family, started_at, now));
    let scope = InstrumentationScope {
        name: SCOPE.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        ..InstrumentationScope::default()
    };
    let attributes = attributes.iter().map(|(name, value)| attribute(name, value)).collect();
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(Resource { attributes, ..Resource::default() }),
            scope_metrics: vec![ScopeMetrics {
                scope: Some(scope),
                metrics: metrics.collect(),
                schema_url: String::new(),
            }],
            schema_url: String::new(),
        }],
    }
}

fn metric(family: &Family, started_at: u64, now: u64) -> Metric {
    let samples = family.read();
    let numbers = || samples.iter().filter_map(|sample| number(sample, started_at, now)).collect();
    let cumulative = AggregationTemporality::Cumulative.into();
    let data = match family.kind {
        Kind::Counter => metric::Data::Sum(Sum {
            data_points: numbers(),
            aggregation_temporality: cumulative,
            is_monotonic: true,
        }),
        Kind::Gauge => metric::Data::Gauge(Gauge { data_points: numbers() }),
        Kind::Histogram => metric::Data::Histogram(Histogram {
            data_points: samples
                .iter()
                .filter_map(|sample| histogram(sample, started_at, now))
                .collect(),
            aggregation_temporality: cumulative,
        }),
    };
    let unit = match family.unit() {
        Some("seconds") => "s",
        Some("bytes") => "By",
        _ => "",
    };
    Metric {
        name: family.name.into(),
        description: family.help.into(),
        unit: unit.into(),
        metadata: vec![],
        data: Some(data),
    }
}

fn number(sample: &Sample, started_at: u64, now: u64) -> Option<NumberDataPoint> {
    let Point::Number(value) = sample.point else { return None };
    Some(NumberDataPoint {
        attributes: labels(sample),
        start_time_unix_nano: started_at,
        time_unix_nano: now,
        value: Some(number_data_point::Value::AsDouble(value)),
        ..NumberDataPoint::default()
    })
}

fn histogram(sample: &Sample, started_at: u64, now: u64) -> Option<HistogramDataPoint> {
    let Point::Histogram(Reading { uppers, counts, sum, exemplars }) = &sample.point else {
        return None;
    };
    let exemplar = |kept: &super::Exemplar| Exemplar {
        time_unix_nano: u64::try_from(kept.at).unwrap_or(0).saturating_mul(NANOS_IN_MS),
        trace_id: kept.trace.to_bytes().to_vec(),
        value: Some(exemplar::Value::AsDouble(kept.value)),
        ..Exemplar::default()
    };
    Some(HistogramDataPoint {
        attributes: labels(sample),
        start_time_unix_nano: started_at,
        time_unix_nano: now,
        count: counts.iter().sum(),
        sum: Some(*sum),
        bucket_counts: counts.clone(),
        explicit_bounds: uppers.clone(),
        exemplars: exemplars.iter().flatten().map(exemplar).collect(),
        ..HistogramDataPoint::default()
    })
}

fn labels(sample: &Sample) -> Vec<KeyValue> {
    sample.labels.iter().map(|(name, value)| attribute(name, value)).collect()
}

fn attribute(name: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value.into())) };
    KeyValue { key: name.into(), value: Some(value), ..KeyValue::default() }
}
