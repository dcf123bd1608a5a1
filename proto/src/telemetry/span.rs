//! A span of something that is traced, or nothing: eight bytes, and free while it is nothing.

use std::{borrow::Cow, fmt, sync::OnceLock, time::SystemTime};

use opentelemetry::{
    Context, ContextGuard, Key, KeyValue, Value,
    trace::{Link, Span as _, SpanBuilder, SpanKind, Status, TraceContextExt, Tracer},
};

use super::{TRACER, Traceparent};

/// Where spans say that the broker is: the first server that this process was told of.
static BROKER: OnceLock<(String, u16)> = OnceLock::new();

/// Notes where the broker is.
pub(crate) fn broker_is_at(host: &str, port: u16) {
    // Whoever said so first: a program has one broker.
    let _ = BROKER.set((host.to_owned(), port));
}

/// Lasts from its start until it is dropped. What is set on a span that is none is forgotten.
#[derive(Default)]
pub struct Span(Option<Box<opentelemetry_sdk::trace::Span>>);

/// What a span begins with.
#[derive(Debug)]
pub struct Beginning {
    builder: SpanBuilder,
    parent: Option<Traceparent>,
}

impl Span {
    /// Of what is not traced.
    pub const fn none() -> Self {
        Self(None)
    }

    /// What serves a request of someone who waits for its answer.
    pub fn server(name: impl Into<Cow<'static, str>>) -> Beginning {
        Beginning::new(name.into(), SpanKind::Server)
    }

    /// What waits for another service.
    pub fn client(name: impl Into<Cow<'static, str>>) -> Beginning {
        Beginning::new(name.into(), SpanKind::Client)
    }

    /// What hands a message to the broker.
    pub fn producer(name: impl Into<Cow<'static, str>>) -> Beginning {
        Beginning::new(name.into(), SpanKind::Producer)
    }

    /// What takes a message from the broker.
    pub fn consumer(name: impl Into<Cow<'static, str>>) -> Beginning {
        Beginning::new(name.into(), SpanKind::Consumer)
    }

    /// Whether there is a span.
    pub fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// What its children name as their parent.
    pub fn traceparent(&self) -> Option<Traceparent> {
        self.0.as_ref().and_then(|span| Traceparent::of(span.span_context()))
    }

    /// Sets an attribute.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new(key, value));
        }
    }

    /// Links it to another span, which may be of another trace.
    pub fn link(&mut self, other: Traceparent) {
        if let Some(span) = &mut self.0 {
            span.add_link(other.kept(), Vec::new());
        }
    }

    /// It ends in an error of the service's own; `kind` is one of few (`error.type`).
    pub fn fail(&mut self, kind: impl Into<Cow<'static, str>>) {
        if let Some(span) = &mut self.0 {
            let kind = kind.into();
            span.set_attribute(KeyValue::new("error.type", Value::from(kind.clone())));
            span.set_status(Status::error(kind));
        }
    }

    /// Ends it, and tells of it later; `None` if there is none.
    pub fn end(self) -> Option<Ended> {
        self.is_some().then(|| Ended { span: self, at: SystemTime::now() })
    }

    /// While the guard lives, log lines of this thread carry the span's ids. Not to be held across an await.
    pub fn enter(&self) -> Option<ContextGuard> {
        let context = self.0.as_ref()?.span_context().clone();
        Some(Context::new().with_remote_span_context(context).attach())
    }
}

/// A span that has ended. It is told when this is dropped, which is for spans that are told after the one they are a part
/// of: what is told of a process that is killed then hangs in no gap.
#[derive(Debug)]
pub struct Ended {
    span: Span,
    at: SystemTime,
}

impl Drop for Ended {
    fn drop(&mut self) {
        if let Some(span) = &mut self.span.0 {
            span.end_with_timestamp(self.at);
        }
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.traceparent() {
            Some(traceparent) => write!(f, "Span({traceparent})"),
            None => f.write_str("Span(none)"),
        }
    }
}

impl Beginning {
    fn new(name: Cow<'static, str>, kind: SpanKind) -> Self {
        Self { builder: SpanBuilder::from_name(name).with_kind(kind), parent: None }
    }

    /// The span that it is a part of; without one it begins a trace.
    #[must_use]
    pub fn parent(mut self, parent: Option<Traceparent>) -> Self {
        self.parent = parent;
        self
    }

    /// An attribute.
    #[must_use]
    pub fn with(mut self, key: impl Into<Key>, value: impl Into<Value>) -> Self {
        let attribute = KeyValue::new(key, value);
        self.builder.attributes.get_or_insert_default().push(attribute);
        self
    }

    /// It is about messages of the broker's.
    #[must_use]
    pub fn messaging(
        self,
        operation: &'static str,
        kind: &'static str,
        destination: &'static str,
    ) -> Self {
        let span = self
            .with("messaging.system", "nats")
            .with("messaging.operation.name", operation)
            .with("messaging.operation.type", kind)
            .with("messaging.destination.name", destination);
        match BROKER.get() {
            Some((host, port)) => span.at(host, *port),
            None => span,
        }
    }

    /// Where the other side is.
    #[must_use]
    pub fn at(self, host: &str, port: u16) -> Self {
        self.with("server.address", host.to_owned()).with("server.port", i64::from(port))
    }

    /// A link to another span.
    #[must_use]
    pub fn link(mut self, other: Traceparent) -> Self {
        self.builder.links.get_or_insert_default().push(Link::with_context(other.kept()));
        self
    }

    /// When it began, if not now.
    #[must_use]
    pub fn since(mut self, began_at: SystemTime) -> Self {
        self.builder = self.builder.with_start_time(began_at);
        self
    }

    /// The span, under way; none if traces are sent nowhere.
    pub fn start(self) -> Span {
        let Some(tracer) = TRACER.get() else { return Span::none() };
        let parent = match self.parent {
            Some(parent) => Context::new().with_remote_span_context(parent.kept()),
            None => Context::new(),
        };
        Span(Some(Box::new(tracer.build_with_context(self.builder, &parent))))
    }
}
