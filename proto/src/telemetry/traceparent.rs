//! The W3C trace context of whatever caused something, as it travels: `00-<trace>-<span>-<flags>`.

use std::{fmt, str::FromStr};

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A `traceparent` (W3C Trace Context, level 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traceparent {
    trace: TraceId,
    span: SpanId,
    is_sampled: bool,
}

/// The text is no `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent")]
pub struct Invalid;

impl Traceparent {
    /// The context of a span; `None` if it is no span's.
    pub fn of(context: &SpanContext) -> Option<Self> {
        context.is_valid().then(|| Self {
            trace: context.trace_id(),
            span: context.span_id(),
            is_sampled: context.is_sampled(),
        })
    }

    /// The trace.
    pub fn trace_id(&self) -> [u8; 16] {
        self.trace.to_bytes()
    }

    /// Whether who sent it keeps the trace.
    pub fn is_sampled(&self) -> bool {
        self.is_sampled
    }

    /// As the parent, or the link, of a span that is kept whatever this one says.
    pub(super) fn kept(&self) -> SpanContext {
        SpanContext::new(self.trace, self.span, TraceFlags::SAMPLED, true, TraceState::NONE)
    }
}

impl FromStr for Traceparent {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let is_hex = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let mut parts = text.split('-');
        let (Some(version), Some(trace), Some(span), Some(flags)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Invalid);
        };
        // A version that is not known yet may say more; what it says first means the same.
        let is_long = parts.next().is_some() && version == "00";
        let is_shaped = (version.len(), trace.len(), span.len(), flags.len()) == (2, 32, 16, 2)
            && [version, trace, span, flags].into_iter().all(is_hex);
        if is_long || !is_shaped || version == "ff" {
            return Err(Invalid);
        }
        let trace = TraceId::from_hex(trace).map_err(|_| Invalid)?;
        let span = SpanId::from_hex(span).map_err(|_| Invalid)?;
        let flags = u8::from_str_radix(flags, 16).map_err(|_| Invalid)?;
        if trace == TraceId::INVALID || span == SpanId::INVALID {
            return Err(Invalid);
        }
        Ok(Self { trace, span, is_sampled: flags & 1 == 1 })
    }
}

impl fmt::Display for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", self.trace, self.span, u8::from(self.is_sampled))
    }
}

impl Serialize for Traceparent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// For optional fields: what is no `traceparent` counts as none, as the W3C asks, and is never an error.
pub fn lenient<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Traceparent>, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    Ok(value.as_str().and_then(|text| text.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn golden_text() {
        let parsed: Traceparent = GOOD.parse().unwrap();
        assert_eq!(parsed.to_string(), GOOD);
        assert!(parsed.is_sampled());
        let unsampled: Traceparent = GOOD.replace("-01", "-00").parse().unwrap();
        assert!(!unsampled.is_sampled());
        assert_eq!(Traceparent::of(&parsed.kept()), Some(parsed));
        assert!(unsampled.kept().is_sampled());
    }

    #[test]
    fn a_later_version_is_understood_as_far_as_it_is_known() {
        let later = format!("cc{}-what-the-future-will-be-like", GOOD.trim_start_matches("00"));
        assert_eq!(later.parse::<Traceparent>().unwrap().to_string(), GOOD);
    }

    #[test]
    fn what_is_malformed_is_none() {
        let bad = [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-é",
        ];
        for text in bad {
            assert_eq!(text.parse::<Traceparent>(), Err(Invalid), "{text}");
        }
    }
}
