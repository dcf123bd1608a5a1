//! A request as a worker holds it, and the events it causes.

use herald_proto::{Chat, Side, UserId, wire::Command};
use serde::{Deserialize, Serialize};

/// A client's request, taken from a partition.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Its partition.
    pub partition: u16,
    /// Its sequence in `FRAMES`.
    pub sequence: i64,
    /// What the sequence counts in (see [`crate::store::Move::epoch`]).
    pub epoch: i64,
    /// When it came into `FRAMES`, in nanoseconds since the Unix epoch by the broker's clock.
    pub came_at: i64,
    /// Whether its batch was applied before: then it is answered again, and changes nothing.
    pub replay: bool,
    /// What is asked, by whom.
    pub command: Command,
    /// The chat it is about.
    pub chat: Chat,
    /// The sender's side of the chat.
    pub side: Side,
    /// The span of this frame's processing: parent of what it causes.
    pub span: tracing::Span,
}

impl Frame {
    /// The message id of the event that it causes, for JetStream's duplicate detection: a frame causes at most one.
    pub fn event_id(&self) -> String {
        format!("{:x}-{}-{}", self.epoch, self.partition, self.sequence)
    }
}

/// An event to be published: also how it lies in the outbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outgoing {
    /// Whose log it goes to.
    pub user: UserId,
    /// Its message id ([`Frame::event_id`]).
    pub id: String,
    /// The event frame, without `id` and `prev`.
    pub body: String,
    /// The trace context of the frame that caused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}
