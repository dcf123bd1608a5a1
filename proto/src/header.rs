//! Header names on the broker, and the bridge between trace contexts and headers.

use async_nats::{HeaderMap, header::IntoHeaderName};
use opentelemetry::propagation::Extractor;

/// The W3C trace context of what caused the message.
pub const TRACEPARENT: &str = "traceparent";
/// On a dead letter: why the frame can't be applied.
pub const REASON: &str = "Herald-Reason";
/// On a dead letter: the subject the frame came on.
pub const ORIGIN: &str = "Herald-Origin";

/// Reads a trace context from headers.
pub struct HeaderExtractor<'a>(pub &'a HeaderMap);

impl Extractor for HeaderExtractor<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(async_nats::HeaderValue::as_str)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name.as_ref()).collect()
    }
}

/// A header as a number.
pub fn number(headers: &HeaderMap, name: impl IntoHeaderName) -> Option<u64> {
    headers.get(name)?.as_str().parse().ok()
}
