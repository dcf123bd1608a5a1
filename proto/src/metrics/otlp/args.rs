//! Where metrics are sent, by the names that OpenTelemetry gives its settings.

use std::time::Duration;

use clap::{Args, ValueEnum};
use percent_encoding::percent_decode_str;

use super::{Protocol, Settings};
use crate::telemetry::{self, OtlpProtocol, TelemetryArgs};

/// Whether metrics are sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Exporter {
    /// By OTLP, if there is an endpoint.
    #[default]
    Otlp,
    /// They are only there to be scraped.
    None,
}

/// Where metrics are sent. Without an endpoint they are only there to be scraped.
#[derive(Debug, Clone, Default, Args)]
#[group(skip)]
pub struct OtlpArgs {
    /// Whether metrics are sent where traces are, or only there to be scraped.
    #[arg(long, env = "OTEL_METRICS_EXPORTER", value_enum, default_value_t = Exporter::Otlp)]
    pub metrics_exporter: Exporter,
    /// The OpenTelemetry collector that metrics are sent to: `http://host:4317` for gRPC, the whole URL
    /// (`http://host:4318/v1/metrics`) for HTTP. [default: as --otlp-endpoint]
    #[arg(long, env = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")]
    pub otlp_metrics_endpoint: Option<String>,
    /// How it is spoken to. [default: as --otlp-protocol]
    #[arg(long, env = "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", value_enum)]
    pub otlp_metrics_protocol: Option<OtlpProtocol>,
    /// How often metrics are sent, in milliseconds.
    #[arg(long, env = "OTEL_METRIC_EXPORT_INTERVAL", default_value_t = 60_000, value_parser = clap::value_parser!(u64).range(10..))]
    pub metric_export_interval: u64,
    /// What is sent along with traces and metrics, for collectors that ask who sends them: `name=value`, separated by commas,
    /// values percent-encoded. Best in the variable: flags show in the list of processes.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_HEADERS", hide_env_values = true)]
    pub otlp_headers: Option<String>,
    /// What holds for traces too.
    #[arg(skip)]
    shared: Shared,
}

/// What holds for traces and metrics.
#[derive(Debug, Clone, Default)]
struct Shared {
    endpoint: Option<String>,
    protocol: Option<OtlpProtocol>,
    service_name: Option<String>,
}

impl OtlpArgs {
    /// What is not said for metrics alone holds as it is said for traces.
    pub fn share(&mut self, telemetry: &TelemetryArgs) {
        self.shared = Shared {
            endpoint: telemetry.otlp_endpoint.clone(),
            protocol: Some(telemetry.otlp_protocol),
            service_name: telemetry.service_name.clone(),
        };
    }

    /// Where a program's metrics go, if anywhere; `instance` tells it from its peers.
    pub fn settings(&self, program: &str, instance: &str) -> Option<Settings> {
        if self.metrics_exporter == Exporter::None {
            return None;
        }
        let given = |endpoint: &Option<String>| endpoint.clone().filter(|text| !text.is_empty());
        let protocol = match self.otlp_metrics_protocol.or(self.shared.protocol) {
            Some(OtlpProtocol::Grpc) => Protocol::Grpc,
            Some(OtlpProtocol::HttpProtobuf) | None => Protocol::Http,
        };
        let endpoint = match (given(&self.otlp_metrics_endpoint), protocol) {
            (Some(own), _) => own,
            (None, Protocol::Grpc) => given(&self.shared.endpoint)?,
            // The path belongs to an endpoint for metrics alone, and is added to one for everything.
            (None, Protocol::Http) => {
                format!("{}/v1/metrics", given(&self.shared.endpoint)?.trim_end_matches('/'))
            }
        };
        let resource = telemetry::resource(program, instance, self.shared.service_name.as_deref());
        let attributes = resource.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        Some(Settings {
            endpoint,
            protocol,
            every: Duration::from_millis(self.metric_export_interval),
            headers: self.otlp_headers.as_deref().map(headers).unwrap_or_default(),
            attributes: attributes.collect(),
        })
    }
}

/// What a list of headers holds; what is not `name=value` is left out, as the SDK does for traces.
fn headers(list: &str) -> Vec<(String, String)> {
    let decoded = |value: &str| percent_decode_str(value.trim()).decode_utf8_lossy().into_owned();
    list.split(',')
        .filter_map(|one| one.split_once('='))
        .map(|(name, value)| (name.trim().to_ascii_lowercase(), decoded(value)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> OtlpArgs {
        OtlpArgs { metric_export_interval: 60_000, ..OtlpArgs::default() }
    }

    #[test]
    fn headers_are_read_as_for_traces() {
        let read = headers("Authorization=Basic%20YTpi, x = 1,nothing");
        let expected = [("authorization", "Basic YTpi"), ("x", "1")];
        assert_eq!(read, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn an_endpoint_for_everything_gets_the_path_and_one_for_metrics_is_taken_as_it_is() {
        assert_eq!(args().settings("p", "i"), None);
        let mut all = args();
        all.shared.endpoint = Some("http://c:4318/".into());
        assert_eq!(all.settings("p", "i").unwrap().endpoint, "http://c:4318/v1/metrics");
        all.shared.protocol = Some(OtlpProtocol::Grpc);
        assert_eq!(all.settings("p", "i").unwrap().endpoint, "http://c:4318/");
        all.otlp_metrics_endpoint = Some("http://m:1/x".into());
        all.otlp_metrics_protocol = Some(OtlpProtocol::HttpProtobuf);
        let settings = all.settings("p", "i").unwrap();
        assert_eq!(
            (settings.endpoint.as_str(), settings.protocol),
            ("http://m:1/x", Protocol::Http)
        );
        let none = OtlpArgs { metrics_exporter: Exporter::None, ..all.clone() };
        assert_eq!(none.settings("p", "i"), None);
        all.otlp_metrics_endpoint = Some(String::new());
        assert_eq!(all.settings("p", "i").unwrap().endpoint, "http://c:4318/v1/metrics");
    }
}
