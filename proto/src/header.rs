//! Header names on the broker, and what they say.

use async_nats::{HeaderMap, header::IntoHeaderName};

use crate::telemetry::Traceparent;

/// The W3C trace context of what caused the message.
pub const TRACEPARENT: &str = "traceparent";
/// On a dead letter: why the frame can't be applied.
pub const REASON: &str = "Herald-Reason";
/// On a dead letter: the subject the frame came on.
pub const ORIGIN: &str = "Herald-Origin";

/// The trace context that a message carries, if what caused it is traced.
pub fn traceparent(headers: Option<&HeaderMap>) -> Option<Traceparent> {
    headers?.get(TRACEPARENT)?.as_str().parse().ok()
}

/// A header as a number.
pub fn number(headers: &HeaderMap, name: impl IntoHeaderName) -> Option<u64> {
    headers.get(name)?.as_str().parse().ok()
}
