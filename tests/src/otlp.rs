//! An OTLP receiver in this process: the real gRPC service, and Protobuf over HTTP. It keeps the latest spans.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Result;
use axum::{Router, body::Bytes, extract::State, http::StatusCode, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{Span as Wire, span::SpanKind, status::StatusCode as Outcome},
};
use prost::Message as _;
use serde::Serialize;
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::{Request, Response, Status, transport::Server, transport::server::TcpIncoming};

/// A span as it was received.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Span {
    /// Its trace, in hexadecimal.
    pub trace: String,
    /// Its own id.
    pub id: String,
    /// Its parent's, if it has one.
    pub parent: Option<String>,
    /// Its name.
    pub name: String,
    /// Its kind: `SERVER`, `CLIENT`, `PRODUCER`, `CONSUMER` or `INTERNAL`.
    pub kind: &'static str,
    /// When it began, in nanoseconds since the Unix epoch.
    pub start: u64,
    /// When it ended.
    pub end: u64,
    /// Its attributes.
    pub attributes: BTreeMap<String, String>,
    /// The spans it links to: trace and id.
    pub links: Vec<(String, String)>,
    /// What it failed with, if it did.
    pub error: Option<String>,
    /// Who sent it.
    pub resource: Arc<BTreeMap<String, String>>,
}

impl Span {
    /// An attribute.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.attributes.get(key).map(String::as_str)
    }

    /// An attribute of who sent it.
    pub fn sender(&self, key: &str) -> &str {
        self.resource.get(key).map_or("", String::as_str)
    }
}

/// A receiver under way; it ends when it is dropped.
#[derive(Debug)]
pub struct Receiver {
    spans: Spans,
    grpc: SocketAddr,
    http: SocketAddr,
    tasks: [JoinHandle<()>; 2],
}

/// The latest spans. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Spans(Arc<Mutex<VecDeque<Span>>>);

/// More are forgotten, the oldest first.
const MAX_SPANS: usize = 50_000;

impl Receiver {
    /// Starts to receive, by gRPC and by HTTP, on free ports of this machine.
    ///
    /// # Errors
    /// If there is none.
    pub async fn start() -> Result<Self> {
        let spans = Spans::default();
        let (grpc, http) =
            (TcpListener::bind("127.0.0.1:0").await?, TcpListener::bind("127.0.0.1:0").await?);
        let (grpc_address, http_address) = (grpc.local_addr()?, http.local_addr()?);
        let service = TraceServiceServer::new(spans.clone());
        let router = Router::new()
            .route("/v1/traces", post(take))
            // Metrics are taken, so that nobody complains, and forgotten.
            .route("/v1/metrics", post(async || StatusCode::OK))
            .with_state(spans.clone());
        let tasks = [
            tokio::spawn(async move {
                let server = Server::builder().add_service(service);
                if let Err(error) = server.serve_with_incoming(TcpIncoming::from(grpc)).await {
                    tracing::error!(%error, "the OTLP receiver failed");
                }
            }),
            tokio::spawn(async move {
                if let Err(error) = axum::serve(http, router).await {
                    tracing::error!(%error, "the OTLP receiver failed");
                }
            }),
        ];
        Ok(Self { spans, grpc: grpc_address, http: http_address, tasks })
    }

    /// The flags that make a program send its traces here by gRPC.
    pub fn grpc_flags(&self) -> [String; 4] {
        flags(self.grpc, "grpc")
    }

    /// The flags that make a program send its traces here by HTTP.
    pub fn http_flags(&self) -> [String; 4] {
        flags(self.http, "http/protobuf")
    }

    /// What was received.
    pub fn spans(&self) -> &Spans {
        &self.spans
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn flags(address: SocketAddr, protocol: &str) -> [String; 4] {
    [
        "--otlp-endpoint".into(),
        format!("http://{address}"),
        "--otlp-protocol".into(),
        protocol.into(),
    ]
}

impl Spans {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Span>> {
        // Whole after every statement, whoever panicked while holding it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them, in the order in which they came.
    pub fn all(&self) -> Vec<Span> {
        self.lock().iter().cloned().collect()
    }

    fn receive(&self, request: ExportTraceServiceRequest) {
        let mut spans = self.lock();
        for group in request.resource_spans {
            let resource = group.resource.map(|resource| texts(resource.attributes));
            let resource = Arc::new(resource.unwrap_or_default());
            for span in group.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                spans.push_back(received(span, resource.clone()));
            }
        }
        let surplus = spans.len().saturating_sub(MAX_SPANS);
        spans.drain(..surplus);
    }
}

#[tonic::async_trait]
impl TraceService for Spans {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.receive(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn take(State(spans): State<Spans>, body: Bytes) -> StatusCode {
    match ExportTraceServiceRequest::decode(body) {
        Ok(request) => {
            spans.receive(request);
            StatusCode::OK
        }
        Err(_) => StatusCode::BAD_REQUEST,
    }
}

fn received(span: Wire, resource: Arc<BTreeMap<String, String>>) -> Span {
    let kind = match span.kind() {
        SpanKind::Server => "SERVER",
        SpanKind::Client => "CLIENT",
        SpanKind::Producer => "PRODUCER",
        SpanKind::Consumer => "CONSUMER",
        SpanKind::Internal => "INTERNAL",
        SpanKind::Unspecified => "",
    };
    let links = span.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect();
    let failed = span.status.filter(|status| status.code() == Outcome::Error);
    Span {
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: (!span.parent_span_id.is_empty()).then(|| hex(&span.parent_span_id)),
        name: span.name,
        kind,
        start: span.start_time_unix_nano,
        end: span.end_time_unix_nano,
        attributes: texts(span.attributes),
        links,
        error: failed.map(|status| status.message),
        resource,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    attributes.into_iter().map(|attribute| (attribute.key, text(attribute.value))).collect()
}

fn text(value: Option<AnyValue>) -> String {
    match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(truth)) => truth.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}
