//! Which requests are traced. Decided before there is a span, so that a request that is not costs one random number.

use crate::clock::now_ms;

use super::{Budget, Traceparent, is_on};

/// A parent-based sampler: a client that traces its request decides for itself, for the others a ratio does.
#[derive(Debug)]
pub struct Sampler {
    ratio: f64,
    /// Traces that clients ask for a second: what they ask for must not cost more than the service can bear.
    asked: Budget,
}

/// Errors kept a second that were not sampled: enough to look at, and no burden when everything fails.
static ERRORS: Budget = Budget::new(20);

impl Sampler {
    /// Keeps `ratio` of the requests, and of those whose clients trace them at most `asked` a second. Nothing, if traces
    /// are sent nowhere.
    pub fn new(ratio: f64, asked: u32) -> Self {
        Self { ratio: if is_on() { ratio } else { 0.0 }, asked: Budget::new(asked) }
    }

    /// Whether a request is traced; `parent` is what its client says about itself.
    pub fn keeps(&self, parent: Option<&Traceparent>) -> bool {
        match parent {
            None => fastrand::f64() < self.ratio,
            Some(parent) => parent.is_sampled() && is_on() && self.asked.take(second()),
        }
    }
}

/// Whether to keep an error of the service's own whose request is not traced. It becomes a span by itself then.
///
/// A sampler at the head can't know how a request will end, and one at the tail would need spans of all of them. So
/// what went wrong is told by a span that is made when it has: without what led up to it, but it is never missing.
pub fn keeps_error() -> bool {
    is_on() && ERRORS.take(second())
}

fn second() -> u64 {
    now_ms().cast_unsigned() / 1000
}
