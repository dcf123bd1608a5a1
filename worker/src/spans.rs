//! The worker's spans, as OpenTelemetry's semantic conventions for messaging and databases (1.3x) name them.
//!
//! ```text
//! publish FRAMES (the gateway's)
//! └─ process FRAMES (CONSUMER: one a frame, until its event is published)
//!    ├─ apply FRAMES (CONSUMER: one a batch, in the trace of its first frame; links to all its traced frames)
//!    ├─ SELECT … (CLIENT: what is not remembered of the batch's chats, once in the trace of each frame)
//!    ├─ UPDATE … INSERT … (CLIENT: the transaction, once in the trace of each frame that waits for it)
//!    └─ publish EVENTS (PRODUCER: until JetStream has the event)
//! ```
//!
//! A trace is whole by itself: what a batch's frames share is told in the trace of each, and links lead from one to the
//! other. A worker that is killed takes its spans along. So what outlives it, the outbox and the frames, names the
//! gateway's span as the parent: what the next worker does is a part of the same trace, and hangs in no gap.

use std::time::SystemTime;

use herald_proto::{
    ErrorCode,
    frame::Answer,
    metrics::{AnswerCode, Label},
    subject,
    telemetry::{self, Span, Traceparent},
    wire::Command,
};

use crate::{
    frame::{Frame, Outgoing},
    store::Store,
};

/// What users' logs are called in spans; which of their streams it is, is the partition.
const EVENTS: &str = "EVENTS";

/// A frame's processing, until its event is published; none if it is not traced. `attempt` counts how often the broker
/// has delivered it, `None` if it was fetched.
pub fn process(command: &Command, partition: u16, attempt: Option<i64>) -> Span {
    let Some(parent) = command.traceparent else { return Span::none() };
    let mut span = frames("process FRAMES", "process", Some(parent))
        .with("messaging.destination.partition.id", partition.to_string())
        .with("herald.request", command.request.kind())
        .start();
    match attempt {
        Some(attempt) => span.set("herald.delivery.attempt", attempt),
        None => span.set("herald.delivery.fetched", true),
    }
    span
}

/// A batch's, if any of its frames is traced.
pub fn apply(batch: &[Frame]) -> Span {
    let mut traced = batch.iter().filter_map(|frame| frame.span.traceparent()).peekable();
    let Some(first) = traced.peek().copied() else { return Span::none() };
    let size = i64::try_from(batch.len()).unwrap_or(i64::MAX);
    let beginning =
        frames("apply FRAMES", "apply", Some(first)).with("messaging.batch.message_count", size);
    traced.fold(beginning, telemetry::Beginning::link).start()
}

fn frames(
    name: &'static str,
    operation: &'static str,
    parent: Option<Traceparent>,
) -> telemetry::Beginning {
    Span::consumer(name).parent(parent).messaging(operation, "process", subject::FRAMES)
}

/// The transaction, in the trace of each traced frame of the batch.
pub fn transactions(batch: &[Frame], store: &Store) -> Vec<Span> {
    const SUMMARY: &str = "UPDATE partitions INSERT messages UPDATE chats";
    queries(SUMMARY, batch, store, SystemTime::now())
}

/// What was looked up for a batch since then, in the trace of each of its traced frames.
pub fn look_ups(batch: &[Frame], store: &Store, since: SystemTime) -> Vec<Span> {
    queries("SELECT chats messages", batch, store, since)
}

fn queries(summary: &'static str, batch: &[Frame], store: &Store, since: SystemTime) -> Vec<Span> {
    let size = i64::try_from(batch.len()).unwrap_or(i64::MAX);
    let query = |frame: &Frame| {
        let parent = frame.span.traceparent()?;
        let mut span = Span::client(summary)
            .parent(Some(parent))
            .since(since)
            .with("db.system.name", store.system())
            .with("db.query.summary", summary)
            .with("herald.batch.frames", size);
        if let Some(server) = store.server() {
            span = span.at(&server.host, server.port).with("db.namespace", server.database.clone());
        }
        Some(span.start())
    };
    batch.iter().filter_map(query).collect()
}

/// An event's way into its log; none if it is not traced.
pub fn publish(event: &Outgoing, stream: u16) -> Span {
    let Some(parent) = event.cause.or(event.traceparent) else { return Span::none() };
    let mut span = Span::producer("publish EVENTS")
        .parent(Some(parent))
        .messaging("publish", "send", EVENTS)
        .with("messaging.destination.partition.id", stream.to_string())
        .with("messaging.message.id", event.id.clone())
        .start();
    if event.cause.is_none() {
        span.set("herald.republished", true);
    }
    span
}

/// Notes how a frame is answered.
pub fn answered(frame: &mut Frame, answer: &Answer) {
    let Answer::Failed(error) = answer else { return };
    match error.code {
        ErrorCode::Unavailable => fail(frame, "unavailable"),
        // The client's own error, and no failure of this service.
        code => frame.span.set("error.type", AnswerCode::from(code).text()),
    }
}

/// Notes that a frame can't be applied, whether it is traced or not.
pub fn fail(frame: &mut Frame, kind: &'static str) {
    if frame.span.is_some() {
        frame.span.fail(kind);
    } else if telemetry::keeps_error() {
        frames("process FRAMES", "process", frame.command.traceparent)
            .with("messaging.destination.partition.id", frame.partition.to_string())
            .with("herald.request", frame.command.request.kind())
            .start()
            .fail(kind);
    }
}
