//! A request as a worker holds it, and the events it causes.

use std::sync::Arc;

use herald_proto::{
    Chat, Side, UserId, header,
    telemetry::{Span, Traceparent, lenient},
    wire::Command,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// A client's request, taken from a partition.
#[derive(Debug)]
pub struct Frame {
    /// Its partition.
    pub partition: u16,
    /// Its place in `FRAMES` ([`place`]).
    pub place: i64,
    /// What the place counts in (see [`crate::store::Move::epoch`]).
    pub epoch: i64,
    /// When it came into `FRAMES`, in nanoseconds since the Unix epoch by the broker's clock.
    pub came_at: i64,
    /// Whether its batch was applied before: then it is answered again, and changes nothing.
    pub replay: bool,
    /// The gateway that waits for the answer.
    pub gateway: Arc<str>,
    /// What is asked, by whom.
    pub command: Command,
    /// The chat it is about.
    pub chat: Chat,
    /// The sender's side of the chat.
    pub side: Side,
    /// The span of this frame's processing: parent of what it causes.
    pub span: Span,
}

/// Bits of a place that count within a message.
const INDEX_BITS: u32 = 12;

/// A frame's place: the sequence of its message in `FRAMES`, and which one of that message's frames it is.
pub fn place(sequence: u64, index: usize) -> i64 {
    // No bundle holds that many frames.
    let index = i64::try_from(index).unwrap_or(i64::MAX).min((1 << INDEX_BITS) - 1);
    (sequence.cast_signed() << INDEX_BITS) | index
}

/// The place after which a message's last frame lies at the latest.
pub fn end_of(sequence: u64) -> i64 {
    place(sequence, usize::MAX)
}

/// The message that a place lies in.
pub fn message_of(place: i64) -> u64 {
    (place >> INDEX_BITS).cast_unsigned()
}

impl Frame {
    /// The message id of the event that it causes, for JetStream's duplicate detection: a frame causes at most one.
    pub fn event_id(&self) -> String {
        header::event_id(self.epoch, self.partition, self.place, self.command.received_at)
    }
}

/// An event to be published: also how it lies in the outbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outgoing {
    /// Whose log it goes to.
    pub user: UserId,
    /// Its message id ([`Frame::event_id`]).
    pub id: String,
    /// The event frame, without `id` and `prev`.
    pub body: Box<RawValue>,
    /// The trace context that the frame that caused it came with: it outlives this worker.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<Traceparent>,
    /// That of the frame's processing, while the worker that processes it lives.
    #[serde(skip)]
    pub cause: Option<Traceparent>,
}
