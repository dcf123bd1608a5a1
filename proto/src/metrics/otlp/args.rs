//! Where metrics are sent, by the names that OpenTelemetry gives its settings.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{Protocol, Settings};

/// Where metrics are sent. Without an endpoint they are only there to be scraped.
#[derive(Debug, Clone, Default, Args)]
#[group(skip)]
pub struct OtlpArgs {
    /// The OpenTelemetry collector that metrics are sent to: `http://host:4317` for gRPC, the whole URL
    /// (`http://host:4318/v1/metrics`) for HTTP. [default: where traces go]
    #[arg(long, env = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")]
    pub otlp_metrics_endpoint: Option<String>,
    /// How it is spoken to. [default: grpc]
    #[arg(long, env = "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", value_enum)]
    pub otlp_metrics_protocol: Option<ProtocolArg>,
    /// How often metrics are sent, in milliseconds.
    #[arg(long, env = "OTEL_METRIC_EXPORT_INTERVAL", default_value_t = 60_000, value_parser = clap::value_parser!(u64).range(10..))]
    pub metric_export_interval: u64,
}

/// How a collector is spoken to, by OpenTelemetry's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProtocolArg {
    /// OTLP over gRPC.
    Grpc,
    /// OTLP over HTTP, protobuf.
    #[value(name = "http/protobuf")]
    HttpProtobuf,
}

impl OtlpArgs {
    /// Where a program's metrics go, if anywhere: to an endpoint of their own, or to the one for `all` that is sent by
    /// OTLP. `instance` tells the program from its peers.
    pub fn settings(
        &self,
        program: &str,
        instance: &str,
        all: Option<(&str, Protocol)>,
    ) -> Option<Settings> {
        let own = self.otlp_metrics_endpoint.as_deref().filter(|endpoint| !endpoint.is_empty());
        let protocol = match (self.otlp_metrics_protocol, all) {
            (Some(ProtocolArg::HttpProtobuf), _) => Protocol::Http,
            (Some(ProtocolArg::Grpc), _) => Protocol::Grpc,
            (None, all) => all.map_or(Protocol::Grpc, |(_, protocol)| protocol),
        };
        let endpoint = match (own, all, protocol) {
            (Some(own), ..) => own.to_owned(),
            (None, Some((all, _)), Protocol::Grpc) => all.to_owned(),
            // The path belongs to an endpoint for metrics alone, and is added to one for everything.
            (None, Some((all, _)), Protocol::Http) => {
                format!("{}/v1/metrics", all.trim_end_matches('/'))
            }
            (None, None, _) => return None,
        };
        let attributes = [
            ("service.name", program),
            ("service.instance.id", instance),
            ("service.version", env!("CARGO_PKG_VERSION")),
        ];
        Some(Settings {
            endpoint,
            protocol,
            every: Duration::from_millis(self.metric_export_interval),
            attributes: attributes.map(|(name, value)| (name.into(), value.into())).into(),
        })
    }
}
