//! The gateway's spans, as OpenTelemetry's semantic conventions for messaging (1.3x, development) name them.
//!
//! ```text
//! request new (SERVER: until its response is written)
//! └─ publish FRAMES (PRODUCER: until JetStream has it)
//!    └─ process FRAMES … publish EVENTS (the worker's)
//!       └─ deliver EVENTS (CONSUMER: from the log or the tap until it is written)
//!          └─ ack EVENTS (SERVER: until its response is written)
//! ```
//!
//! A handshake is a trace of its own, `GET /ws`. A request is a SERVER span and no CONSUMER: its client waits for the answer. Users, messages and ids of chats never
//! become attributes.

use std::time::SystemTime;

use herald_proto::{
    EventId,
    frame::Request,
    subject,
    telemetry::{self, Span, Traceparent},
};

/// What users' logs are called in spans, whatever streams they lie in.
const EVENTS: &str = "EVENTS";

/// How an event came to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// It came into the log just now.
    Live,
    /// It was read from the log.
    Log,
}

/// A client's handshake, until its session has begun.
pub fn handshake(parent: Option<Traceparent>) -> Span {
    handshakes().parent(parent).start()
}

fn handshakes() -> telemetry::Beginning {
    Span::server("GET /ws")
        .with("http.request.method", "GET")
        .with("http.route", "/ws")
        .with("http.response.status_code", 101_i64)
        .with("url.path", "/ws")
        .with("url.scheme", "http")
        .with("network.protocol.name", "http")
}

/// Notes that no session came of a handshake for the service's own fault, whether it is traced or not.
pub fn fail_handshake(span: &mut Span, kind: &'static str) {
    if span.is_some() {
        span.fail(kind);
    } else if telemetry::keeps_error() {
        handshakes().start().fail(kind);
    }
}

/// A client's request, until its response is written.
pub fn request(parent: Option<Traceparent>, request: &Request) -> Span {
    Span::server(format!("request {}", request.kind()))
        .parent(parent)
        .with("network.protocol.name", "websocket")
        .with("network.transport", "tcp")
        .with("herald.request", request.kind())
        .start()
}

/// A request on its way into `FRAMES`; none if it is not traced.
pub fn publish(cause: Option<Traceparent>, partition: u16) -> Span {
    if cause.is_none() {
        return Span::none();
    }
    Span::producer("publish FRAMES")
        .parent(cause)
        .messaging("publish", "send", subject::FRAMES)
        .with("messaging.destination.partition.id", partition.to_string())
        .start()
}

/// An event on its way to a device. `before` is the first time it was, if this is not.
pub fn deliver(
    parent: Traceparent,
    id: EventId,
    source: Source,
    (attempt, before): (i64, Option<Traceparent>),
    since: SystemTime,
) -> Span {
    let source = match source {
        Source::Live => "live",
        Source::Log => "log",
    };
    let span = Span::consumer("deliver EVENTS")
        .parent(Some(parent))
        .since(since)
        .messaging("deliver", "process", EVENTS)
        .with("network.protocol.name", "websocket")
        .with("herald.event.id", id.0.cast_signed())
        .with("herald.delivery.source", source)
        .with("herald.delivery.attempt", attempt);
    before.into_iter().fold(span, telemetry::Beginning::link).start()
}

/// A device's ack of an event that was delivered, until the ack's response is written.
pub fn ack(delivery: Traceparent, id: EventId, attempts: i64) -> Span {
    Span::server("ack EVENTS")
        .parent(Some(delivery))
        .messaging("ack", "settle", EVENTS)
        .with("network.protocol.name", "websocket")
        .with("herald.event.id", id.0.cast_signed())
        .with("herald.delivery.attempt", attempts)
        .start()
}

/// Notes an error of the service's own, whose request is not traced.
pub fn keep_error(kind: &'static str) {
    if telemetry::keeps_error() {
        Span::server("request").with("network.protocol.name", "websocket").start().fail(kind);
    }
}
