//! What a session's rules decide: the only thing that leaves them.

use herald_proto::{CloseCode, EventId, RequestId, UserId, frame::Request, telemetry::Traceparent};
use tokio_tungstenite::tungstenite::Utf8Bytes;

/// What a session has to do next.
#[derive(Debug, PartialEq)]
pub enum Output {
    /// Send this frame to the client.
    Send(Utf8Bytes),
    /// Send this response to an open request, which ends with it.
    Answer(RequestId, Utf8Bytes),
    /// Send a WebSocket ping.
    Ping,
    /// Publish a request.
    Publish {
        /// The client's id of it.
        id: RequestId,
        /// The sender's clock, in milliseconds since the Unix epoch.
        sent_at: i64,
        /// The trace that its client makes it a part of.
        traceparent: Option<Traceparent>,
        /// What is asked.
        request: Request,
    },
    /// Tell a peer that the user is writing.
    Typing(UserId),
    /// The user says that it goes offline.
    Offline,
    /// Read up to `limit` events from the log, from `after` on.
    Fetch {
        /// The last event the session has.
        after: EventId,
        /// How many there is room for.
        limit: usize,
        /// Whether a read has left something there.
        goes_on: bool,
    },
    /// Store the cursor.
    StoreCursor(EventId),
    /// End the session.
    Close(CloseCode, String),
}
