//! A collector is sent what a scrape shows.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use anyhow::{Context as _, Result, ensure};
use herald_tests::{Backend, Cluster, Options, eventually};
use opentelemetry_proto::tonic::{
    collector::metrics::v1::{
        ExportMetricsServiceRequest, ExportMetricsServiceResponse,
        metrics_service_server::{MetricsService, MetricsServiceServer},
    },
    common::v1::any_value::Value,
    metrics::v1::{HistogramDataPoint, Metric, metric::Data, number_data_point},
};
use prost::Message as _;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

use super::PATIENCE;

/// What a collector was sent.
#[derive(Clone, Default)]
struct Received(Arc<Mutex<Vec<ExportMetricsServiceRequest>>>);

#[tonic::async_trait]
impl MetricsService for Received {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

impl Received {
    /// A collector that takes OTLP over gRPC.
    async fn over_grpc(&self) -> Result<SocketAddr> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let service = MetricsServiceServer::new(self.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        Ok(address)
    }

    /// A collector that takes OTLP over HTTP.
    async fn over_http(&self) -> Result<SocketAddr> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let received = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let received = received.clone();
                tokio::spawn(async move { received.http(stream).await });
            }
        });
        Ok(address)
    }

    async fn http(&self, mut stream: TcpStream) -> Result<()> {
        let mut bytes = Vec::new();
        loop {
            let mut some = [0; 4096];
            let count = stream.read(&mut some).await?;
            ensure!(count > 0, "the connection ended");
            bytes.extend_from_slice(&some[..count]);
            let Some(head) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
                continue;
            };
            let text = String::from_utf8(bytes[..head].to_vec())?.to_lowercase();
            let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
            let body = &bytes[head + 4..];
            if body.len() < length.context("no length")?.parse()? {
                continue;
            }
            ensure!(text.starts_with("post /v1/metrics http/1.1"), "{text}");
            ensure!(text.contains("content-type: application/x-protobuf"), "{text}");
            self.0.lock().unwrap().push(ExportMetricsServiceRequest::decode(body)?);
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await?;
            bytes.clear();
        }
    }

    /// The newest of a program's metrics of that name.
    fn newest(&self, program: &str, name: &str) -> Result<Metric> {
        let all = self.0.lock().unwrap();
        let resources = all.iter().rev().flat_map(|request| &request.resource_metrics);
        let own = resources.filter(|found| {
            let attributes = found.resource.iter().flat_map(|resource| &resource.attributes);
            let mut names = attributes.filter(|attribute| attribute.key == "service.name");
            let value = names.next().and_then(|name| name.value.clone()?.value);
            value == Some(Value::StringValue(program.into()))
        });
        let mut metrics = own.flat_map(|own| &own.scope_metrics).flat_map(|scope| &scope.metrics);
        metrics.find(|metric| metric.name == name).cloned().context("not sent yet")
    }
}

fn histogram(metric: &Metric) -> Result<&HistogramDataPoint> {
    let Some(Data::Histogram(histogram)) = &metric.data else { anyhow::bail!("{metric:?}") };
    histogram.data_points.first().context("no series")
}

fn total(metric: &Metric) -> f64 {
    let Some(Data::Sum(sum)) = &metric.data else { return 0.0 };
    let value = |value| match value {
        Some(number_data_point::Value::AsDouble(value)) => value,
        _ => 0.0,
    };
    sum.data_points.iter().map(|point| value(point.value)).sum()
}

async fn a_collector_gets_them(received: Received, flags: [&str; 4]) -> Result<()> {
    let flags = [flags.as_slice(), &["--metric-export-interval", "100"]].concat();
    let options = Options::of(1, 1).gateway_flags(&flags).worker_flags(&flags);
    let cluster = Cluster::start(Backend::Sqlite, options).await?;
    let mut user1 = cluster.connect("User1").await?;
    let mut user2 = cluster.connect("User2").await?;
    let new = json!({"chatId": "User2", "clientMessageId": "k", "message": "hi"});
    user1.request("new", new).await?;
    super::take(&mut user2, "new").await?;
    eventually("a collector has it all", PATIENCE, async || {
        let ack = received.newest("herald-gateway", "herald_gateway_ack_duration_seconds")?;
        let point = histogram(&ack)?;
        ensure!((ack.unit.as_str(), point.count) == ("s", 1), "{point:?}");
        ensure!(point.bucket_counts.len() == point.explicit_bounds.len() + 1);
        let frames = received.newest("herald-worker", "herald_worker_frames")?;
        ensure!((total(&frames) - 1.0).abs() < f64::EPSILON, "{frames:?}");
        Ok(())
    })
    .await?;
    // What was counted last is not lost with the program.
    let mut user3 = cluster.connect("User3").await?;
    user3.request("read", json!({"chatId": "User2"})).await?;
    let mut cluster = cluster;
    cluster.workers.remove(0).stop().await?;
    let frames = received.newest("herald-worker", "herald_worker_frames")?;
    ensure!((total(&frames) - 2.0).abs() < f64::EPSILON, "{frames:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_grpc() -> Result<()> {
    let received = Received::default();
    let endpoint = format!("http://{}", received.over_grpc().await?);
    let flags = ["--otlp-metrics-endpoint", &endpoint, "--otlp-metrics-protocol", "grpc"];
    a_collector_gets_them(received, flags).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_http() -> Result<()> {
    let received = Received::default();
    let endpoint = format!("http://{}/v1/metrics", received.over_http().await?);
    let flags = ["--otlp-metrics-endpoint", &endpoint, "--otlp-metrics-protocol", "http/protobuf"];
    a_collector_gets_them(received, flags).await
}
